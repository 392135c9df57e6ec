"""What is said of array files: which columns are read as channels, which are not, and which channels look wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mbt_core.errors import DataError
from mbt_core.media import Clip
from mbt_core.media.channels import described, rising
from mbt_core.modality import Modality

SHOWN = 5
"""Different forms of files, and doubts, that are told."""
LEAST = 10
"""Samples of a recording of which a channel may be doubted."""
STEADY = 0.99
"""Share of the samples of a channel at which it rises, of a time or a counter."""
FAR = 1000.0
"""Deviations by which a first sample is off that is none."""


@dataclass(frozen=True)
class Channels:
    """What an array file offers.

    Args:
        count: number of its channels.
        names: of the channels; empty: they have none.
        left_out: what else its table has, in words; empty: nothing.
        doubts: number of a channel, and what looks wrong in it.
    """

    count: int = 0
    names: tuple[str, ...] = ()
    left_out: str = ""
    doubts: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, clip: Clip) -> Channels:
        """Of an array [channels, samples]; of others nothing is known. Raises `DataError` if it cannot be read."""
        if len(clip.shape) != 2:
            return cls()
        array, names = clip.array(), clip.columns
        doubts = [(number, doubt_of(names[number] if names else str(number), x)) for number, x in enumerate(array)]
        return cls(len(array), names, described(clip.left_out), tuple(doubt for doubt in doubts if doubt[1]))


@dataclass
class ChannelTally:
    """What the files of a modality offer.

    Args:
        modality: says which channels it reads; None: all.
    """

    modality: Modality | None = None
    forms: Counter[tuple[tuple[str, ...], str]] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)

    def add(self, channels: Channels) -> None:
        try:
            chosen = self.modality.channels_of(channels.names, channels.count) if self.modality is not None else None
        except DataError:
            return  # said where the file is read
        numbers = range(channels.count) if chosen is None else chosen
        if channels.names:
            others = [name for number, name in enumerate(channels.names) if number not in numbers]
            left_out = ", ".join([*(f"{name!r} (not chosen)" for name in others), *filter(None, [channels.left_out])])
            self.forms[tuple(channels.names[number] for number in numbers), left_out] += 1
        self.doubts.update(text for number, text in channels.doubts if number in numbers)

    def report(self) -> dict[str, Any]:
        """``{"channels": [{"files", "taken", "left_out"}], "doubts": {DOUBT: files}}``, the commonest."""
        forms = [
            {"files": count, "taken": list(taken), "left_out": left_out}
            for (taken, left_out), count in self.forms.most_common(SHOWN)
        ]
        return {"channels": forms, "doubts": dict(self.doubts.most_common(SHOWN))}


def channel_lines(name: str, report: Mapping[str, Any]) -> list[str]:
    """What `ChannelTally.report` says of a modality, for people."""
    lines = []
    for form in report["channels"]:
        left_out = f"; left out: {form['left_out']}" if form["left_out"] else ""
        lines.append(f"{name}: channels {', '.join(form['taken'])}{left_out}")
    return lines + [f"{name}: {doubt}" for doubt in report["doubts"]]


def doubt_of(name: str, samples: np.ndarray) -> str:
    """What looks wrong in a channel [samples]; empty: nothing."""
    finite = samples[np.isfinite(samples)].astype(np.float64)
    if len(finite) < LEAST:
        return ""
    if rising(finite)[0] >= STEADY:
        return f"channel {name!r} rises all the time: a time or an index? Then leave it out (select, columns)"
    deviation = finite[1:].std()
    if deviation and abs(finite[0] - finite[1:].mean()) > FAR * deviation:
        return f"channel {name!r}: its first sample is more than {FAR:g} deviations off: no sample? Then remove it"
    return ""
