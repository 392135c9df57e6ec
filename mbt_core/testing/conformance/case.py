"""A kind of modality under test: its classes, small real files, the configuration fitted to them, samples.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbt_core.config.schema import ModalityConfig, validate
from mbt_core.data.windows import window_for
from mbt_core.media import Clip
from mbt_core.modality import Modality, Window
from mbt_core.model import MBT
from mbt_core.plugins import registry
from mbt_core.plugins.hookspecs import ModalitySpec
from mbt_core.testing.conformance.examples import COUNT, write_example

DIM = 16
NAME = "probe"
"""Of the instance: a kind must not rely on its own name."""


class Fault(AssertionError):
    """What is wrong with a modality, in words for its author."""


class Case:
    """What the checks share.

    Args:
        kind: a registered kind.
        settings: of the kind.
        folder: for the example files.

    Raises (on use):
        ConfigError: for wrong settings.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any], folder: Path) -> None:
        self.kind, self.settings, self.folder = kind, dict(settings), folder

    @property
    def spec(self) -> ModalitySpec:
        return registry().modality(self.kind)

    @property
    def modality_class(self) -> Any:
        return registry().modality_class(self.kind)

    @cached_property
    def given(self) -> ModalityConfig:
        """The configuration before it is fitted."""
        config: ModalityConfig = validate(
            registry().config_class(self.kind), {"kind": self.kind, **self.settings}, self.kind
        )
        return config

    @cached_property
    def files(self) -> list[Path]:
        """Example files: the kind's own (`Modality.example`), or usual ones of what it reads."""
        reads = self.modality_class(NAME, self.given).reads
        channels = getattr(self.given, "channels", None)
        own = (
            self.modality_class.example(self.given, self.folder / str(i), np.random.default_rng(i))
            for i in range(COUNT)
        )
        return [
            path or write_example(reads, channels if isinstance(channels, int) else None, self.folder, number)
            for number, path in enumerate(own)
        ]

    def fit(self, config: ModalityConfig, first: Sequence[Path] = ()) -> ModalityConfig:
        """`config` fitted to the example files, and to others before them."""
        with ExitStack() as stack:
            clips = [(stack.enter_context(Clip(path)), None) for path in (*first, *self.files)]
            fitted: ModalityConfig = self.modality_class.fit(config, clips)
            return fitted

    @cached_property
    def config(self) -> ModalityConfig:
        return self.fit(copy.deepcopy(self.given))

    @cached_property
    def modality(self) -> Modality:
        made: Modality = self.modality_class(NAME, self.config)
        return made

    def window(self, clip: Clip, position: float = 0.5) -> Window:
        """The window of a clip that a run would read."""
        return window_for(self.modality.duration(clip), None, None, self.modality.seconds, position)

    def read(self, number: int = 0, seed: int | None = None, modality: Modality | None = None) -> Any:
        """Reads example file `number`, with the augmentation of `seed` or none."""
        with Clip(self.files[number]) as clip:
            return self.read_clip(clip, seed, modality)

    def read_clip(self, clip: Clip, seed: int | None = None, modality: Modality | None = None) -> Any:
        """The same of a clip that is open."""
        rng = None if seed is None else np.random.default_rng(seed)
        return (modality or self.modality).read(clip, self.window(clip), rng)

    @cached_property
    def samples(self) -> list[Any]:
        """Of every example file, as evaluation reads it."""
        return [self.read(number) for number in range(len(self.files))]

    def inputs(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """A batch of samples as it comes to the tokenizer, with its mask or None."""
        with torch.no_grad():
            given = self.modality.preprocessor()(self.modality.collate(samples))
        return given if isinstance(given, tuple) else (given, None)

    @cached_property
    def model(self) -> MBT:
        """A small model of this modality alone, in evaluation, whose output depends on everything."""
        config = {
            "modalities": {NAME: self.config},
            "backbone": {"dim": DIM, "depth": 2, "heads": 2},
            "fusion": {"layer": 1},
            "head": {"classes": 3},
        }
        with seeded(0):
            model = MBT(config).eval()
            for parameter in model.head.parameters():
                torch.nn.init.normal_(parameter)
        return model

    def logits(self, x: Tensor, mask: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """[B, 3]: the model's answer to what the preprocessor gave."""
        out = self.model({NAME: (x, mask)}, None if present is None else {NAME: present})
        logits: Tensor = out.logits
        return logits


def named(sample: Any) -> dict[str, Tensor]:
    """A sample or batch as a dictionary; a single tensor has the key ``""``."""
    return sample if isinstance(sample, dict) else {"": sample}


def equal(one: Any, two: Any) -> bool:
    """Whether two samples (or batches) are the same to the bit; not-a-number equals itself."""
    first, second = named(one), named(two)
    return first.keys() == second.keys() and all(
        x.shape == second[key].shape and torch.equal(x.nan_to_num(), second[key].nan_to_num())
        for key, x in first.items()
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators from `seed`; as they were afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
