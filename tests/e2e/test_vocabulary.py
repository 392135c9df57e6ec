"""A run on texts needs nothing but its folder: the tokenizer's file is in it."""

import shutil
import signal

import numpy as np
import pytest

import mbt_core as mbt
from mbt_core.training.events import Listener
from mbt_core.training.loop import Interrupted
from small import mbt as command
from small import tiny_experiment

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["[UNK]", *"abcdef"]


@pytest.fixture
def experiment(tmp_path):
    """Texts in which one word tells the class, and a tokenizer that knows words alone."""
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rng = np.random.default_rng(0)
    rows = ["id,text,label,split"]
    for i in range(48):
        words = [*rng.choice(WORDS[3:], 3), WORDS[1 + i % 2]]
        rows.append(f"{i},{' '.join(words)},{i % 2},{('train', 'train', 'val', 'test')[i // 2 % 4]}")
    (tmp_path / "texts.csv").write_text("\n".join(rows))
    sets = (f"modalities.text.tokenizer={tmp_path / 'tokenizer.json'}", "train.steps=12")
    return tiny_experiment(tmp_path / "texts.csv", *sets, modalities="text")


class Stop(Listener):
    """Interrupts a training after its sixth step."""

    def step(self, step, metrics):
        if step == 6:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_moved_run_goes_on_and_answers_without_the_original_file(experiment, tmp_path):
    whole = mbt.train(experiment, tmp_path / "whole")
    with pytest.raises(Interrupted):
        mbt.train(experiment, tmp_path / "part", listeners=[Stop()])
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    moved = [shutil.move(tmp_path / name, tmp_path / "elsewhere" / name) for name in ("whole", "part")]

    assert command("train", "--resume", moved[1], "-q").code == 0
    runs = [mbt.load(folder) for folder in moved]
    (tmp_path / "note.txt").write_text("d a e")
    answers = [run.predict(tmp_path / "note.txt")[0] for run in runs]
    assert not answers[0].error
    assert answers[0].top == answers[1].top
    assert runs[1].results == whole.results
    for run in runs:
        (found,) = run.evaluate()[1].values()
        assert found.metrics()["top1"] == pytest.approx(whole.results["top1"])
    assert command("eval", moved[0]).code == 0

    (copy,) = (tmp_path / "elsewhere/whole/files").iterdir()
    copy.write_text(copy.read_text().replace('"a"', '"z"'))
    for arguments in (["predict", moved[0], tmp_path / "note.txt"], ["eval", moved[0]]):
        done = command(*arguments)
        assert done.code == 1
        assert f"modalities.text.tokenizer: {copy}: has changed" in done.err
