"""What happens in a run, for loggers and progress displays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A setting that was ``auto``.

    Args:
        setting: its key.
        value: what it came to, for people.
        reason: in a few words.
    """

    setting: str
    value: str
    reason: str


class Listener:
    """Listens to a run; every method may be overridden, none must. Only the first process of a run has listeners."""

    def run_start(self, folder: Path, config: Mapping[str, Any], step: int, steps: int) -> None:
        """A run begins (`step` 0) or goes on from `step` of `steps`; logs hold nothing later than `step`."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """After every ``train.log_every`` steps: loss, lr, clips per second."""

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """After an evaluation on val, or on train's own loss where there is none."""

    def message(self, text: str) -> None:
        """Something the user should know."""

    def chosen(self, choices: Sequence[Choice]) -> None:
        """What a fine-tuning left open, and what it came to, before it begins."""

    def decoded(self, done: int, total: int) -> None:
        """While clips are read ahead of training: to be kept in memory, or what frozen layers make of them on disk."""

    def run_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Training is finished; `metrics` of the test split, if there is one."""


class Listeners(Listener):
    """Passes every event on to several listeners, in order."""

    def __init__(self, listeners: list[Listener]) -> None:
        self.listeners = listeners

    def run_start(self, folder: Path, config: Mapping[str, Any], step: int, steps: int) -> None:
        for listener in self.listeners:
            listener.run_start(folder, config, step, steps)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        for listener in self.listeners:
            listener.step(step, metrics)

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        for listener in self.listeners:
            listener.epoch(step, metrics)

    def message(self, text: str) -> None:
        for listener in self.listeners:
            listener.message(text)

    def chosen(self, choices: Sequence[Choice]) -> None:
        for listener in self.listeners:
            listener.chosen(choices)

    def decoded(self, done: int, total: int) -> None:
        for listener in self.listeners:
            listener.decoded(done, total)

    def run_end(self, step: int, metrics: Mapping[str, float]) -> None:
        for listener in self.listeners:
            listener.run_end(step, metrics)
