"""Checkpoints of the reference become runs, or errors that say why not."""

import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mbt_cli.main import app
from mbt_core import MBT, ConfigError, DataError
from mbt_core.config import Experiment
from mbt_core.config.settings import read_yaml
from mbt_core.pretrained import build_with_report, convert_scenic, load_scenic_params
from mbt_core.pretrained.flax import write_params
from parity.geometry import HELD, held
from parity.goldens import DEV, arrays_of, golden, to_inputs
from parity.reference import Reference, param_shapes
from parity.writer import to_scenic

DEV_SIZES = [
    "model.fusion.layer=2",
    "modalities.rgb.frames=4",
    "modalities.rgb.size=[32,48]",
    "modalities.audio.seconds=0.32",
    "modalities.audio.mel_bins=48",
]
# other sizes than the second geometry's
UNTOLD = {"j", "j_uneven", "odd"}
SIZES = {
    "rgb": ["modalities.rgb.frames=6", "modalities.rgb.size=24"],
    "spectrogram": ["modalities.audio.seconds=0.4", "modalities.audio.mel_bins=24", "modalities.audio.channels=3"],
}
SMALL = {"dim": 32, "depth": 9, "heads": 4, "act": "gelu_tanh"}
RELEASED = {
    "modalities": {"audio": {"mean": 0, "std": 1}, "rgb": {"frames": 32, "tubelet": 2}},
    "backbone": {"dim": 768, "depth": 12, "heads": 12, "act": "gelu_tanh"},
    "pool": "mean-joint",
    "head": {"classes": 527},
}


def checkpoint(folder, params):
    write_params(folder / "checkpoint_7", params)
    return folder / "checkpoint_7"


def randomise(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


@pytest.mark.parametrize("name", sorted(HELD.keys() - UNTOLD))
def test_any_configuration_is_told_by_its_arrays(tmp_path, name):
    config, shapes, params, inputs = held(name)
    sets = [s for modality in shapes for s in SIZES[modality]] + [f"model.fusion.layer={config['fusion_layer']}"]
    if "n_sampled_frames" in config["temporal_encoding_config"]:
        sets += ["modalities.rgb.frames=10", "modalities.rgb.sample_frames=3"]
    if not config["test_with_bottlenecks"] and config["use_bottleneck"]:
        sets += ["model.fusion.eval_bottlenecks=false"]
    convert_scenic(checkpoint(tmp_path, params), tmp_path / "run", sets=sets)
    expected = Reference(params, config)(inputs)["logits"]
    with torch.no_grad():
        found = MBT.from_pretrained(tmp_path / "run").eval()(to_inputs(inputs)).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_run_is_set_to_the_reference_s_preprocessing(tmp_path):
    model = MBT(RELEASED | {"backbone": SMALL})
    convert_scenic(checkpoint(tmp_path, to_scenic(model)), tmp_path / "run")
    experiment = Experiment(**read_yaml(tmp_path / "run" / "config.yaml"))
    rgb, audio = experiment.modalities["rgb"], experiment.modalities["audio"]
    assert (rgb.frames, rgb.stride, rgb.rate, rgb.sides, rgb.tubelet, rgb.mean, rgb.std) == (
        32,
        2,
        25,
        (224, 224),
        2,
        0.5,
        0.5,
    )
    assert (audio.seconds, audio.mel_bins, audio.channels, audio.mean, audio.std) == (8, 128, 1, 1.102, 2.762)
    assert list(experiment.modalities) == ["audio", "rgb"]
    assert experiment.model.pool == "mean-joint"
    assert not experiment.model.drop_path_rescale
    assert (experiment.model.fusion.layer, experiment.model.fusion.bottlenecks) == (8, 4)
    assert experiment.evaluate.views == 4
    assert experiment.model.head.task == "multilabel"
    loaded = MBT.from_pretrained(tmp_path / "run")
    assert loaded.config == experiment.mbt_config()
    assert loaded.classes["label"][:2] == ["class_0", "class_1"]


def test_several_heads_are_cut_from_one_projection(tmp_path):
    given = golden("a")
    sets = [*DEV_SIZES, "modalities.audio.channels=3", "model.head.classes=null"]
    convert_scenic(DEV / "checkpoint", tmp_path / "run", sets=[*sets, "model.head.tasks={noun: 4, verb: 3}"])
    with torch.no_grad():
        logits = MBT.from_pretrained(tmp_path / "run").eval()(given.inputs()).logits
    np.testing.assert_allclose(torch.cat([*logits.values()], 1), given.arrays["logits"], rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="model.head: 5 classes, but the checkpoint has 7"):
        convert_scenic(DEV / "checkpoint", tmp_path / "other", sets=[*sets, "model.head.tasks={noun: 4, verb: 1}"])


def test_sizes_that_contradict_the_positions_are_answered_by_those_that_fit(tmp_path):
    with pytest.raises(ConfigError, match="model.fusion.layer: 8, but the checkpoint has 4 layers"):
        convert_scenic(DEV / "checkpoint", tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        convert_scenic(DEV / "checkpoint", tmp_path / "run", sets=["model.fusion.layer=2"])
    audio, rgb = str(caught.value).splitlines()
    assert (
        "modalities.audio: its sizes give 50 x 8 = 400 tokens, but the checkpoint has position embeddings for 6"
        in audio
    )
    assert "--set modalities.audio.seconds=0.32 --set modalities.audio.mel_bins=48" in audio
    assert "modalities.rgb: its sizes give 16 x 14 x 14 = 3136 tokens" in rgb
    # whatever is proposed is taken
    first = [line.split("These would fit: ")[1].split("; ")[0].replace("--set ", "").split() for line in (audio, rgb)]
    experiment, _ = convert_scenic(
        DEV / "checkpoint", tmp_path / "run", sets=["model.fusion.layer=2", *first[0], *first[1]]
    )
    assert experiment.modalities["rgb"].frames < 32


def test_sizes_near_the_given_ones_are_proposed_first(tmp_path):
    sets = [*DEV_SIZES, "modalities.rgb.size=32"]
    with pytest.raises(ConfigError, match=r"These would fit: --set modalities.rgb.size=\[32,48\]; .*rgb.frames=6;"):
        convert_scenic(DEV / "checkpoint", tmp_path / "run", sets=sets)
    assert not (tmp_path / "run").exists()


def replaced(params, **changes):
    """Without an array where the change is None; names with double underscores for slashes."""
    changes = {path.replace("__", "/"): shape for path, shape in changes.items()}
    kept = {path: array for path, array in params.items() if changes.get(path, 1) is not None}
    return kept | {path: np.ones(shape, np.float32) for path, shape in changes.items() if shape is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"Transformer__encoderblock_1__LayerNorm_0__scale": None},
            "missing Transformer/encoderblock_1/LayerNorm_0/scale",
        ),
        ({"cls": None, "extra": 3}, "missing cls; unknown extra"),
        ({"embedding__bias": None}, "missing embedding/bias"),
        ({"output_projection__bias": None}, "output_projection/bias is missing"),
        ({"embedding__kernel": (3, 4)}, r"embedding/kernel is \[3, 4\]"),
        (
            {"Transformer__encoderblock_0__LayerNorm_0__scale": 31},
            r"Transformer/encoderblock_0: LayerNorm_0/scale is \[31\], expected \[32\]",
        ),
        (
            {"embedding__kernel": None, "embedding_spectrogram__kernel": None},
            "there is none of embedding_spectrogram/kernel, embedding/kernel; found Transformer",
        ),
    ],
)
def test_missing_and_unknown_arrays_are_listed_and_nothing_is_written(tmp_path, changes, message):
    params = replaced(golden("a").params, **changes)
    with pytest.raises(DataError, match=message) as caught:
        convert_scenic(checkpoint(tmp_path, params), tmp_path / "run", sets=DEV_SIZES)
    assert "checkpoint_7" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_truncated_file_and_a_part_of_a_model(tmp_path):
    whole = (DEV / "checkpoint" / "checkpoint_15900").read_bytes()
    (tmp_path / "checkpoint_1").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        convert_scenic(tmp_path / "checkpoint_1", tmp_path / "run")
    with pytest.raises(DataError, match="checkpoint_7: no MBT: "):
        convert_scenic(DEV / "checkpoint_chunked", tmp_path / "run")
    with pytest.raises(DataError, match="no such file"):
        convert_scenic(tmp_path / "nowhere", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty; choose another --out"):
        convert_scenic(DEV / "checkpoint", tmp_path / "run")


@pytest.mark.parametrize("classifier", ["gmp", "gsp", "0"])
def test_other_pooling_is_refused(classifier):
    given = golden("b_vanilla")
    with pytest.raises(ConfigError, match=f"classifier '{classifier}': .* expected token or gap"):
        load_scenic_params(given.params, given.config | {"classifier": classifier}, given.shapes)


def test_unknown_modality():
    given = golden("a")
    with pytest.raises(ConfigError, match="unknown modality 'depth'"):
        load_scenic_params(given.params, given.config | {"modality_fusion": ["rgb", "depth"]}, given.shapes)


def test_inputs_of_another_size():
    given = golden("a")
    with pytest.raises(ConfigError, match="modalities.audio: its sizes give 3 x 3 = 9 tokens"):
        load_scenic_params(given.params, given.config, given.shapes | {"spectrogram": [2, 48, 48, 3]})


# ---- labels


def labels(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    convert_scenic(DEV / "checkpoint", tmp_path / "run", labels=tmp_path / "labels.csv", sets=DEV_SIZES)
    return MBT.from_pretrained(tmp_path / "run").classes["label"]


def test_labels_one_a_line(tmp_path):
    assert labels(tmp_path, "a\nb c\nd, e\nf\ng\nh\ni\n") == ["a", "b c", "d, e", "f", "g", "h", "i"]


def test_audioset_s_labels_as_they_are(tmp_path):
    rows = [f'{i},/m/{i:03d},"Name {i}, or so"' for i in (2, 0, 1, 3, 4, 6, 5)]
    found = labels(tmp_path, "\n".join(["index,mid,display_name", *rows]))
    assert found == [f"Name {i}, or so" for i in range(7)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", "2 names, but the checkpoint has 7 classes"),
        ("a\n" * 7, "the class 'a' is there twice"),
        ("index,mid,display_name\nx,y,z\n", "index being a number"),
        ("", "0 names"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        labels(tmp_path, text)
    assert not (tmp_path / "run").exists()


# ---- back and forth


@pytest.mark.parametrize("name", ["a", "b", "c", "f", "h", "i", "b_vanilla"])
def test_a_model_written_in_the_reference_s_form_is_what_it_was(name):
    given = golden(name)
    back = to_scenic(given.model())
    assert back.keys() == given.params.keys()
    for path, array in given.params.items():
        np.testing.assert_array_equal(back[path], array, err_msg=path)


RELEASED_INPUTS = {"rgb": [1, 32, 224, 224, 3], "spectrogram": [1, 800, 128, 3]}


def released(model):
    """The reference's configuration."""
    geometry = model.backbone
    size = {"hidden_size": geometry.dim, "num_heads": geometry.heads, "mlp_dim": geometry.mlp_width}
    return size | {
        "num_layers": geometry.depth,
        "num_classes": 527,
        "n_bottlenecks": 4,
        "patches": {"size": [16, 16, 2]},
        "modality_fusion": ["spectrogram", "rgb"],
        "use_bottleneck": True,
        "share_encoder": False,
        "classifier": "gap",
        "representation_size": None,
        "temporal_encoding_config": {"method": "3d_conv"},
    }


def round_trip(tmp_path, config):
    torch.manual_seed(0)
    model = randomise(MBT(config)).eval()
    params = to_scenic(model)
    momentum = {path: np.zeros_like(array) for path, array in params.items()}
    write_params(tmp_path / "checkpoint_15900", params, momentum, 15900)
    assert {path: array.shape for path, array in params.items()} == param_shapes(released(model), RELEASED_INPUTS)
    del params, momentum
    inputs = {"rgb": torch.randn(1, 3, 32, 224, 224), "audio": torch.randn(1, 1, 800, 128)}
    with torch.no_grad():
        expected = model(inputs).logits
    start = time.monotonic()
    convert_scenic(tmp_path / "checkpoint_15900", tmp_path / "run")
    seconds = time.monotonic() - start
    with torch.no_grad():
        torch.testing.assert_close(
            MBT.from_pretrained(tmp_path / "run").eval()(inputs).logits, expected, rtol=0, atol=1e-5
        )
    return seconds


def test_a_small_model_of_the_released_form_keeps_its_logits(tmp_path):
    round_trip(tmp_path, RELEASED | {"backbone": SMALL})


@pytest.mark.slow
def test_the_released_size_keeps_its_logits(tmp_path):
    assert round_trip(tmp_path, RELEASED) < 60


# ---- the command


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command(tmp_path):
    result = invoke("convert", "scenic", DEV / "checkpoint", "--out", tmp_path / "run", "--set", "model.fusion.layer=9")
    assert result.exit_code == 2
    assert "0 to 4" in result.stderr
    result = invoke(
        "convert",
        "scenic",
        DEV / "checkpoint",
        "--out",
        tmp_path / "run",
        *(part for s in DEV_SIZES for part in ("--set", s)),
    )
    assert result.exit_code == 0, result.stderr
    assert "dim 32, depth 4, heads 4" in result.stdout
    assert MBT.from_pretrained(tmp_path / "run").config.head.classes == 7


# ---- as starts


def start_from(source, **changes):
    """A model of another input than the source's."""
    modalities = {"rgb": {"frames": 2, "size": 64, "tubelet": 2}, "audio": {"seconds": 1, "mean": 0, "std": 1}}
    config = {"modalities": modalities, "head": {"classes": 3}, "fusion": {"layer": 2}, "pretrained": str(source)}
    return build_with_report(config | changes)


def test_a_checkpoint_of_the_released_form_is_a_start(tmp_path):
    source = randomise(MBT(RELEASED | {"backbone": SMALL}))
    path = checkpoint(tmp_path, to_scenic(source))
    model, report = start_from(path, backbone=SMALL, pool="mean")
    for name in ("rgb", "audio"):
        assert torch.equal(model.blocks[name]["8"].mlp.fc1.weight, source.blocks[name]["8"].mlp.fc1.weight)
    assert torch.equal(model.streams["rgb"].tokenizer.weight, source.streams["rgb"].tokenizer.weight)
    assert torch.equal(model.fusion.bottlenecks, source.fusion.bottlenecks)
    how = {start.part: start.how for start in report.starts}
    assert how["streams.rgb.pos_embed"] == "resampled from 16 x 14 x 14 to 1 x 4 x 4"
    assert how["head.classifiers._shared"] == "fresh"


@pytest.mark.parametrize("form", ["flax", "npz"])
def test_an_image_vit_of_flax_is_a_start(tmp_path, form):
    path = DEV / "init" / "source_vit_augreg.npz"
    flat = arrays_of(DEV / "init" / "source_vit.npz")
    if form == "flax":
        path = checkpoint(tmp_path, flat)
    geometry = {"dim": 32, "depth": 4, "heads": 4, "mlp": 64}
    model, report = start_from(path, backbone=geometry)
    query = flat["Transformer/encoderblock_3/MultiHeadDotProductAttention_0/query/kernel"]
    weight = model.blocks["audio"]["3"].attn.qkv.weight[:32]
    np.testing.assert_array_equal(weight.detach(), query.reshape(32, 32).T)
    np.testing.assert_array_equal(model.streams["audio"].cls_token.detach(), flat["cls"])
    how = {start.part: start.how for start in report.starts}
    assert how["blocks.audio"] == "activation was gelu_tanh, is gelu"
    assert how["streams.rgb.tokenizer"] == "kernel fitted from 16 x 16 to 2 x 16 x 16"
    with pytest.raises(ConfigError, match="another number of heads than the model: 4, expected 8"):
        start_from(path, backbone=geometry | {"heads": 8})
