"""Reads examples: from a row of the manifest to samples, presence and targets."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mbt_core.config import DataConfig, TaskKind
from mbt_core.data.cache import Cache, Readable
from mbt_core.data.labels import Labels
from mbt_core.data.manifest import Manifest, Row
from mbt_core.data.windows import view_positions, window_for
from mbt_core.errors import ConfigError, DataError, MBTError, unknown
from mbt_core.media import Clip, MemoryClip, absence, exists, open_clip
from mbt_core.media.reads import Reads
from mbt_core.modality import Modality, Sample


class Draw(NamedTuple):
    """What a sampler draws: everything an example depends on, besides the seed.

    Args:
        epoch: pass over the data.
        index: row of the manifest.
        repeat: how often the row was drawn before in this epoch.
    """

    epoch: int
    index: int  # type: ignore[assignment]
    repeat: int = 0


@dataclass
class Example:
    """One view of one row.

    Args:
        index: row of the manifest.
        view: number of the view.
        samples: modality -> what `Modality.read` returned, or its stand-in.
        present: modality -> whether it is no stand-in.
        targets: task -> int64 [] class, float32 [C] multi-hot, or float32 [C] numbers.
        weight: 1, or 0 where nothing could be read.
        error: why nothing could be read.
    """

    index: int
    view: int
    samples: dict[str, Sample]
    present: dict[str, bool]
    targets: dict[str, Tensor]
    weight: float
    error: str | None = None


class _Held(NamedTuple):
    """A row with its clips, all of them in memory, and its targets."""

    row: Row
    clips: dict[str, Readable]
    targets: dict[str, Tensor]


class ClipDataset(Dataset[list[Example]]):
    """Map-style data set: a `Draw` -> its examples, one per view.

    All randomness comes from generators keyed by (seed, epoch, row, repeat), and for what concerns one modality also
    by its name: results depend neither on the process that reads, nor on which other modalities there are.

    Args:
        manifest: the rows, read for these modalities.
        modalities: name -> instance, in the order of the streams.
        tasks: task -> kind; those of the model's head; empty: no targets.
        config: sync, timeout.
        seed: of the run.
        training: random windows, augmentation and modality dropout; else `views` uniform windows, deterministic.
        views: windows per clip.
        dropout: probability that a modality is left out, for all or for each; one always stays.
        cache: decoded clips.

    Raises:
        ConfigError: if the manifest has other tasks.
    """

    def __init__(
        self,
        manifest: Manifest,
        modalities: Mapping[str, Modality],
        tasks: Mapping[str, TaskKind],
        *,
        config: DataConfig,
        seed: int,
        training: bool,
        views: int = 1,
        dropout: float | Mapping[str, float] = 0.0,
        cache: Cache | None = None,
    ) -> None:
        assert views == 1 or not training
        assert manifest.reads.keys() == modalities.keys(), (manifest.reads, list(modalities))
        self.manifest, self.modalities, self.config = manifest, dict(modalities), config
        self.labels = labels_of(manifest, tasks)
        self.seed, self.training, self.views, self.cache = seed % 2**64, training, views, cache
        each = dropout if isinstance(dropout, Mapping) else dict.fromkeys(modalities, dropout)
        self.dropout = {name: each.get(name, 0.0) for name in modalities}
        self._blanks = {name: modality.blank() for name, modality in modalities.items()}
        self._held: dict[int, _Held] = {}

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, draw: Draw) -> list[Example]:
        """Reads one row.

        Data that cannot be read is no exception but examples with nothing present, weight 0 and `error`. A file that is
        not there is an absent modality.

        Raises:
            DataError: for a row without a label of one of the tasks.
        """
        draw = Draw(*draw)
        held = None if self.cache is None else self._held.get(draw.index)
        targets = self._targets(draw) if held is None else held.targets
        try:
            views = self.samples(self.manifest.row(draw.index) if held is None else held.row, draw)
        except (DataError, OSError) as error:
            return self._failed(draw, str(error))
        return [self._example(draw.index, view, samples, targets) for view, samples in enumerate(views)]

    def batch(self, items: Sequence[Draw]) -> tuple[ClipDataset, Sequence[Draw]]:
        """The data set and the draws that a sampler's batch stands for."""
        return self, items

    def key(self, item: Draw) -> Hashable:
        """What an item of a batch is known by in `fatal`."""
        return int(item[1])

    @property
    def fatal(self) -> dict[Any, str]:
        """Key -> why it is not read: of what reading processes have died of."""
        return self.manifest.fatal

    def unreadable(self, draw: Draw, why: str) -> list[Example]:
        """What stands for a row that must not be read: as of one that cannot be."""
        draw = Draw(*draw)
        try:
            row = self.manifest.row(draw.index)
            name = ", ".join(row.files()) or f"row {row.id!r}"
        except (DataError, OSError):
            name = f"row {draw.index}"
        return self._failed(draw, f"{name}: {why}")

    def samples(self, row: Row, draw: Draw) -> list[dict[str, Sample]]:
        """What there is of each view of a row: modality -> sample.

        Raises:
            DataError, OSError: if it cannot be read.
        """
        with ExitStack() as stack:
            held = None if self.cache is None else self._held.get(row.index)
            clips = self._open(row, stack) if held is None else held.clips
            if held is None and self.cache is not None and self.cache.complete:
                self._hold(row, clips, draw)
            return self._read_training(row, clips, draw) if self.training else self._read_views(row, clips)

    def _hold(self, row: Row, clips: dict[str, Readable], draw: Draw) -> None:
        """Keeps what there is to find out of a row, if all of its clips are in memory."""
        if all(isinstance(clip, MemoryClip) for clip in clips.values()):
            self._held[row.index] = _Held(row, clips, self._targets(draw))

    def _targets(self, draw: Draw) -> dict[str, Tensor]:
        return {task: torch.as_tensor(labels.target(draw.index)) for task, labels in self.labels.items()}

    def _failed(self, draw: Draw, error: str) -> list[Example]:
        targets = self._targets(draw)
        return [self._example(draw.index, view, {}, targets, error) for view in range(self.views)]

    def _example(
        self, index: int, view: int, samples: dict[str, Sample], targets: dict[str, Tensor], error: str | None = None
    ) -> Example:
        present = {name: name in samples for name in self.modalities}
        return Example(index, view, self._blanks | samples, present, targets, float(error is None), error)

    def _open(self, row: Row, stack: ExitStack) -> dict[str, Readable]:
        """Modality -> an opened clip that offers what it reads; a file is opened once for all modalities it serves.

        Raises:
            DataError: if no modality is left.
        """
        clips: dict[str, Readable] = {}
        for name, source in row.sources.items():
            if source is not None and source.text is not None:
                clips[name] = Clip.of_text(source.text, f"{row.id}: {name}")
        missing = []
        for path, names in row.files().items():
            if not exists(path):
                missing.append(path)
                continue
            opened: dict[str, Readable] = {}
            if self.cache is not None:
                opened |= self.cache.open(path, names, row.start, row.end, row.rate(names))
            if len(opened) < len(names):
                clip = stack.enter_context(open_clip(path, timeout=self.config.timeout, fps=row.rate(names)))
                opened |= {name: clip for name in names if name not in opened}
            clips |= {name: clip for name, clip in opened.items() if clip.has(self.modalities[name].reads)}
        if not clips:
            raise DataError(_nothing(row, missing, (self.modalities[name].reads for name in row.sources)))
        return {name: clips[name] for name in self.modalities if name in clips}

    def _read_training(self, row: Row, clips: Mapping[str, Readable], draw: Draw) -> list[dict[str, Sample]]:
        together = float(np.random.default_rng(self._key(draw)).random())
        samples, end = {}, self._end(row, clips)
        for name, rng in self.stay(clips, draw).items():
            position = together if self.config.sync else float(rng.random())
            samples[name] = self._read(row, name, clips[name], end, position, rng)
        return [samples]

    def stay(self, names: Iterable[str], draw: Draw) -> dict[str, np.random.Generator]:
        """Those of the modalities that modality dropout leaves, with their generators for all else that is drawn."""
        rngs = {name: np.random.default_rng((*self._key(draw), crc32(name.encode()))) for name in names}
        drawn = {name: rng.random() for name, rng in rngs.items()}
        kept = [name for name in rngs if drawn[name] >= self.dropout[name]]
        if not kept:  # one stays: given that all are below their rates, each is the largest share of it equally often
            kept = [max(rngs, key=lambda name: drawn[name] / self.dropout[name])]
        return {name: rngs[name] for name in kept}

    def _key(self, draw: Draw) -> tuple[int, ...]:
        return self.seed, draw.epoch, draw.index, draw.repeat

    def _read_views(self, row: Row, clips: Mapping[str, Readable]) -> list[dict[str, Sample]]:
        end = self._end(row, clips)
        return [
            {name: self._read(row, name, clip, end, position, None) for name, clip in clips.items()}
            for position in view_positions(self.views)
        ]

    def _end(self, row: Row, clips: Mapping[str, Readable]) -> float | None:
        """Seconds until the part ends in which windows are placed; None: where each modality itself ends.

        With `sync` it is a part that all modalities with windows have, so that equal positions are equal times. Those
        that modality dropout will leave out count too: what it leaves is read as without it.
        """
        if not self.config.sync:
            return row.end
        windowed = {name: self.modalities[name] for name in clips if self.modalities[name].seconds is not None}
        ends = [_length(modality, cast(Clip, clips[name]), row) for name, modality in windowed.items()]
        return min((end for end in (row.end, *ends) if end), default=None)

    def _read(
        self,
        row: Row,
        name: str,
        clip: Readable,
        end: float | None,
        position: float,
        rng: np.random.Generator | None,
    ) -> Sample:
        modality, opened = self.modalities[name], cast(Clip, clip)  # a MemoryClip is read like a Clip
        duration = _length(modality, opened, row)
        end = row.end if modality.seconds is None else end  # a whole one is not cut to what the others have
        try:
            window = window_for(duration, row.start, end, modality.seconds, position)
        except DataError as error:
            raise DataError(f"{clip.name}: {name!r} ({modality.reads}): {error}") from None
        try:
            return modality.read(opened, window, rng)
        except MBTError:
            raise
        except Exception as error:  # a bug of the modality
            error.add_note(f"while {name!r} read {clip.name}, row {row.id!r}")
            raise


def _length(modality: Modality, clip: Clip, row: Row) -> float | None:
    """`Modality.duration`; None of a text that says nothing from the row's start on: what it is said to goes on."""
    duration = modality.duration(clip)
    ended = modality.reads == Reads.TEXT and duration is not None and (row.start or 0.0) >= duration
    return None if ended else duration


def labels_of(manifest: Manifest, tasks: Mapping[str, TaskKind]) -> dict[str, Labels]:
    """Task -> its labels, of the kind that the model has. Raises `ConfigError` if the manifest has no such labels."""
    found = {}
    for task, kind in tasks.items():
        if task not in manifest.labels:
            raise ConfigError(f"model.head: {manifest.path}: {unknown('task', task, manifest.tasks)}")
        labels = manifest.labels[task]
        if (labels.kind, kind) == ("single", "multilabel"):  # read without the kinds, and no row has several classes
            labels = replace(labels, kind=kind)
        if labels.kind != kind:
            raise ConfigError(
                f"model.head.task: {kind!r} for {task!r}, but {manifest.path} was read as {labels.kind!r}"
                + ("; some rows have several labels joined by ';'" if labels.kind == "multilabel" else "")
            )
        found[task] = labels
    return found


def _nothing(row: Row, missing: Sequence[str], reads: Iterable[str]) -> str:
    """Why a row has no modality."""
    if missing:
        return absence(missing[0])
    if row.files():
        return f"{', '.join(row.files())}: holds nothing that the model reads ({' or '.join(sorted(set(reads)))})"
    return f"row {row.id!r}: all its cells are empty"
