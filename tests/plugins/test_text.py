import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mbt_core import Clip, ConfigError, DataError, Window, registry
from mbt_core.config import DataConfig, parse_modalities
from mbt_core.data.check import check
from mbt_core.data.collate import Collate
from mbt_core.data.dataset import ClipDataset, Draw
from mbt_core.data.manifest import Manifest
from mbt_core.media import decode_all
from mbt_text.config import TextConfig
from mbt_text.modality import END, FIRST, PADDING, Text, TextTokenizer
from mbt_text.vocabulary import Bytes, vocabulary
from modality_contract import check_adapt, check_card, check_samples, check_tokens, inputs, model_of

ALL = Window(0, 0)
SUBTITLES = "1\n00:00:01,000 --> 00:00:02,500\nfirst\n\n2\n00:00:03,000 --> 00:00:05,000\nsecond\n"


def text(**settings) -> Text:
    return Text("text", parse_modalities({"text": {"max_length": 32, **settings}})["text"])


def words(content: str) -> Clip:
    return Clip.of_text(content, "row 1: text")


def bytes_of(sample: torch.Tensor) -> bytes:
    assert sample[-1] == END
    return bytes((sample[:-1] - FIRST).tolist())


@pytest.fixture
def tokenizer_file(tmp_path) -> Path:
    """A tokenizer.json of whole words, lower-cased, as Hugging Face writes it."""
    tokenizers = pytest.importorskip("tokenizers")
    known = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "a", "dog", "barks", "<b>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


# The contract


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_contract(dropout):
    modality = text(token_dropout=dropout)
    check_samples(modality, words("the quick brown fox"), ALL, augments=dropout > 0, fixed=False)
    check_tokens(modality, modality.read(words("the quick brown fox"), ALL, None))
    assert check_adapt(modality) == {}
    check_card(modality)


def test_hooks_and_settings_import_no_torch():
    code = "import sys, mbt_text; assert 'pydantic' not in sys.modules; import mbt_text.config"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
    assert registry().modality("text").modality == "mbt_text.modality:Text"


def test_wrong_settings():
    with pytest.raises(ConfigError, match=r"modalities\.text\.max_length: .*greater than or equal to 2"):
        text(max_length=1)
    with pytest.raises(ConfigError, match=r"token_dropout: .*less than 1"):
        text(token_dropout=1.0)
    with pytest.raises(ConfigError, match="max_length is still 'auto'"):
        text(max_length="auto").tokenizer(8)


# Bytes


def test_bytes_of_a_text():
    sample = text().read(words("Grüße"), ALL, None)
    assert sample.dtype == torch.int32
    assert bytes_of(sample) == "Grüße".encode()
    assert text().tokenizer(8).weight.shape == (256 + 2, 8)


def test_long_texts_are_cut_and_keep_their_end():
    sample = text(max_length=8).read(words("0123456789"), ALL, None)
    assert bytes_of(sample) == b"0123456"


def test_empty_text_is_its_end():
    assert text().read(words(""), ALL, None).tolist() == [END]


def test_batch_is_padded_to_its_longest():
    modality = text()
    batch = modality.collate([modality.read(words(content), ALL, None) for content in ("abc", "", "abcdefg")])
    assert batch["ids"].shape == batch["mask"].shape == (3, 8)
    assert batch["mask"].sum(1).tolist() == [4, 1, 8]
    assert batch["ids"][0].tolist() == [*(b + FIRST for b in b"abc"), END, *[PADDING] * 4]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_never_changes_the_output(pool):
    modality = text()
    model = model_of(modality, pool=pool)
    short, long = (modality.read(words(content), ALL, None) for content in ("dog", "a much longer text"))
    with torch.no_grad():
        alone = model({"text": inputs(modality, short)}).logits
        ids, mask = inputs(modality, short, long)
        together = model({"text": (ids, mask)}).logits
        filled = model({"text": (torch.where(mask, ids, 77), mask)}).logits
        other = model({"text": inputs(modality, long)}).logits
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)
    assert torch.equal(filled, together)
    torch.testing.assert_close(together[1:], other, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_order_matters():
    modality = text()
    model = model_of(modality)
    one, two = (model({"text": inputs(modality, modality.read(words(t), ALL, None))}).logits for t in ("ab", "ba"))
    assert (one - two).abs().max() > 1e-4


def test_tokenizer_is_a_table():
    tokenizer = TextTokenizer(10, 5, 4)
    tokens = tokenizer(torch.tensor([[3, 1, 0]]), torch.tensor([[True, True, False]]))
    assert torch.equal(tokens.x[0], tokenizer.weight[[3, 1, 0]])
    assert tokens.mask.tolist() == [[True, True, False]]
    assert tokenizer.grid == (5,)
    assert TextTokenizer(1000, 5, 64).weight.std().item() == pytest.approx(0.02, rel=0.02)


# Token dropout


def test_left_out_tokens_are_masked_in_place():
    modality = text(max_length=1001, token_dropout=0.3)
    clip = words("x" * 1000)
    evaluated, trained = modality.read(clip, ALL, None), modality.read(clip, ALL, np.random.default_rng(0))
    left_out = trained == PADDING
    assert len(trained) == len(evaluated)
    assert torch.equal(trained[~left_out], evaluated[~left_out])
    assert left_out.float().mean() == pytest.approx(0.3, abs=0.05)
    assert trained[-1] == END
    assert torch.equal(modality.collate([trained])["mask"][0], ~left_out)


# Sources


def test_files_and_windows(tmp_path):
    (tmp_path / "a.txt").write_text("all of it")
    (tmp_path / "a.srt").write_text(SUBTITLES)
    modality = text()
    assert bytes_of(modality.read(Clip(tmp_path / "a.txt"), Window(3, 4), None)) == b"all of it"
    clip = Clip(tmp_path / "a.srt")
    assert modality.duration(clip) == 5
    expected = {(0, 1): b"", (0, 5): b"first\nsecond", (2, 3): b"first", (2.5, 3.5): b"second"}
    for window, content in expected.items():
        assert bytes_of(modality.read(clip, Window(*window), None)) == content
    held = decode_all(clip, {"text"}, 0, 5, None, 0)
    assert modality.duration(held) == 5
    assert bytes_of(modality.read(held, Window(2, 3), None)) == b"first"


def test_rows_of_a_manifest(tmp_path):
    (tmp_path / "b.srt").write_text(SUBTITLES)
    rows = "id,text,text.path,start,end,label,split\na,a dog,,,,x,train\nb,,b.srt,2.6,4,x,train\nc,,b.srt,,,x,train\n"
    (tmp_path / "m.csv").write_text(rows)
    modalities = {"text": text()}
    manifest = Manifest.read(tmp_path / "m.csv", {"text": "text"}, DataConfig())
    dataset = ClipDataset(manifest, modalities, {}, config=DataConfig(), seed=0, training=False)
    examples = [dataset[Draw(0, row)] for row in range(3)]
    assert [bytes_of(views[0].samples["text"]) for views in examples] == [b"a dog", b"second", b"first\nsecond"]
    batch = Collate(modalities)(examples)
    assert batch.samples["text"]["mask"].sum(1).tolist() == [6, 7, 13]


@pytest.mark.parametrize("seconds", [None, 2])
def test_a_row_in_which_nothing_is_said_any_more_is_empty(tmp_path, seconds):
    (tmp_path / "b.srt").write_text(SUBTITLES)
    rows = "id,talk.path,start,end\na,b.srt,0,5\nb,b.srt,5,10\nc,b.srt,7,\n"
    (tmp_path / "m.csv").write_text(rows)
    modalities = {"talk": text(seconds=seconds)}
    manifest = Manifest.read(tmp_path / "m.csv", {"talk": "text"}, DataConfig())
    dataset = ClipDataset(manifest, modalities, {}, config=DataConfig(), seed=0, training=False)
    views = [dataset[Draw(0, row)][0] for row in range(3)]
    assert [view.error for view in views] == [None] * 3
    assert [bytes_of(view.samples["talk"]) for view in views] == [b"first\nsecond", b"", b""]
    found = check(manifest)["splits"]["train"]["modalities"]["talk"]
    assert (found["present"], found["unreadable"]) == (3, 0)


# Fit


def test_fit_takes_what_nine_of_ten_texts_fit_into():
    clips = [(words("x" * length), None) for length in (*range(10, 100, 10), 5000)]
    config = Text.fit(TextConfig(), clips)
    assert config.max_length == 91
    assert config.auto_fields() == []
    assert Text.fit(config, iter(())) is config
    assert Text.fit(TextConfig(), [(words("x" * 5000), None)]).max_length == 256
    assert Text.fit(TextConfig(), [(words(""), None)]).max_length == 2
    with pytest.raises(DataError, match="text: no readable text to fill max_length from"):
        Text.fit(TextConfig(), [])


def test_fit_takes_the_rows_spans(tmp_path):
    (tmp_path / "a.srt").write_text(SUBTITLES)
    assert Text.fit(TextConfig(), [(Clip(tmp_path / "a.srt"), Window(0, 2))]).max_length == len("first") + 1


# Tokenizer files


def test_tokenizer_file(tokenizer_file):
    modality = text(tokenizer=str(tokenizer_file))
    sample = modality.read(words("A dog barks <b> miaow"), ALL, None)
    assert sample.tolist() == [2 + FIRST, 3 + FIRST, 4 + FIRST, 5 + FIRST, 0 + FIRST, END]
    assert modality.tokenizer(8).weight.shape == (6 + 2, 8)
    check_samples(modality, words("a dog"), ALL, augments=False, fixed=False)
    html = modality.draw(sample, np.ones(32)).html
    assert ">dog</span>" in html
    assert "&lt;b&gt;" in html


def test_a_vocabulary_with_numbers_of_no_token(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"a": 0, "[UNK]": 2, "c": 9}, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(tmp_path / "t.json"))
    modality = text(tokenizer=str(tmp_path / "t.json"))
    sample = modality.read(words("c"), ALL, None)
    assert sample.tolist() == [9 + FIRST, END]
    assert modality.tokenizer(4)(sample[None]).x.shape == (1, 2, 4)


def test_relative_paths_are_kept_absolute(tokenizer_file, monkeypatch):
    monkeypatch.chdir(tokenizer_file.parent)
    assert text(tokenizer="tokenizer.json").config.tokenizer == str(tokenizer_file)


def test_wrong_tokenizer_files(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    with pytest.raises(ConfigError, match=r"none\.json: there is no such file; expected a Hugging Face"):
        text(tokenizer=str(tmp_path / "none.json")).tokenizer(8)
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ConfigError, match=r"a\.json: no Hugging Face tokenizer\.json"):
        text(tokenizer=str(tmp_path / "a.json")).tokenizer(8)
    monkeypatch.setattr("mbt_text.vocabulary.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package tokenizers: pip install 'mbt-fusion\[text\]'"):
        text(tokenizer=str(tmp_path / "b.json")).tokenizer(8)


# Pictures


def test_pieces_of_bytes():
    data = "aü€😀".encode() + b"\xff" + "ü".encode()[:1]
    assert Bytes().pieces(data) == [("a", 1), ("ü", 2), ("€", 3), ("😀", 4), ("\ufffd", 1), ("\ufffd", 1)]
    assert vocabulary(None) is vocabulary(None)


def test_picture_is_escaped_markup():
    modality = text(token_dropout=0.5)
    sample = modality.read(words("<i>ü</i> & x"), ALL, None)
    picture = modality.draw(sample, np.arange(32.0))
    assert not picture.stills
    assert "<i>" not in picture.html
    assert "&amp;" in picture.html
    assert picture.html.count("</span>") == len("<i>ü</i> & x")
    assert "style" not in modality.draw(sample, None).html.removeprefix("<p style")
    assert picture.html.count("rgb(") == len("<i>ü</i> & x") - 1  # the first has relevance 0
    sample[1:3] = PADDING
    assert modality.draw(sample, None).html.count("\N{MIDDLE DOT}") == 2
    assert modality.draw(modality.blank(), None).html == '<p style="white-space: pre-wrap"></p>'
