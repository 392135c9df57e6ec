"""What a model starts from: loaded, adapted and how, or left fresh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mbt_core.model import MBT

FRESH = "fresh"


class Start(NamedTuple):
    """Where one part of a model starts from.

    Args:
        part: the common beginning of its parameters' names.
        parameters: how many numbers it has.
        source: where they come from; empty if they are fresh.
        how: what was done to them.
    """

    part: str
    parameters: int
    source: str
    how: str


class InitReport(NamedTuple):
    """All parts of a model, in its order."""

    starts: list[Start]

    @property
    def loaded(self) -> int:
        """Numbers that come from a source."""
        return sum(s.parameters for s in self.starts if s.source)

    @property
    def fresh(self) -> int:
        """Numbers that are left as drawn."""
        return sum(s.parameters for s in self.starts if not s.source)

    @classmethod
    def of(cls, model: MBT, notes: Mapping[str, tuple[str, str]]) -> InitReport:
        """`notes`: part -> (source, how); parts without one are fresh."""
        sizes: dict[str, int] = {}
        for key, value in model.named_parameters():
            part = part_of(key)
            sizes[part] = sizes.get(part, 0) + value.numel()
        return cls([Start(part, size, *notes.get(part, ("", FRESH))) for part, size in sizes.items()])


def part_of(key: str) -> str:
    """The part that a parameter belongs to: ``streams.NAME.tokenizer``, ``blocks.NAME``, ``head.norms.NAME`` ..."""
    names = key.split(".")
    return ".".join(names[: {"blocks": 2, "fusion": 2}.get(names[0], 3)])
