"""The training loop.

All randomness of a step is keyed by (seed, step, rank), of an example by (seed, epoch, example): nothing of it needs
saving, and results depend neither on the number of reading processes nor on interruptions.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mbt_core.config import Experiment, TrainConfig
from mbt_core.data.collate import Batch
from mbt_core.data.missing import Losses
from mbt_core.errors import ConfigError, MBTError, unknown
from mbt_core.files import read_safetensors
from mbt_core.model import MBT
from mbt_core.model.loss import dense_targets, example_losses
from mbt_core.training.events import Listener
from mbt_core.training.folder import RunFolder
from mbt_core.training.mixup import Mixup
from mbt_core.training.optimizer import lr_factor, set_lr
from mbt_core.training.state import Progress, load_optimizer, load_state, optimizer_tensors, save_state


class Interrupted(Exception):
    """The run was asked to stop; its state is saved.

    Args:
        signal_number: what asked.
    """

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
    """

    steps: int
    batch_size: int
    eval_every: int
    monitor: str | None


def make_plan(config: TrainConfig, rows: int, batch_size: int, monitor: str | None) -> Plan:
    """Resolves steps and evaluations.

    ``auto`` steps: 36,000 examples, but at least 10 and at most 300 passes over the rows.
    """
    if config.epochs is not None:
        steps = math.ceil(config.epochs * rows / batch_size)
    elif isinstance(config.steps, int):
        steps = config.steps
    else:
        passes = min(300.0, max(10.0, 36_000 / rows))
        steps = math.ceil(passes * rows / batch_size)
    epoch = max(1, round(rows / batch_size))
    every = config.eval_every if isinstance(config.eval_every, int) else max(epoch, math.ceil(steps / 20))
    return Plan(max(1, steps), batch_size, every, monitor)


class Trainer:
    """Trains a model from its batches, saves its state, keeps the best weights.

    Args:
        fabric: devices, precision, processes.
        experiment: the resolved experiment.
        folder: of the run.
        model: fresh, or with the weights it starts from; on the CPU.
        preprocess: batch -> the model's inputs.
        optimizer: over the model's trained parameters.
        plan: steps and evaluations.
        listener: of the first process.
        validate: evaluates on val and returns its metrics; None: no val split. Called with a check that raises
            `Interrupted`.
        name_of: row -> its id.
        losses: counts the clips of the train split that cannot be read.
    """

    def __init__(
        self,
        fabric: Fabric,
        experiment: Experiment,
        folder: RunFolder,
        model: MBT,
        preprocess: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        listener: Listener,
        validate: Callable[[Callable[..., None]], dict[str, float]] | None,
        name_of: Callable[[int], str],
        losses: Losses,
    ) -> None:
        self.fabric, self.experiment, self.folder, self.plan = fabric, experiment, folder, plan
        self.config, self.listener, self.validate = experiment.train, listener, validate
        self.name_of, self.losses = name_of, losses
        self.model, self.preprocess = model, preprocess.to(fabric.device)
        self.wrapped, self.optimizer = fabric.setup(model, optimizer)
        self.progress = Progress()
        self._signal: int | None = None
        self._saved_at = time.monotonic()
        self._loss = torch.zeros((), device=fabric.device)
        self._seen = 0

    def resume(self) -> None:
        """Puts back the state that was saved last."""
        weights, optimizer, self.progress = load_state(self.folder.state)
        self.model.load_weights(weights, str(self.folder.state))
        load_optimizer(self.model, self.optimizer, optimizer)
        self._loss.fill_(self.progress.loss)

    def fit(self, loader: DataLoader[Batch]) -> Progress:
        """Trains from `progress.step` to the plan's end.

        Raises:
            Interrupted: after SIGINT or SIGTERM; the state is saved.
            MBTError: the loss is not finite, or memory is out.
        """
        batches = iter(loader)
        with self._signals():
            self._tick = time.monotonic()
            self._evaluate_if_due()  # where the interruption came in the middle of an evaluation
            while self.progress.step < self.plan.steps and not self._stop_early():
                self._check_interrupted()
                batch = next(batches)
                self.train_step(batch.to(self.fabric.device))
                self.progress.step += 1
                self._note(batch)
                evaluated = self._evaluate_if_due()
                if evaluated or time.monotonic() - self._saved_at > self.config.save_every:
                    self.save()
        return self.progress

    def train_step(self, batch: Batch) -> None:
        """One optimiser step: forward and backward of each part of the batch, clipping, update."""
        step, config = self.progress.step, self.config
        seed = np.random.SeedSequence((config.seed, step, self.fabric.global_rank))
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]) >> 1)
        rng = np.random.default_rng(seed)
        self.wrapped.train()
        set_lr(self.optimizer, config.lr * lr_factor(step, self.plan.steps, config.warmup))
        weight = batch.weight.sum()
        if self.fabric.world_size > 1:
            # every example of the global batch weighs the same, on whichever process it is
            weight = self.fabric.all_reduce(weight, reduce_op="sum") / self.fabric.world_size
        parts = batch.split(config.accumulate)
        for number, part in enumerate(parts):
            with self.fabric.no_backward_sync(self.wrapped, enabled=number + 1 < len(parts)):
                loss = self._loss_sum(part, rng) / (weight + 1e-8)
                self.fabric.backward(loss)
            self._loss += loss.detach()
        if config.clip_grad is not None:
            self.fabric.clip_gradients(
                self.wrapped, self.optimizer, max_norm=config.clip_grad, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _loss_sum(self, batch: Batch, rng: np.random.Generator) -> Tensor:
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
            prediction = self.wrapped(inputs, present)
        loss_B = example_losses(prediction, targets, head, present, config.label_smoothing)
        return (loss_B * batch.weight).sum()

    def _note(self, batch: Batch) -> None:
        """Counts, logs, and stops at a loss that is not finite."""
        self._seen += len(batch.index) * self.fabric.world_size
        for row, message in batch.errors:
            self.progress.failed[self.name_of(row)] = message
        self.losses.add(batch.errors)
        step = self.progress.step
        if step % self.config.log_every and step != self.plan.steps:
            return
        loss = float(self._loss) / ((step - 1) % self.config.log_every + 1)
        self._loss.zero_()
        if not math.isfinite(loss):
            raise MBTError(
                f"the loss is {loss} at step {step}; lower train.lr ({self.config.lr:g}) or set train.clip_grad=1, "
                f"then start again or --resume from the state before it"
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
        if self.validate is not None and self.plan.monitor is not None:
            self.wrapped.eval()
            metrics = self.validate(self._check_interrupted)
            self.listener.epoch(step, metrics)
            if self.plan.monitor not in metrics:
                raise ConfigError(f"train.monitor: {unknown('metric', self.plan.monitor, metrics)}")
            value = metrics[self.plan.monitor]
            value = -math.inf if math.isnan(value) else value  # nothing to judge by (no positives in val)
            if progress.best is None or value > progress.best:
                progress.best, progress.best_step, progress.stale = value, step, 0
                self._save_model()
            else:
                progress.stale += 1
        else:
            progress.best_step = step
            self._save_model()
        progress.evaluated = step
        self._tick, self._seen = time.monotonic(), 0
        return True

    def _stop_early(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.progress.stale >= patience

    def _save_model(self) -> None:
        if self.fabric.is_global_zero:
            self.model.save_pretrained(self.folder.path)

    def save(self) -> None:
        """Saves the state; the first process writes."""
        self.progress.loss = float(self._loss)
        if self.fabric.is_global_zero:
            optimizer = optimizer_tensors(self.model, self.optimizer)
            save_state(self.folder.state, self.model.state_dict(), optimizer, self.progress)
            self.folder.write_bad_clips(self.progress.failed)
        self._saved_at = time.monotonic()

    def load_best(self) -> None:
        """Puts the best weights into the model."""
        path = self.folder.path / "model.safetensors"
        self.model.load_weights(read_safetensors(path), str(path))

    def _check_interrupted(self, *_: Any) -> None:
        if self._signal is not None:
            self.save()
            raise Interrupted(self._signal)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the step finish and saves; the second one ends at once."""

        def ask(number: int, _: Any) -> None:
            self._signal = number
            for restored in old:
                signal.signal(restored, signal.SIG_DFL)
            self.listener.message("stopping after this step; once more to stop at once")

        old: dict[int, Any] = {}
        try:
            for asked in (signal.SIGINT, signal.SIGTERM):
                old[asked] = signal.signal(asked, ask)
        except ValueError:  # not in the main thread: signals are somebody else's
            old = {}
        try:
            yield
        finally:
            for restored, handler in old.items():
                signal.signal(restored, handler)
