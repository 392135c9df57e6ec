"""Our model against the reference's own numbers: outputs, blocks, gradients, checkpoints."""

import numpy as np
import pytest
import torch

from mbt_core import MBT
from mbt_core.model.loss import example_losses
from mbt_core.pretrained import convert_scenic, load_scenic_params
from mbt_core.pretrained.flax import write_params
from parity.goldens import CONFIGS, DEV, OURS, arrays_of, assert_near, concatenated, golden, weighted_mean

SIZES = [
    "model.fusion.layer=2",
    "modalities.rgb.frames=4",
    "modalities.rgb.size=[32,48]",
    "modalities.audio.seconds=0.32",
    "modalities.audio.mel_bins=48",
]


@pytest.mark.parametrize("name", CONFIGS)
def test_evaluation(name):
    given = golden(name)
    with torch.no_grad():
        prediction = given.model().eval()(given.inputs())
    assert_near(prediction.logits, given.arrays["logits"])
    assert_near(concatenated(prediction.tokens, given.order), given.arrays["tokens"])
    if given.config["classifier"] == "gap":
        assert prediction.modality_logits == {}
        assert_near(prediction.embedding, given.arrays["pre_logits"])
    for modality in given.order if given.config["classifier"] == "token" else ():
        assert_near(prediction.modality_embeddings[OURS[modality]], given.arrays[f"pre_logits/{modality}"])


@pytest.mark.parametrize("name", CONFIGS)
def test_training(name):
    given = golden(name)
    prediction = given.model().train()(given.inputs())
    if given.config["classifier"] == "gap":
        assert_near(prediction.logits, given.arrays["train_logits"])
    for modality in given.order if given.config["classifier"] == "token" else ():
        assert_near(prediction.modality_logits[OURS[modality]], given.arrays[f"train_logits/{modality}"])


def test_every_block():
    given, expected = golden("a"), arrays_of(DEV / "a_intermediates.npz")
    model = given.model().eval()
    with torch.no_grad():
        embedded = model.embed(given.inputs())
        records = model(given.inputs(), return_intermediates=True).intermediates
    outputs = {}
    hooks = [
        block.register_forward_hook(lambda _, __, y, key=(int(layer), name): outputs.__setitem__(key, y))
        for name, blocks in model.blocks.items()
        for layer, block in blocks.items()
    ]
    with torch.no_grad():
        model(given.inputs())
    for hook in hooks:
        hook.remove()
    for theirs, ours in OURS.items():
        suffix = "" if theirs == "rgb" else "_spectrogram"
        assert_near(embedded[ours].x, expected[f"Transformer/posembed_input{suffix}"])
        with torch.no_grad():
            patches = model.streams[ours].tokenizer(given.inputs()[ours]).x
        assert_near(patches, expected[f"embedding{suffix}"].reshape(patches.shape))
        for layer, record in enumerate(records):
            block = expected[f"Transformer/encoderblock_{layer}{suffix}"]
            count = record.tokens[ours].shape[1]
            assert_near(outputs[layer, ours], block)
            assert_near(record.tokens[ours], block[:, :count])
            assert block.shape[1] == count + (5 if layer >= 2 else 0)
    last = [expected[f"Transformer/encoderblock_3{s}"][:, -5:] for s in ("", "_spectrogram")]
    assert_near(records[-1].bottlenecks, np.mean(last, 0))


@pytest.mark.parametrize("name", ["a", "b"])
def test_gradients_of_every_parameter(name):
    given, grads = golden(name), arrays_of(DEV / f"{name}_grads.npz")
    model = given.model().train()
    labels = {"label": torch.from_numpy(grads["labels"])}
    prediction = model(given.inputs())
    targets = dict.fromkeys(("", *OURS.values()), labels)
    losses = example_losses(prediction, targets, model.config.head)
    loss = weighted_mean(losses, torch.ones_like(losses))
    assert_near(loss, grads["loss"])
    loss.backward()
    expected = {path.removeprefix("grads/"): array for path, array in grads.items() if path.startswith("grads/")}
    assert expected.keys() == given.params.keys()
    # gradients have the layout of parameters
    theirs = dict(load_scenic_params(expected, given.config, given.shapes).named_parameters())
    largest = max(np.abs(array).max() for array in expected.values())
    for key, parameter in model.named_parameters():
        assert_near(parameter.grad, theirs[key].detach().numpy(), 1e-5 * max(1, largest))


def converted(tmp_path, path, *sets):
    convert_scenic(path, tmp_path / "run", sets=[*SIZES, *sets])
    return MBT.from_pretrained(tmp_path / "run").eval()


def test_a_checkpoint_keeps_its_logits(tmp_path):
    given = golden("a")
    model = converted(tmp_path, DEV / "checkpoint" / "checkpoint_15900", "modalities.audio.channels=3")
    with torch.no_grad():
        assert_near(model(given.inputs()).logits, given.arrays["logits"])


def test_a_pooled_checkpoint_keeps_its_logits(tmp_path):
    given = golden("b")
    write_params(tmp_path / "checkpoint_318", given.params)
    model = converted(tmp_path, tmp_path, "modalities.audio.channels=3")
    with torch.no_grad():
        assert_near(model(given.inputs()).logits, given.arrays["logits"])


def test_one_channel_is_the_tiled_three(tmp_path):
    given = golden("a")
    model = converted(tmp_path, DEV / "checkpoint")
    inputs = given.inputs()
    one = inputs["audio"][:, :1]
    with torch.no_grad():
        tiled = given.model().eval()(inputs | {"audio": one.expand(-1, 3, -1, -1)})
        folded = model(inputs | {"audio": one})
    assert_near(folded.logits, tiled.logits.numpy())
