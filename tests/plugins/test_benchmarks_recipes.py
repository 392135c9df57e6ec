"""Every registered recipe is loaded, built tiny and stepped; the benchmarks' hold the published settings."""

import re

import numpy as np
import pytest
import torch
import yaml

from mbt_core import MBT, registry
from mbt_core.config import Experiment
from mbt_core.config.recipes import assemble, read_recipe
from mbt_core.config.settings import to_yaml
from mbt_core.data.collate import Batch, Collate, Preprocess
from mbt_core.data.dataset import Example
from mbt_core.errors import ConfigError
from mbt_core.model.loss import dense_targets, example_losses
from mbt_core.training.mixup import Mixup
from mbt_core.training.optimizer import make_optimizer

PAPER = ("audioset-mini", "audioset-500k", "vggsound", "epic-kitchens-100")
TINY = (
    "model.backbone={dim: 16, depth: 3, heads: 2}",
    "model.pretrained=null",
    "model.fusion.layer=1",
    "modalities.rgb.size=32",
    "modalities.rgb.short_side=null",
)


def tiny(name, modalities):
    sets = [s for s in TINY if "rgb" not in s or "rgb" in modalities]
    recipe = read_recipe(name).tree["modalities"]
    if "rgb" in modalities:
        frames = "4" if recipe["rgb"].get("tubelet", 1) == 2 else "2"
        sets.append(f"modalities.rgb.frames={frames}")
        if recipe["rgb"].get("seconds") == "auto":
            sets.append("modalities.rgb.seconds=1.0")
    if "audio" in modalities:
        sets += ["modalities.audio.seconds=0.64", "modalities.audio.mean=-5", "modalities.audio.std=4"]
    if "rgb" in modalities and recipe["rgb"].get("patch") == "auto":
        sets.append("modalities.rgb.patch=16")
    if "audio" in modalities and recipe["audio"].get("patch") == "auto":
        sets.append("modalities.audio.patch=[16, 16]")
    if not {"classes", "tasks"} & read_recipe(name).tree["model"].get("head", {}).keys():  # filled from the data
        sets.append("model.head.classes=3")
    return assemble(modalities, name, None, sets)[0]


def fake_batch(modalities, head, count=4):
    """Samples of noise with the shapes and types of `Modality.blank`."""
    generator = torch.Generator().manual_seed(0)

    def noise(x):
        if x.dtype == torch.uint8:
            return torch.randint(0, 256, x.shape, dtype=x.dtype, generator=generator)
        return torch.randint(-9999, 9999, x.shape, dtype=x.dtype, generator=generator) if x.dim() == 1 else x

    examples = []
    for i in range(count):
        samples = {name: {k: noise(x) for k, x in m.blank().items()} for name, m in modalities.items()}
        targets = {
            task: torch.tensor(i % C) if head.kind_of(task) == "single" else torch.eye(C)[i % C]
            for task, C in head.outputs.items()
        }
        examples.append([Example(i, 0, samples, dict.fromkeys(modalities, True), targets, 1.0)])
    batch = Collate(modalities)(examples)
    assert isinstance(batch, Batch)
    return batch


def step(experiment):
    """One optimiser step as the trainer makes it; returns the loss."""
    torch.manual_seed(0)
    config = experiment.train
    model = MBT(experiment.mbt_config()).train()
    head = model.config.head
    optimizer = make_optimizer(model, config, torch.device("cpu"))
    batch = fake_batch(model.modalities, head)
    tokens = model.embed(Preprocess(model.modalities)(batch))
    mixup = None
    if config.mixup:
        mixup = Mixup.draw(np.random.default_rng(0), config.mixup, list(model.modalities), config.mixup_per_modality)
        tokens = mixup.tokens(tokens, None)
    targets = dense_targets(batch.targets, head)
    sources = list(model.modalities)
    by_source = mixup.targets(targets, sources, None) if mixup else dict.fromkeys([*sources, ""], targets)
    prediction = model.encode(tokens, None)
    loss = example_losses(prediction, by_source, head, None, config.label_smoothing).mean()
    loss.backward()
    if config.clip_grad:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    return loss.item()


CASES = [
    (name, modalities)
    for name in registry().recipes
    if {"rgb", "audio"} >= set(read_recipe(name).tree.get("modalities", ()))
    for modalities in ("rgb", "audio", "rgb,audio")
]


@pytest.mark.parametrize(("name", "modalities"), CASES)
def test_every_recipe_makes_a_step(name, modalities):
    assert 0 < step(tiny(name, modalities)) < 1000


@pytest.mark.parametrize("name", sorted(registry().recipes))
def test_every_recipe_says_how_what_it_costs_and_what_it_gives(name):
    header = read_recipe(name).header
    for part in ("Command:", "Cost:", "Score:"):
        assert re.search(rf"^{part} +\S", header, re.MULTILINE), f"{name} has no {part}"


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings(name):
    experiment = assemble(None, name)[0]
    rgb, audio = experiment.modalities["rgb"], experiment.modalities["audio"]
    model, train = experiment.model, experiment.train
    epic = name == "epic-kitchens-100"
    assert (rgb.frames, rgb.span) == ((32, 1.28) if epic else (8, 8.0))
    assert (rgb.size, rgb.patch, rgb.tubelet) == (224, 16, 1)
    assert (rgb.random_crop, rgb.flip, rgb.colour_jitter, rgb.colour_drop, rgb.scale_jitter) == (
        True,
        0.5,
        0.8,
        0,
        None,
    )
    assert (audio.rate, audio.mel_bins, audio.patch) == (16000, 128, (16, 16))
    assert audio.frames == (128 if epic else 800)
    assert (audio.time_masks, audio.time_mask_frames, audio.freq_masks, audio.freq_mask_bins) == (1, 192, 1, 48)
    assert (model.backbone, model.pool, model.shared_encoder) == ("vit_base_patch16_224", "cls", False)
    assert (model.fusion.strategy, model.fusion.layer, model.fusion.bottlenecks) == ("bottleneck", 8, 4)
    assert (model.drop_path, model.drop_path_rescale, model.dropout, model.attention_dropout) == (0.3, False, 0, 0)
    assert (model.head.loss, model.head.shared, train.clip_grad, train.precision) == ("per-modality", True, 1, "32")
    assert (train.optimizer, train.momentum, train.lr, train.batch_size, train.epochs) == ("sgd", 0.9, 0.5, 64, 50)
    assert train.warmup * train.epochs == pytest.approx(2.5)
    assert (train.mixup, train.mixup_per_modality, train.label_smoothing, train.weight_decay) == (0.3, False, 0, 0)
    assert (train.modality_dropout, train.layer_decay, train.tune, train.freeze) == (0, 1, "all", [])
    assert (experiment.evaluate.views, experiment.evaluate.average) == (4, "logits")
    tasks = {"verb": 97, "noun": 300} if epic else {"label": 309 if name == "vggsound" else 527}
    assert model.head.outputs == tasks
    kind = "multilabel" if name.startswith("audioset") else "single"
    assert {model.head.kind_of(task) for task in tasks} == {kind}
    assert model.head.joint == ({"action": ["verb", "noun"]} if epic else {})


def test_the_released_settings():
    experiment = assemble(None, "audioset-mini-reference")[0]
    rgb, audio = experiment.modalities["rgb"], experiment.modalities["audio"]
    model, train = experiment.model, experiment.train
    assert (rgb.frames, rgb.stride, rgb.rate, rgb.tubelet, rgb.scaled_side) == (32, 2, 25, 2, 256)
    assert (rgb.scale_jitter, rgb.colour_jitter, rgb.colour_drop, rgb.mean, rgb.std) == (
        (0.9, 1.33),
        0.8,
        0.1,
        0.5,
        0.5,
    )
    assert (audio.seconds, audio.channels, audio.mean, audio.std) == (8, 3, 1.102, 2.762)
    assert (audio.time_masks, audio.time_mask_frames, audio.freq_masks, audio.freq_mask_bins) == (4, 48, 1, 48)
    assert (model.pool, model.head.loss, model.drop_path, model.drop_path_rescale) == (
        "mean-joint",
        "fused",
        0.3,
        False,
    )
    assert (model.backbone.act, model.fusion.bottleneck_init, model.fusion.bottlenecks) == ("gelu_tanh", "positions", 4)
    assert (model.fusion.strategy, model.fusion.layer, model.shared_encoder) == ("bottleneck", 8, False)
    assert (model.dropout, model.attention_dropout, train.weight_decay, train.precision) == (0, 0, 0, "32")
    assert (train.mixup, train.mixup_per_modality, train.label_smoothing) == (0.5, False, 0.3)
    assert (train.optimizer, train.momentum, train.lr, train.batch_size) == ("sgd", 0.9, 0.5, 64)
    assert (train.clip_grad, train.epochs, train.warmup * train.epochs) == (1.0, 50, pytest.approx(2.5))
    assert experiment.evaluate.views == 4


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        ("{action: [verb]}", r"model.head.joint.action: expected two or more different tasks, got \['verb'\]"),
        ("{action: [verb, nuon]}", "model.head.joint.action: unknown task 'nuon'. Did you mean 'noun'"),
        ("{verb: [verb, noun]}", "model.head.joint.verb: a task has that name already"),
    ],
)
def test_wrong_joint_metrics_are_refused(joint, message):
    with pytest.raises(ConfigError, match=message):
        assemble(None, "epic-kitchens-100", None, [f"model.head.joint={joint}"])
    with pytest.raises(ConfigError, match="task 'verb' is of kind 'multilabel'; expected single ones"):
        assemble(None, "epic-kitchens-100", None, ["model.head.task=multilabel"])


def test_recipes_survive_being_saved():
    for name in (*PAPER, "audioset-mini-reference"):
        experiment = assemble(None, name)[0]
        assert Experiment.model_validate(yaml.safe_load(to_yaml(experiment))) == experiment
