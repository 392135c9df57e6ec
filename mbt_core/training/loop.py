"""The training loop.

All randomness of a step is keyed by (seed, step, rank), of an example by (seed, epoch, example): nothing of it needs
saving, and results depend neither on the number of reading processes nor on interruptions.
"""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from mbt_core.config import Experiment, TrainConfig
from mbt_core.data.collate import Batch, Copier
from mbt_core.data.missing import Losses
from mbt_core.distributed.processes import Team
from mbt_core.distributed.sharding import load_whole, whole_model, whole_state
from mbt_core.errors import ConfigError, DataError, MBTError, MBTWarning
from mbt_core.evaluate.metrics import base_name, lower_is_better
from mbt_core.io.files import read_safetensors
from mbt_core.model import MBT
from mbt_core.model.loss import dense_targets, example_losses
from mbt_core.training.class_weights import NO_WEIGHTS, ClassWeights
from mbt_core.training.events import Listener
from mbt_core.training.folder import RunFolder
from mbt_core.training.mixup import Mixup
from mbt_core.training.optimizer import lr_factor, make_optimizer, set_lr, set_training
from mbt_core.training.state import (
    Progress,
    configured_plan,
    load_optimizer,
    load_state,
    optimizer_tensors,
    save_state,
)

TWICE = 2.0
"""Seconds within which a second signal is the same wish: a launcher passes on what the terminal has sent already."""


SHARES_OF_ROWS = ("top1", "top5")
"""Metrics that are a share of the evaluated rows, so that their standard errors are known."""

HANG_UP = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
"""What a terminal sends when it is closed, where there is such a signal."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved. All its processes raise it at the same step.

    Args:
        signal_number: what asked.
    """

    in_good_order = True

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


@dataclass
class Plan:
    """What the configuration's ``auto`` fields came to.

    Args:
        steps: optimiser steps in all.
        batch_size: examples a step over all devices.
        eval_every: steps between evaluations.
        monitor: the metric that chooses the best weights; None: the last weights are the best.
        val_rows: how many the split has that it is measured on.
    """

    steps: int
    batch_size: int
    eval_every: int
    monitor: str | None
    val_rows: int = 0


def make_plan(config: TrainConfig, rows: int, batch_size: int, monitor: str | None) -> Plan:
    """Resolves steps and evaluations.

    ``auto`` steps: 36,000 examples, but at least 10 and at most 300 passes over the rows.
    """
    if isinstance(config.epochs, (int, float)):
        steps = math.ceil(config.epochs * rows / batch_size)
    elif isinstance(config.steps, int):
        steps = config.steps
    else:
        passes = min(300.0, max(10.0, 36_000 / rows))
        steps = math.ceil(passes * rows / batch_size)
    epoch = max(1, round(rows / batch_size))
    every = config.eval_every if isinstance(config.eval_every, int) else max(epoch, math.ceil(steps / 20))
    return Plan(max(1, steps), batch_size, every, monitor)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the processor's generator and the device's, as `torch.manual_seed` does; that looks through all kinds of
    devices in every step, and walks the stack for those that are not in use."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def gain(monitor: str, metrics: Mapping[str, float]) -> float | None:
    """The monitored metric, negated if lower is better; None where val says nothing (no positives, one example)."""
    value = metrics.get(monitor, math.nan)
    if math.isnan(value):
        return None
    return -value if lower_is_better(monitor) else value


def standard_error(share: float, rows: int) -> float:
    """Of a share of `rows` examples; above 0 for a share of 0 or 1, too (Agresti and Coull, 1998)."""
    adjusted = (share * rows + 2) / (rows + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (rows + 4))


class Trainer:
    """Trains a model from its batches, saves its state, keeps the best weights.

    Args:
        team: this process among those of the run, with its device and precision.
        experiment: the resolved experiment.
        folder: of the run.
        model: fresh, or with the weights it starts from; on the CPU.
        preprocess: batch -> the model's inputs.
        plan: steps and evaluations.
        listener: of the first process.
        validate: evaluates on val and returns its metrics; None: no val split. Called with a check that raises
            `Interrupted`.
        name_of: row -> its id.
        losses: counts the clips of the train split that cannot be read.
        start: the layer that the batches' kept tokens enter; None: they are clips.
        class_weights: of the loss.
    """

    def __init__(
        self,
        team: Team,
        experiment: Experiment,
        folder: RunFolder,
        model: MBT,
        preprocess: nn.Module,
        plan: Plan,
        listener: Listener,
        validate: Callable[[Callable[..., None]], dict[str, float]] | None,
        name_of: Callable[[int], str],
        losses: Losses,
        start: int | None = None,
        class_weights: ClassWeights = NO_WEIGHTS,
    ) -> None:
        fabric = team.fabric
        self.team, self.fabric, self.experiment, self.folder, self.plan = team, fabric, experiment, folder, plan
        self.config, self.listener, self.validate = experiment.train, listener, validate
        self.name_of, self.losses, self.start, self.class_weights = name_of, losses, start, class_weights
        self.model, self.preprocess = model, preprocess.to(fabric.device)
        self.wrapped = fabric.setup_module(model)
        # of the parameters as they are now: they may be shared out
        self.optimizer = fabric.setup_optimizers(make_optimizer(model, self.config, fabric.device))
        self.progress = Progress(classes=model.classes, plan=configured_plan(self.config))
        self._signal: int | None = None
        self._saved_at = time.monotonic()
        self._loss = torch.zeros((), device=fabric.device)
        self._seen = 0
        self._ready = False

    def resume(self) -> None:
        """Puts back the state that was saved last.

        Raises:
            ConfigError: it is further than the plan's end.
        """
        weights, optimizer, progress = load_state(self.folder.state)
        if progress.step > self.plan.steps:
            raise ConfigError(
                f"{self.folder.path} is at step {progress.step} already, of {self.plan.steps} that its data and "
                f"{self.folder.config_file} come to now; put them back as they were"
            )
        self.progress = replace(progress, classes=self.progress.classes, plan=self.progress.plan)
        load_whole(self.model, weights, str(self.folder.state))
        load_optimizer(self.model, self.optimizer, optimizer)
        self._loss.fill_(self.progress.loss)

    def fit(self, loader: Iterable[Batch]) -> Progress:
        """Trains from `progress.step` to the plan's end.

        Raises:
            Interrupted: after SIGINT, SIGTERM or SIGHUP; the state is saved.
            MBTError: the loss is not finite, or memory is out.
        """
        batches, copy = iter(loader), Copier(self.fabric.device)
        # reading ends with the training, also where an error keeps what is here
        with self._signals(), closing(batches) if isinstance(batches, Generator) else nullcontext():
            self._tick = time.monotonic()
            self._evaluate_if_due()  # where the interruption came in the middle of an evaluation
            while self.progress.step < self.plan.steps and not self._stop_early():
                batch = next(batches)
                weight, class_sums, save = self._agree(batch)
                self.train_step(copy(batch), weight, class_sums)
                self.progress.step += 1
                self._note(batch)
                if self._evaluate_if_due() or save:
                    self.save()
        return self.progress

    def _agree(self, batch: Batch) -> tuple[float, list[float], bool]:
        """What a step takes from all processes, in one exchange.

        Returns:
            The sum of the global batch's weights, and those of `ClassWeights.sums`; whether to save after the step.

        Raises:
            Interrupted: if one of them was asked to stop.
            DataError: if too many clips cannot be read.
        """
        late = self.team.is_first and time.monotonic() - self._saved_at > self.config.save_every
        mine = float(batch.weight.sum()), len(batch.errors), self._signal or 0, late
        weight, failed, asked, save, *class_sums = self.team.sum(*mine, *self.class_weights.sums(batch))
        if asked:
            self._interrupt()
        if failed:
            self._lose([error for part in self.team.gather_everywhere(batch.errors) for error in part])
        return weight, class_sums, bool(save)

    def _lose(self, errors: list[tuple[int, str]]) -> None:
        self.count(errors)
        try:
            self.losses.add(errors)
        except DataError:
            if self.team.is_first:
                self.folder.write_bad_clips(self.progress.failed)
            raise

    def train_step(self, batch: Batch, weight: float, class_sums: Sequence[float] = ()) -> None:
        """One optimiser step: forward and backward of each part of the batch, clipping, update.

        Args:
            batch: this process's part of the global batch, on its device.
            weight: sum of the weights of the global batch.
            class_sums: see `ClassWeights.sums`, of the global batch.
        """
        step, config = self.progress.step, self.config
        seed = np.random.SeedSequence((config.seed, step, self.fabric.global_rank))
        seed_generators(int(seed.generate_state(1, np.uint64)[0]) >> 1, self.fabric.device)
        rng = np.random.default_rng(seed)
        if not (self._ready and self.model.training):  # it goes through all modules
            set_training(self.wrapped)
            self._ready = True
        set_lr(self.optimizer, config.lr * lr_factor(step, self.plan.steps, config.warmup))
        class_weights = self.class_weights.of_step(weight, class_sums)
        # gradients are averaged over the processes: so every example weighs the same, on whichever it is
        weight /= self.team.world
        parts = batch.split(config.accumulate)
        for number, part in enumerate(parts):
            with self.fabric.no_backward_sync(self.wrapped, enabled=number + 1 < len(parts)):
                loss = self._loss_sum(part, rng, class_weights) / (weight + 1e-8)
                self.fabric.backward(loss)
            self._loss += loss.detach()
        if config.clip_grad is not None:
            self.fabric.clip_gradients(
                self.wrapped, self.optimizer, max_norm=config.clip_grad, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _loss_sum(self, batch: Batch, rng: np.random.Generator, class_weights: Mapping[str, Tensor]) -> Tensor:
        """Sum over the examples of weight times loss."""
        config, head = self.config, self.model.config.head
        present = None if batch.complete else batch.present
        names = list(self.model.modalities)
        dense = dense_targets(batch.targets, head)
        with torch.no_grad():
            inputs = self.preprocess(batch)
        if config.mixup > 0:
            mixup = Mixup.draw(rng, config.mixup, names, config.mixup_per_modality)
            targets = mixup.targets(dense, names, present)
            prediction = self.wrapped(inputs, present, transform=lambda tokens: mixup.tokens(tokens, present))
        else:
            targets = dict.fromkeys([*names, ""], dense)
            prediction = self.wrapped(inputs, present, start=self.start)
        loss_B = example_losses(prediction, targets, head, present, config.label_smoothing, class_weights)
        return (loss_B * batch.weight).sum()

    def count(self, errors: Iterable[tuple[int, str]]) -> None:
        """Notes clips that could not be read: (row, message)."""
        self.progress.failed |= {self.name_of(row): message for row, message in errors}

    def _note(self, batch: Batch) -> None:
        """Logs, and stops at a loss that is not finite."""
        self._seen += len(batch.index) * self.team.world
        step = self.progress.step
        if step % self.config.log_every and step != self.plan.steps:
            return
        loss = self._mean_loss() / ((step - 1) % self.config.log_every + 1)
        self._loss.zero_()
        if not math.isfinite(loss):
            raise MBTError(
                f"the loss is {loss} at step {step}: start again with a lower train.lr (it was {self.config.lr:g}), "
                "or with train.clip_grad=1"
            )
        now = time.monotonic()
        speed = self._seen / (now - self._tick)
        self._seen, self._tick = 0, now
        rate = self.config.lr * lr_factor(step - 1, self.plan.steps, self.config.warmup)
        self.listener.step(step, {"loss": loss, "lr": rate, "clips_per_second": speed})

    def _evaluate_if_due(self) -> bool:
        progress, step = self.progress, self.progress.step
        due = step > 0 and (step == self.plan.steps or step % self.plan.eval_every == 0)
        if not due or progress.evaluated == step:
            return False
        metrics: Mapping[str, float] = {}
        if self.validate is not None:
            self.wrapped.eval()
            metrics = self.validate(self._check_interrupted)
            self.listener.epoch(step, metrics)
        if self.plan.monitor is not None:
            self._keep_if_best(gain(self.plan.monitor, metrics), metrics.get("loss", math.nan))
        else:
            progress.best_step = step
            self._save_model()
        progress.evaluated = step
        self._tick, self._seen = time.monotonic(), 0
        return True

    def _keep_if_best(self, value: float | None, loss: float) -> None:
        """Saves the model if it is better than before, or as good with a lower loss (which patience does not count).

        While val says nothing, the last weights are the best.
        """
        progress = self.progress
        if value is None and progress.best is None:
            if progress.best_step == 0 and self.team.is_first:
                warnings.warn(
                    f"val says nothing about {self.plan.monitor} (too few rows, or all alike): until it does, the last "
                    "weights count as the best; set train.monitor=loss, or give val other rows",
                    MBTWarning,
                    stacklevel=2,
                )
        elif value is None or (progress.best is not None and value <= progress.best):
            progress.stale += 1
            if value is None or not self._is_as_good(value, loss):
                return
        else:
            progress.best, progress.stale = value, 0
        if progress.best is not None:
            progress.best_loss = loss if math.isfinite(loss) else None
        progress.best_step = progress.step
        self._save_model()

    def _is_as_good(self, value: float, loss: float) -> bool:
        """Whether weights that are no better than the best are taken in place of what was taken last."""
        best, best_loss, monitor = self.progress.best, self.progress.best_loss, self.plan.monitor or ""
        assert best is not None
        if self.config.select == "latest" and base_name(monitor) in SHARES_OF_ROWS:
            assert self.plan.val_rows
            return value >= best - 2 * standard_error(best, self.plan.val_rows)
        return value == best and best_loss is not None and loss < best_loss

    def _stop_early(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.progress.stale >= patience

    def _mean_loss(self) -> float:
        return self.team.sum(float(self._loss))[0] / self.team.world

    def _save_model(self) -> None:
        model = whole_model(self.model)
        if self.team.is_first:
            model.save_pretrained(self.folder.path)

    def save(self) -> None:
        """Saves the state, whole whatever the number of processes; the first one writes."""
        self.progress.loss = self._mean_loss()
        weights, optimizer = whole_state(self.model), optimizer_tensors(self.model, self.optimizer)
        if self.team.is_first:
            save_state(self.folder.state, weights, optimizer, self.progress)
            self.folder.write_bad_clips(self.progress.failed)
        self._saved_at = time.monotonic()

    def load_best(self) -> None:
        """Puts the best weights into the model."""
        path = self.folder.path / "model.safetensors"
        self.team.barrier()  # until the first process has written it
        load_whole(self.model, read_safetensors(path), str(path))

    def finish(self, results: dict[str, float]) -> None:
        """Notes in the saved state, which keeps the last weights, that the run is finished."""
        self.progress.finished, self.progress.results = True, results
        if self.team.is_first:
            weights, optimizer, _ = load_state(self.folder.state)
            save_state(self.folder.state, weights, optimizer, self.progress)
            self.folder.write_bad_clips(self.progress.failed)

    def _check_interrupted(self, *_: Any) -> None:
        if self.team.sum(self._signal or 0)[0]:
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        asked = max(self.team.gather_everywhere(self._signal or 0))
        self.save()
        raise Interrupted(asked)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT, SIGTERM or SIGHUP lets the step finish and saves; the second one ends at once.

        A SIGHUP that is ignored, as `nohup` has it, stays so.
        """
        first = 0.0

        def ask(number: int, _: Any) -> None:
            nonlocal first
            if self._signal is None:
                self._signal, first = number, time.monotonic()
                with suppress(RuntimeError):  # the signal came while something else was being printed
                    self.listener.message("stopping after this step; once more to stop at once")
            elif time.monotonic() - first > TWICE:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        old: dict[int, Any] = {}
        try:
            for asked in (signal.SIGINT, signal.SIGTERM, *HANG_UP):
                if asked not in HANG_UP or signal.getsignal(asked) is not signal.SIG_IGN:
                    old[asked] = signal.signal(asked, ask)
        except ValueError:  # not in the main thread: signals are somebody else's
            old = {}
        try:
            yield
        finally:
            for restored, handler in old.items():
                signal.signal(restored, handler)
