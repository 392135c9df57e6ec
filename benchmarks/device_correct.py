"""The device against the CPU in double precision: models of every fusion strategy, preprocessors of every kind.

What is compared are norms of differences, of each tensor on its own: a wrong one does not hide behind large ones.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from sections import Report, Row
from step import Setting, add_size, make_inputs, mbt, settle_size
from torch import Tensor, nn

from mbt_core import MBT
from mbt_core.config import TrainConfig
from mbt_core.model.loss import example_losses
from mbt_core.plugins import registry
from mbt_core.testing.conformance.case import Case
from mbt_core.training.optimizer import make_optimizer

TOLERANCES = {
    "32": {"logits": 1e-4, "gradients": 2e-4, "weights": 2e-4},
    "bf16": {"logits": 0.03, "gradients": 0.1, "weights": 0.1},
}
"""Largest difference, of a tensor's norm. On a CPU, at MBT-B's width: 2e-6, and in bf16 0.013. TF32, which is off,
would be above the first ones: it rounds an eighth as much as bf16."""
PREPROCESSED = 1e-3
"""Largest difference of a value that a preprocessor gives, in standard deviations of its output."""
SMALLEST = 0.05
"""A tensor counts as at least this part of the typical norm: of some the exact value is 0, and all else is rounding."""
TINY = "--dim 32 --depth 3 --heads 2 --size 32 --seconds 0.64"
HALF = "--depth 6"
"""Half of MBT-B's layers: all of its shapes."""
SMALL_INPUTS = {"size": 32, "short_side": 48, "mel_bins": 32, "seconds": 1.0, "frames": 2}
AUGMENTED = {"scale_jitter": [0.9, 1.33], "colour_drop": 0.5, "time_masks": 2, "freq_masks": 2}
"""Settings of preprocessors that are off by default, of the kinds that have them."""
Named = dict[str, Tensor]


def size_of(arguments: str) -> argparse.Namespace:
    """The size of model and input that `benchmarks/step.py` would take from its command line."""
    parser = argparse.ArgumentParser()
    add_size(parser)
    return settle_size(parser.parse_args(arguments.split()))


def exact_products() -> None:
    """No TF32: single precision is single precision."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def moved(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Inputs on a device, floating-point ones in `dtype`."""
    if isinstance(tree, Tensor):
        return tree.to(device, dtype if tree.is_floating_point() else None)
    if isinstance(tree, Mapping):
        return {key: moved(value, device, dtype) for key, value in tree.items()}
    return None if tree is None else tuple(moved(value, device, dtype) for value in tree)


def outcome(model: MBT, inputs: Any, present: Any, device: torch.device, precision: str) -> dict[str, Named]:
    """What a training step makes of a copy of `model`: logits, gradients, and how far the weights move.

    Args:
        model: in double precision, on the CPU.
        inputs, present: of `MBT.forward`.
        device: where the copy computes.
        precision: ``64``, ``32``, or ``bf16`` by autocast.
    """
    dtype = torch.float64 if precision == "64" else torch.float32
    copied = copy.deepcopy(model).to(device, dtype).train()
    inputs, present = moved(inputs, device, dtype), moved(present, device, dtype)
    head = copied.config.head
    optimizer = make_optimizer(copied, TrainConfig(lr=1.0, warmup=0.0), device)
    before = {name: p.detach().clone() for name, p in copied.named_parameters()}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        prediction = copied(inputs, present)
        batch = len(prediction.embedding)
        targets = {task: torch.zeros(batch, n, device=device, dtype=dtype) for task, n in head.outputs.items()}
        loss = example_losses(prediction, dict.fromkeys([*copied.modalities, ""], targets), head, present).mean()
    loss.backward()
    gradients = {name: p.grad.cpu().double() for name, p in copied.named_parameters() if p.grad is not None}
    optimizer.step()
    logits = {"fused": prediction.logits, **prediction.modality_logits}
    return {
        "logits": {name: x.detach().cpu().double() for name, x in logits.items()},
        "gradients": gradients,
        "weights": {n: (p.detach() - before[n]).cpu().double() for n, p in copied.named_parameters() if n in gradients},
    }


def largest_difference(values: Named, expected: Named) -> float:
    """Of any tensor, as a part of its expected norm; infinite where one is missing or not finite."""
    if values.keys() != expected.keys():
        return float("inf")
    norms = {name: float(x.norm()) for name, x in expected.items()}
    typical = sum(norms.values()) / max(1, len(norms))
    parts = [float((values[n] - x).norm()) / max(norms[n], SMALLEST * typical, 1e-30) for n, x in expected.items()]
    worst = max(parts, default=float("inf"))
    return worst if all(part == part for part in parts) else float("inf")


def randomise(model: MBT) -> MBT:
    """In double precision, with a head that is not 0: else the layers below would have neither logits nor gradients."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.double()


def cases(stack: ExitStack, settings: Mapping[str, Any]) -> dict[str, Case]:
    """Every registered kind, with small real files, and those of `settings` that it has."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    made = {}
    for kind in sorted(registry().modalities):
        (folder / kind).mkdir()
        fields = registry().config_class(kind).model_fields
        made[kind] = Case(kind, {key: value for key, value in settings.items() if key in fields}, folder / kind)
    return made


def all_kinds(made: Mapping[str, Case], strategy: str, tiny: bool) -> tuple[MBT, Any, Any]:
    """A model of one stream a kind, inputs of three samples, and which of them are there: some are not."""
    dim = 32 if tiny else 192
    config = {
        "modalities": {kind: case.config for kind, case in made.items()},
        "backbone": {"dim": dim, "depth": 3, "heads": dim // 16 if tiny else 3},
        "fusion": {"strategy": strategy, "layer": 1},
        "head": {"classes": 7},
    }
    torch.manual_seed(0)
    model = MBT(config)
    inputs = {kind: case.inputs(case.samples) for kind, case in made.items()}
    present = {kind: torch.tensor([True, i % 2 == 0, i % 3 != 0]) for i, kind in enumerate(made)}
    return randomise(model), inputs, present


def strategies(options: Any, earlier: Sequence[Row], report: Report) -> None:
    """Logits, gradients and weights after a step of each fusion strategy: at MBT-B's shapes, all there; and with a
    stream of every kind, with padding and absent samples."""
    exact_products()
    device, size = torch.device(options.device), size_of(TINY if options.tiny else HALF)
    setting = Setting(torch.device("cpu"), "32", 2, False, "wall")
    torch.manual_seed(0)
    inputs = make_inputs(size, setting)
    with ExitStack() as stack:
        made = cases(stack, SMALL_INPUTS)
        for strategy in registry().fusions:
            torch.manual_seed(0)
            plain = randomise(mbt(size, inputs, setting, strategy).model)
            models = [(plain, inputs, None), all_kinds(made, strategy, options.tiny)]
            expected = [outcome(*model, torch.device("cpu"), "64") for model in models]
            for precision, allowed in TOLERANCES.items():
                found = [outcome(*model, device, precision) for model in models]
                worst = {
                    what: max(largest_difference(a[what], b[what]) for a, b in zip(found, expected, strict=True))
                    for what in found[0]
                }
                measured = ", ".join(f"{what} {value:.1e}" for what, value in worst.items())
                limit = f"at most {', '.join(f'{tolerance:g}' for tolerance in allowed.values())}"
                ok = all(worst[what] <= tolerance for what, tolerance in allowed.items())
                report(f"{strategy}, {precision}", measured, limit, ok, **worst)


def kinds(options: Any, earlier: Sequence[Row], report: Report) -> None:
    """Each kind's preprocessor on the device and on the CPU, of samples with and without augmentation."""
    exact_products()
    device = torch.device(options.device)
    with ExitStack() as stack:
        small = SMALL_INPUTS if options.tiny else {}
        for extra in ({}, {**AUGMENTED, "view": "spectrogram"}):
            for kind, case in cases(stack, {**extra, **small}).items():
                if extra and not case.settings.keys() & extra.keys() - small.keys():
                    continue
                samples = [case.read(number, seed) for number in range(3) for seed in (None, number)]
                batch, preprocess = case.modality.collate(samples), case.modality.preprocessor()
                with torch.no_grad():
                    expected = preprocess(copied_of(batch, torch.device("cpu")))
                    found = preprocess.to(device)(copied_of(batch, device))
                difference = largest_deviation(found, expected)
                name = f"{kind}, {', '.join(map(str, sorted(case.settings.keys() - small.keys())))}".rstrip(", ")
                ok, limit = difference <= PREPROCESSED, f"at most {PREPROCESSED:g} deviations"
                report(name[:38], f"largest difference {difference:.1e}", limit, ok, difference=difference)


def copied_of(batch: Any, device: torch.device) -> Any:
    """A batch of one kind's samples on a device, in memory of its own."""
    return {key: x.to(device, copy=True) for key, x in batch.items()} if isinstance(batch, dict) else batch.to(device)


def largest_deviation(found: Any, expected: Any) -> float:
    """Of any value, in standard deviations of what is expected; ids and masks must be equal."""
    pairs = zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, expected)), strict=True)
    worst = 0.0
    for a, b in pairs:
        if a is None or not b.is_floating_point():
            same = (a is None and b is None) or torch.equal(a.cpu(), b)
            worst = worst if same else float("inf")
        else:
            difference = float((a.cpu().float() - b.float()).abs().max()) / max(float(b.float().std()), 1e-6)
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst
