"""Opens the files of a data set: reports what is there, and fills ``auto`` fields from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np

from mbt_core.config.schema import ModalityConfig
from mbt_core.data.channels import Channels, ChannelTally, channel_lines
from mbt_core.data.duplicates import find_repeats
from mbt_core.data.machine import cores
from mbt_core.data.manifest import Manifest, Row
from mbt_core.data.readers import Each, Pool, Turn, Work, patience_for
from mbt_core.data.splits import TRAIN
from mbt_core.errors import DataError
from mbt_core.media import Clip, absence, exists, open_clip
from mbt_core.media.reads import Reads
from mbt_core.modality import Modality, Window
from mbt_core.plugins import registry

FIT_CLIPS = 64
CHUNK = 16
"""Files that a process looks at between two answers."""
CHANNEL_CLIPS = 16
"""Clips of each modality whose channels a training looks at before it starts."""
BEGINNING = 0.1
"""Seconds of sound that `check` reads."""
SHOWN = 5
"""Values and problems that a report lists."""

Progress = Callable[[int, int], None]
Workers = int | Literal["auto"]


@dataclass
class _Found:
    """What one file is for one modality."""

    state: str  # "present", "missing", "unreadable" or "absent"
    problem: str = ""
    seconds: float | None = None
    size: tuple[int, ...] | None = None
    frame_rate: float | None = None
    sample_rate: int | None = None
    channels: Channels = field(default_factory=Channels)


@dataclass
class _Tally:
    """What the files of a split are for one modality."""

    states: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    frame_rates: Counter[str] = field(default_factory=Counter)
    sample_rates: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    channels: ChannelTally = field(default_factory=ChannelTally)

    def add(self, found: _Found) -> None:
        self.states[found.state] += 1
        self.channels.add(found.channels)
        if found.problem and len(self.problems) < SHOWN:
            self.problems.append(found.problem)
        if found.seconds is not None:
            self.seconds.append(found.seconds)
        if found.size is not None:
            self.sizes["x".join(map(str, found.size))] += 1
        if found.frame_rate is not None:
            self.frame_rates[f"{found.frame_rate:.6g}"] += 1
        if found.sample_rate is not None:
            self.sample_rates[str(found.sample_rate)] += 1

    def report(self) -> dict[str, Any]:
        spread = None
        if self.seconds:
            low, middle, high = np.quantile(self.seconds, [0, 0.5, 1]).round(3).tolist()
            spread = {"min": low, "median": middle, "max": high}
        return {
            **{state: self.states[state] for state in ("present", "missing", "unreadable", "absent")},
            "seconds": spread,
            "sizes": dict(self.sizes.most_common(SHOWN)),
            "frame_rates": dict(self.frame_rates.most_common(SHOWN)),
            "sample_rates": dict(self.sample_rates.most_common(SHOWN)),
            "problems": self.problems,
            **self.channels.report(),
        }


def check(
    manifest: Manifest,
    modalities: Mapping[str, Modality] | None = None,
    *,
    limit: int | None = None,
    timeout: float = 60.0,
    workers: Workers = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Opens the files that a manifest names and reads a little of each.

    Args:
        manifest: the rows; their modalities are those it was read with.
        modalities: which of these to look at; None: all.
        limit: rows of a split to look at, spread over it; None: all.
        timeout: seconds that one file may take.
        workers: processes that open them; ``auto``: two for each core; 0: none but this one.
        progress: called with (rows done, rows in all).

    Returns:
        ``{"splits": {SPLIT: {"rows", "checked", "modalities": {NAME: REPORT}, "class_counts": {TASK: {CLASS: rows}}}},
        "classes": {TASK: number}, "repeats": [...]}``, the last of `mbt_core.data.duplicates.Repeats`. REPORT counts
        "present", "missing", "unreadable" and "absent" (an empty cell, or a file without such a stream), which add up
        to "checked", and has "seconds" ("min", "median", "max"; or None), the commonest "sizes" ("WIDTHxHEIGHT", for
        arrays "CHANNELSxSAMPLES"), "frame_rates" and "sample_rates" with their counts, the first "problems", and of
        arrays "channels" and "doubts" (`ChannelTally.report`).
    """
    reads = {name: kind for name, kind in manifest.reads.items() if modalities is None or name in modalities}
    chosen = {split: _spread(rows, limit) for split, rows in manifest.splits.items()}
    total, done = sum(map(len, chosen.values())), 0
    splits = {}
    each: Each[Any, Any, Any] = Each(partial(_look, manifest, reads, timeout), partial(_lost, manifest, reads))
    pool = Pool(each, _processes(workers), patience_for(timeout))
    for split, rows in chosen.items():
        tallies = {name: _Tally(channels=ChannelTally((modalities or {}).get(name))) for name in reads}
        for found in pool.map(manifest.alike(rows), CHUNK):
            for of_row in found:
                for name, tally in tallies.items():
                    tally.add(of_row[name])
                done += 1
                if progress:
                    progress(done, total)
        counts = {
            task: dict(zip(names, manifest.class_counts(task, split).tolist(), strict=True))
            for task, names in manifest.classes.items()
        }
        splits[split] = {
            "rows": len(manifest.splits[split]),
            "checked": len(rows),
            "modalities": {name: tally.report() for name, tally in tallies.items()},
            "class_counts": counts,
        }
    return {
        "splits": splits,
        "classes": {task: len(names) for task, names in manifest.classes.items()},
        "repeats": [repeats.as_json() for repeats in find_repeats(manifest)[0]],
    }


def _spread(rows: np.ndarray, limit: int | None) -> np.ndarray:
    if limit is None or len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(int)]


def _processes(workers: Workers) -> int:
    return 2 * cores() if workers == "auto" else workers


def _lost(manifest: Manifest, reads: Mapping[str, str], rows: np.ndarray, why: str) -> list[dict[str, _Found]]:
    """What the rows of a file are that processes have died of."""
    found = _Found("unreadable", f"{', '.join(manifest.row(rows[0]).files())}: {why}")
    return [dict.fromkeys(reads, found)] * len(rows)


def _look(manifest: Manifest, reads: Mapping[str, str], timeout: float, rows: np.ndarray) -> list[dict[str, _Found]]:
    """Modality -> what each row has of it, for rows of the same files. A file is opened once for all of them."""
    clips: dict[str, Clip] = {}
    told: dict[tuple[str, str], _Found] = {}
    found = []
    with ExitStack() as stack:
        for index in rows.tolist():
            try:
                row = manifest.row(index)
            except DataError as error:
                found.append(dict.fromkeys(reads, _Found("unreadable", str(error))))
                continue
            here = {name: _Found("absent" if row.sources[name] is None else "present") for name in reads}
            for path, names in row.files().items():
                wanted = [name for name in names if name in reads]
                if path not in clips:
                    if not exists(path):
                        here |= dict.fromkeys(wanted, _Found("missing", absence(path)))
                        continue
                    clips[path] = stack.enter_context(open_clip(path, timeout=timeout, fps=row.rate(names)))
                for name in wanted:
                    if (path, reads[name]) not in told:
                        told[path, reads[name]] = _describe(clips[path], reads[name])
                    here[name] = _beginning(clips[path], reads[name], told[path, reads[name]], row.start or 0.0)
            found.append(here)
    return found


def _describe(clip: Clip, reads: str) -> _Found:
    """What the clip is for all rows that name it."""
    try:
        if not clip.has(reads):
            return _Found("absent")
        found = _Found("present", seconds=clip.duration_of(reads))
        if reads == "frames":
            height, width = clip.size or (0, 0)
            found.size, found.frame_rate = (width, height), clip.frame_rate
        elif reads == "waveform":
            found.sample_rate = clip.sample_rate
        elif reads == "array":
            found.size, found.channels = clip.shape, Channels.of(clip)
    except (DataError, OSError) as error:
        return _Found("unreadable", str(error))
    return found


def _beginning(clip: Clip, reads: str, found: _Found, start: float) -> _Found:
    """`found`, unless what a row is about, from `start` seconds on, is not there or cannot be read."""
    if found.state != "present":
        return found
    try:
        if found.seconds and start >= found.seconds and reads != Reads.TEXT:  # what a text is said to goes on
            raise DataError(f"{clip.name}: a row starts at {start:g} s, but it is only {found.seconds:g} s long")
        if reads == "waveform" and found.sample_rate is not None:
            clip.waveform(start, start + BEGINNING, found.sample_rate)
    except (DataError, OSError) as error:
        return _Found("unreadable", str(error))
    return found


def require_modalities(
    manifest: Manifest, modalities: Mapping[str, Modality], timeout: float = 60.0, workers: Workers = "auto"
) -> None:
    """Opens clips of the train split until each modality was found in one; what cannot be opened may have any.

    Args:
        manifest: the rows.
        modalities: name -> instance.
        timeout: seconds that one file may take.
        workers: whether a process of its own opens them; 0: this one does.

    Raises:
        DataError: if a modality is in none of them: its parameters would stay as they are, and nobody would notice.
    """
    rows = np.random.default_rng(0).permutation(manifest.rows(TRAIN)).tolist()
    for name, modality in modalities.items():
        each: Each[int, bool, Any] = Each(partial(_may_have, manifest, modality, timeout), lambda row, why: True)
        if not any(_pool(each, manifest, timeout, workers).map(rows)):
            others = ",".join(other for other in modalities if other != name)
            raise DataError(
                f"{manifest.path}: modality {name!r} (it reads {modality.reads}) is in none of the {len(rows)} rows of "
                "the train split: their cells are empty, or the files they name are not there or have nothing of it. "
                "Fill in its column" + (f", or leave it out of the modalities: {others}" if others else "")
            )


def _may_have(manifest: Manifest, modality: Modality, timeout: float, index: int) -> bool:
    with ExitStack() as stack:
        try:
            return _opened(manifest.row(index), modality, timeout, stack) is not None
        except (DataError, OSError):
            return True  # counted where it is read


def channel_notes(
    manifest: Manifest, modalities: Mapping[str, Modality], timeout: float = 60.0, workers: Workers = "auto"
) -> list[str]:
    """What some files of the train split offer to modalities that read arrays, and what looks wrong, a line each."""
    lines = []
    rows = np.random.default_rng(0).permutation(manifest.splits.get(TRAIN, np.zeros(0, np.int64))).tolist()
    for name, modality in modalities.items():
        if modality.reads == Reads.ARRAY:
            [report] = _pool(partial(_channels, manifest, modality, timeout), manifest, timeout, workers).run([rows])
            lines += channel_lines(name, report)
    return lines


def _channels(manifest: Manifest, modality: Modality, timeout: float, rows: Sequence[int], turn: Turn) -> Any:
    """The report on the channels of the first `CHANNEL_CLIPS` clips."""
    tally = ChannelTally(modality)
    with ExitStack() as stack:
        for clip, _ in islice(_sample(manifest, modality, timeout, stack, rows, turn), CHANNEL_CLIPS):
            with suppress(DataError, OSError):  # counted where it is read
                tally.add(Channels.of(clip))
            clip.close()
    return tally.report()


def fit_modalities(
    manifest: Manifest,
    configs: Mapping[str, ModalityConfig],
    timeout: float = 60.0,
    workers: Workers = "auto",
) -> dict[str, ModalityConfig]:
    """Fills fields at ``auto`` from the train split (`Modality.fit`): from the same up to 64 clips every time.

    Args:
        manifest: the rows; read with these modalities.
        configs: name -> configuration.
        timeout: seconds that one clip may take.
        workers: whether a process of its own reads them; 0: this one does.

    Raises:
        DataError: if a field is still ``auto``, naming it.
    """
    fitted = {}
    rows = np.random.default_rng(0).permutation(manifest.splits.get(TRAIN, np.zeros(0, np.int64)))
    for name, config in configs.items():
        fitted[name] = config
        if not config.auto_fields():
            continue
        fit = partial(_fit, manifest, name, config, timeout)
        [(fitted[name], count)] = _pool(fit, manifest, timeout, workers).run([rows.tolist()])
        left = fitted[name].auto_fields()
        if left:
            fields = ", ".join(f"modalities.{name}.{field}" for field in left)
            why = f"its {count} clips do not tell" if count else "no row of it has a readable file"
            raise DataError(
                f"{fields}: 'auto' cannot be filled from the train split of {manifest.path}: {why}; give a value"
            )
    return fitted


def _pool(work: Work, manifest: Manifest, timeout: float, workers: Workers) -> Pool:
    """A process for work on rows; those that processes die of are not read again either."""
    return Pool(work, 1 if workers else 0, patience_for(timeout), key=int, fatal=manifest.fatal)


def _fit(
    manifest: Manifest, name: str, config: ModalityConfig, timeout: float, rows: Sequence[int], turn: Turn
) -> tuple[ModalityConfig, int]:
    """The filled configuration, and the number of clips that it was filled from."""
    kind = registry().modality_class(config.kind)
    with ExitStack() as stack:
        clips = list(_sample(manifest, kind(name, config), timeout, stack, rows, turn))
        if not clips:
            return config, 0
        try:
            return kind.fit(config, clips), len(clips)
        except DataError as error:  # of two of a kind, which
            raise DataError(f"modalities.{name}: {error}") from error


def _sample(
    manifest: Manifest, modality: Modality, timeout: float, stack: ExitStack, rows: Sequence[int], turn: Turn
) -> Iterator[tuple[Clip, Window | None]]:
    """Opened clips of the first up to `FIT_CLIPS` of `rows` with this modality, and their spans; without unreadable
    ones, and those that a process has died of."""
    count = 0
    for number, index in enumerate(rows):
        if number in turn.lost:
            continue
        turn.at(number)
        try:
            row = manifest.row(index)
            clip = _opened(row, modality, timeout, stack)
            window = None if clip is None else _span(row, clip, modality)
        except (DataError, OSError):
            continue  # counted where it is read
        if clip is not None:
            yield turn.watch(clip, number), window
            count += 1
            if count == FIT_CLIPS:
                return


def _opened(row: Row, modality: Modality, timeout: float, stack: ExitStack) -> Clip | None:
    source = row.sources[modality.name]
    if source is None:
        return None
    if source.text is not None:
        return Clip.of_text(source.text, row.id)
    if source.path is None or not exists(source.path):
        return None
    clip = stack.enter_context(open_clip(source.path, timeout=timeout, fps=row.rate([modality.name])))
    return clip if clip.has(modality.reads) else None


def _span(row: Row, clip: Clip, modality: Modality) -> Window | None:
    """The row's start and end, completed by what the modality has of the clip; None if the row has neither."""
    if row.start is None and row.end is None:
        return None
    start = row.start or 0.0
    return Window(start, row.end if row.end is not None else max(start, modality.duration(clip) or start))
