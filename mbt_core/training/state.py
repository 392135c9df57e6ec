"""The saved state of a run: one file, replaced atomically, from which an interrupted run goes on to the same weights.

No random state is kept: all randomness is keyed by seed, epoch, example, step and rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mbt_core.config import MBTConfig, TrainConfig
from mbt_core.distributed.sharding import like, whole
from mbt_core.errors import ConfigError, DataError
from mbt_core.io.files import read_metadata, read_safetensors, read_shapes, write_safetensors
from mbt_core.model.mbt import check_sizes
from mbt_core.training.optimizer import named_state

FILE = "state.safetensors"


@dataclass
class Progress:
    """How far a run is.

    Args:
        step: completed optimiser steps.
        evaluated: the step of the last evaluation; -1: none yet.
        best: best value of the monitored metric, negated if lower is better; None: none yet.
        best_step: of the weights that are taken, see ``train.select``.
        stale: evaluations since the best value was reached.
        loss: sum of the losses since the last logged step.
        failed: clips that could not be read: id -> message.
        finished: training is over, and so is the final evaluation.
        results: metrics of the end.
        classes: task -> names of its classes in order, that the weights know.
        plan: what the configuration says about its length, see `configured_plan`; empty: not known.
        best_loss: the loss of the weights that are taken, which decides among equal ones; None: none yet.
    """

    step: int = 0
    evaluated: int = -1
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    loss: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    results: dict[str, float] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    best_loss: float | None = None

    def check_plan(self, config: TrainConfig, source: Path) -> None:
        """Raises `ConfigError` unless `config`, of the file `source`, plans the training that this is of."""
        now = configured_plan(config)
        changed = [f"train.{key}={now.get(key)} (was {old})" for key, old in self.plan.items() if now.get(key) != old]
        if changed:
            raise ConfigError(
                f"{source}: {', '.join(changed)}: a run goes on as it was planned. Put that back, or start another run "
                f"from these weights: --set model.pretrained={source.parent}"
            )


def configured_plan(config: TrainConfig) -> dict[str, Any]:
    """What decides length and order of a training and its best weights, as it was configured."""
    return {key: getattr(config, key) for key in ("steps", "epochs", "batch_size", "monitor", "select")}


def save_state(
    folder: Path, model_state: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor], progress: Progress
) -> None:
    """Writes ``folder/state.safetensors``. Raises `MBTError` if it cannot; the old one is then untouched."""
    tensors = {f"model.{k}": v for k, v in model_state.items()}
    tensors |= {f"optimizer.{k}": v for k, v in optimizer_state.items()}
    write_safetensors(folder / FILE, tensors, {"progress": json.dumps(asdict(progress))})


def check_state(folder: Path, config: MBTConfig) -> None:
    """Raises `DataError` if there is a state of a model of other sizes; a damaged one is found by `load_state`."""
    path = folder / FILE
    try:
        shapes = read_shapes(path, "model.")
    except DataError:
        return
    if shapes:
        check_sizes(config, shapes, str(path))


def read_progress(folder: Path) -> Progress | None:
    """How far a run is, without its tensors; None: it has no state yet, or a damaged one."""
    try:
        return _progress(read_metadata(folder / FILE))
    except DataError:
        return None


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Progress]:
    """(model, optimiser, progress) as saved. Raises `DataError` for a damaged file."""
    path = folder / FILE
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    try:
        progress = _progress(read_metadata(path))
        for key, tensor in read_safetensors(path).items():
            group, _, name = key.partition(".")
            parts[group][name] = tensor
    except (KeyError, DataError) as error:
        if not path.exists():
            raise
        why = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: not a saved state, or a damaged one ({why}); delete it to start anew") from None
    return parts["model"], parts["optimizer"], progress


def _progress(metadata: Mapping[str, str]) -> Progress:
    try:
        return Progress(**json.loads(metadata["progress"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"its progress cannot be read ({error})") from None


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's buffers under ``PARAMETER/BUFFER``, whatever its groups are."""
    found = {}
    for name, parameter in named_state(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{name}/{key}"] = whole(value)
    return found


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` took."""
    by_name: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, buffer = key.rpartition("/")
        by_name.setdefault(name, {})[buffer] = value
    # AdamW keeps its count on the CPU unless it is fused
    fused = optimizer.param_groups[0].get("fused")
    for name, parameter in named_state(model, optimizer):
        if name in by_name:
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" and not fused else like(value, parameter)
                for key, value in by_name[name].items()
            }
