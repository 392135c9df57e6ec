"""Packs the clips of a manifest into shards, so that reading some frames of one costs no decoding of a video."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from mbt_core.config import DataConfig
from mbt_core.data.columns import is_number
from mbt_core.data.labels import classes_path
from mbt_core.data.machine import cores, free_memory
from mbt_core.data.manifest import Manifest, Row
from mbt_core.data.processes import MEMORY
from mbt_core.data.readers import Pool, Turn, patience_for
from mbt_core.data.shards import (
    CLASSES_FILE,
    FILE,
    REPORT,
    REPORT_FILE,
    Packing,
    is_packed,
    name_of,
    read_reports,
    table_path,
)
from mbt_core.data.tables import read_table
from mbt_core.errors import ConfigError, DataError
from mbt_core.io import remote
from mbt_core.io.files import only_writer, open_regular, write_atomically
from mbt_core.media import Clip, absence, exists, open_clip
from mbt_core.media.jpegs import encode_jpeg
from mbt_core.media.reads import Reads
from mbt_core.media.shards import BLOCK, INDEX, LARGEST, MARK, RATE, Facts

BEFORE, AFTER = 0.25, 1.0
"""Seconds kept before and after a row's span, for what reading rounds up."""
AT_ONCE = 10.0
"""Seconds of frames decoded at a time."""
SAME_RATE = 1.005
"""Factor up to which a frame rate counts as the one that is kept."""
PICTURES = 64
"""Pictures of a folder decoded at a time."""
SHOWN = 5
CALLED = {"digest": "cells or classes"}
"""What a field of `Packing` is called where it differs."""


@dataclass
class PackReport:
    """What is in a folder of shards.

    Args:
        folder: where they are.
        shards, shards_done: number of shards of the whole, and of those that are there.
        rows: in the shards that are there.
        frames: number of JPEGs.
        nbytes: of all tar files.
        missing, unreadable: files that rows named.
        examples: some of these.
    """

    folder: str
    shards: int
    shards_done: int = 0
    rows: int = 0
    frames: int = 0
    nbytes: int = 0
    missing: int = 0
    unreadable: int = 0
    examples: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Content = bytes | PickleBuffer | memoryview


@dataclass
class Packed:
    """One row: the members after its key's name, each with its content and time, and what could not be read."""

    members: list[tuple[str, Content, float]] = field(default_factory=list)
    cells: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def pack(
    path: Path,
    reads: Mapping[str, str],
    config: DataConfig,
    out: Path,
    *,
    fps: float = 25.0,
    short_side: int = 256,
    quality: int = 85,
    window: float = 8.0,
    shard_size: int = 256,
    part: tuple[int, int] = (0, 1),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Packs all rows of a manifest, in its order; shards that are there already are left as they are.

    Args:
        path: the manifest.
        reads: modality -> what it reads of its files.
        config: root and confinement.
        out: folder of the shards.
        fps: frames a second, of videos that have more; of others all frames are kept.
        short_side: length in pixels to which the frames' shorter side is scaled down.
        quality: of the JPEGs.
        window: seconds of the longest window that will be read: so much is kept of shorter spans, too.
        shard_size: rows of a shard.
        part: (i, n): only every n-th shard from the i-th on. i and i + n mean the same.
        workers: processes that decode; by default one per core; 0: none but this one.
        progress: called with (shards done, shards to do).

    Returns:
        What is in `out`, also from before and from other parts.

    Raises:
        ConfigError: if `out` holds shards of another manifest or other settings, or another process is packing the
            same part into it.
        DataError: for a manifest that cannot be read.
    """
    if fps <= 0 or short_side < 1 or not 1 <= quality <= 100 or window < 0 or shard_size < 1:
        raise ConfigError("pack: expected fps, short side and shard size above 0, quality 1 to 100 and window >= 0")
    if not 0 <= part[0] <= part[1] or part[1] < 1:
        raise ConfigError(f"--part {part[0]}/{part[1]}: expected i/n with 0 <= i <= n")
    if is_packed(path):
        raise ConfigError(f"{path}: these are shards already")
    if remote.is_url(out):
        raise ConfigError(f"--out {out}: shards are written to a folder of this machine; copy that folder there")
    manifest = Manifest.read(path, reads, config, labelled=False)
    table, _ = read_table(path, lambda name: True)
    if "id" not in table.column_names:  # the paths, of which they are made, are other ones in shards
        table = table.append_column("id", manifest.ids)
    classes = classes_path(path).read_bytes() if classes_path(path).is_file() else None
    digest = blake2b(repr(classes).encode(), digest_size=16)
    for name in table.column_names:
        digest.update(repr((name, table[name].to_pylist())).encode())
    packing = Packing(
        len(manifest), digest.hexdigest(), dict(reads), float(fps), short_side, quality, float(window), shard_size
    )
    with only_writer(out, f".part-{part[0] % part[1]}-{part[1]}"):
        return _pack(Packer(manifest, table, packing, out, config.timeout), classes, part, workers, progress)


def _pack(
    packer: Packer,
    classes: bytes | None,
    part: tuple[int, int],
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> PackReport:
    """See `pack`."""
    out, packing = packer.out, packer.packing
    _start_folder(out, packing, classes)
    mine = range(part[0] % part[1], packing.shards, part[1])
    todo = [shard for shard in mine if not table_path(out, shard).is_file()]
    packer.pack(todo, cores() if workers is None else workers, progress)
    report = _report(out, packing)
    text = json.dumps(report.as_json(), indent=1, ensure_ascii=False)
    write_atomically(out / REPORT_FILE, lambda file: file.write_text(text, encoding="utf-8"))
    return report


def _start_folder(out: Path, packing: Packing, classes: bytes | None) -> None:
    """Writes what tells the shards of `out`, as other parts may do at the same time. Raises `ConfigError` for others.

    Args:
        out: the folder.
        packing: what it is to hold.
        classes: content of the file of classes; None: there is none.
    """
    names = os.listdir(out) if out.is_dir() else []
    if FILE not in names:
        ours = {CLASSES_FILE} if classes is not None else set()
        foreign = [name for name in names if name not in ours and not (name[0] == "." and name.endswith(".tmp"))]
        if foreign or (out.exists() and not out.is_dir()):
            raise ConfigError(f"{out} exists and is no folder of shards; choose another --out")
        if classes is not None:
            write_atomically(out / CLASSES_FILE, lambda file: file.write_bytes(classes))
        write_atomically(out / FILE, packing.save)
    told = asdict(Packing.load(out))
    differing = [CALLED.get(key, key) for key, value in asdict(packing).items() if told[key] != value]
    if differing:
        raise ConfigError(
            f"{out} holds shards of other settings or of another manifest ({', '.join(differing)} differ); "
            "choose another --out, or delete it"
        )


def _report(out: Path, packing: Packing) -> PackReport:
    report = PackReport(str(out), packing.shards)
    for found in read_reports(out, packing):
        report.shards_done += 1
        for key in ("rows", "frames", "nbytes", "missing", "unreadable"):
            setattr(report, key, getattr(report, key) + found[key])
        report.examples = (report.examples + found["examples"])[:SHOWN]
    return report


@dataclass
class Packer:
    """Packs shards of one manifest.

    Args:
        manifest: the rows.
        table: their cells.
        packing: settings.
        out: folder of the shards.
        timeout: seconds that decoding one clip may take.
    """

    manifest: Manifest
    table: pa.Table
    packing: Packing
    out: Path
    timeout: float

    def __post_init__(self) -> None:
        self.columns = self.manifest.served()

    def pack(self, shards: Sequence[int], workers: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Writes shards, whose rows are packed by processes of their own; `progress` is told how many are done."""
        memory = max(MEMORY, free_memory() // (2 * max(1, workers)))  # a long video's pictures are many
        pool = Pool(self._pack_rows, workers, patience_for(self.timeout), memory=memory)
        rows = pool.map(row for shard in shards for row in self.packing.rows_of(shard))
        with closing(rows):
            for done, shard in enumerate(shards, start=1):
                self._write_shard(shard, rows)
                if progress:
                    progress(done, len(shards))

    def _write_shard(self, shard: int, packed: Iterator[Packed]) -> None:
        """Writes a shard's tar file, its index, and then its table, out of the next packed rows."""
        name, rows = name_of(shard), self.packing.rows_of(shard)
        records: list[tuple[bytes, bytes, int, int, float, int]] = []
        cells: list[dict[str, str]] = []
        report: dict[str, Any] = {"rows": len(rows), "frames": 0, "missing": 0, "unreadable": 0, "examples": []}

        def write(path: Path) -> None:
            with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for row, found in zip(rows, packed, strict=False):
                    key = key_of(row)
                    for member, packed_content, time in found.members:
                        content = memoryview(packed_content)
                        full = f"{key}.{member}"
                        place = (tar.offset + BLOCK, len(content), time, zlib.crc32(content))
                        records.append((key.encode(), full.encode(), *place))
                        entry = tarfile.TarInfo(full)
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
                        report["frames"] += member.endswith(".jpg")
                    prefix = f"{name}{MARK}{key}/"
                    cells.append({column: prefix + cell if cell else "" for column, cell in found.cells.items()})
                    report["missing"] += len(found.missing)
                    report["unreadable"] += len(found.unreadable)
                    report["examples"] = (report["examples"] + found.missing + found.unreadable)[:SHOWN]

        write_atomically(self.out / f"{name}.tar", write)
        index = np.array(records, INDEX)
        write_atomically(self.out / f"{name}.index.npy", partial(_save_array, index))
        report["nbytes"] = (self.out / f"{name}.tar").stat().st_size
        table = self._table(rows, cells).replace_schema_metadata({REPORT: json.dumps(report, ensure_ascii=False)})
        write_atomically(table_path(self.out, shard), lambda path: pa.parquet.write_table(table, path))

    def _table(self, rows: range, cells: Sequence[Mapping[str, str]]) -> pa.Table:
        table = self.table.slice(rows.start, len(rows))
        rates = [name for name in table.column_names if is_number(name) and name not in ("start", "end")]
        table = table.drop_columns(rates)  # each clip's own facts have them
        for column in self.columns:
            place = table.column_names.index(column)
            table = table.set_column(place, column, pa.array([c.get(column, "") for c in cells], pa.string()))
        return table

    def _pack_rows(self, rows: Sequence[int], turn: Turn) -> list[Packed]:
        return [self.pack_row(row, turn) for row in rows]

    def pack_row(self, index: int, turn: Turn) -> Packed:
        """Decodes and encodes all files of a row; `turn` is told which column it is at."""
        found = Packed()
        row = self.manifest.row(index)
        sources: dict[str, Facts] = {}
        for number, (column, names) in enumerate(self.columns.items()):
            source = next((row.sources[name] for name in names if row.sources[name] is not None), None)
            if source is None or source.path is None:
                continue
            if not exists(source.path):
                found.missing.append(absence(source.path))
                continue
            found.cells[column] = column
            if number in turn.lost:
                error = f"{source.path}: {turn.lost[number]}"
                sources[column] = Facts(errors={self.manifest.reads[name]: error for name in names})
                found.unreadable.append(error)
                continue
            turn.at(number)
            with open_clip(source.path, timeout=self.timeout, fps=row.rate(names)) as clip:
                watched = turn.watch(clip, number)
                sources[column] = self._pack_file(watched, row, source.path, column, names, found)
        turn.done()
        for name, source in row.sources.items():
            if source is not None and source.text is not None:
                found.members.append((f"{name}.txt", source.text.encode(), math.nan))
        cells = {name: self.table[name][index].as_py() for name in self.table.column_names}
        about = {name: cell for name, cell in cells.items() if name not in sources and cell is not None}
        facts = {**about, "sources": {column: asdict(facts) for column, facts in sources.items()}}
        content = json.dumps(facts, ensure_ascii=False, default=str).encode()
        found.members.insert(0, ("json", content, math.nan))
        return found

    def _pack_file(self, clip: Clip, row: Row, path: str, column: str, names: Sequence[str], found: Packed) -> Facts:
        facts = Facts()
        for reads in sorted({self.manifest.reads[name] for name in names}):
            members: list[tuple[str, bytes, float]] = []
            try:
                if not clip.has(reads):
                    continue
                if not facts.ends:
                    facts.duration = clip.duration
                    facts.start, facts.stop = self._span(row, clip)
                members = self._pack_one(clip, path, reads, column, facts)
                _check_size(path, max((len(content) for _, content, _ in members), default=0))
                facts.ends[reads] = clip.duration_of(reads)
            except (DataError, OSError) as error:
                facts.errors[reads] = str(error)
            except MemoryError as error:
                facts.errors[reads] = f"{path}: packing it takes too much memory: {error}"
            else:
                # what is pickled as a buffer is not copied on its way to the process that writes
                found.members += [(name, PickleBuffer(content), time) for name, content, time in members]
                continue
            if facts.errors[reads] not in found.unreadable:
                found.unreadable.append(facts.errors[reads])
        return facts

    def _pack_one(self, clip: Clip, path: str, reads: str, column: str, facts: Facts) -> list[tuple[str, bytes, float]]:
        """The members of what `reads` names."""
        if reads == Reads.FRAMES:
            facts.frame_rate = clip.frame_rate
            frames = packed_frames(clip, facts.start, facts.stop, self.packing)
            return [(f"{column}.{i:06d}.jpg", data, time) for i, (time, data) in enumerate(frames)]
        if reads == Reads.WAVEFORM:
            facts.sample_rate, facts.origin = clip.sample_rate, round(facts.start * RATE)
            return [(f"{column}.flac", packed_sound(clip, facts), math.nan)]
        facts.frame_rate = facts.frame_rate or clip.frame_rate
        if Path(path).is_dir():
            facts.payload = "npy"
            buffer = io.BytesIO()
            np.save(buffer, packed_levels(clip))
            content = buffer.getvalue()
        else:
            facts.payload = Path(path).suffix.lower().removeprefix(".")
            with open_regular(path) as file:
                _check_size(path, os.fstat(file.fileno()).st_size)
                content = file.read()
        return [(f"{column}.{facts.payload}", content, math.nan)]

    def _span(self, row: Row, clip: Clip) -> tuple[float, float]:
        """The seconds to keep."""
        start, duration = row.start or 0.0, clip.duration or 0.0
        if row.end is None:
            return max(0.0, start - BEFORE), duration + AFTER
        stop = max(row.end, start + self.packing.window) + AFTER
        return max(0.0, start - BEFORE), stop


def _check_size(path: str, size: int) -> None:
    """Raises `DataError` for a member of so many bytes that reading would refuse it."""
    if size > LARGEST:
        raise DataError(f"{path}: {size:,} bytes to pack, expected at most {LARGEST:,}: cut it into several files")


def packed_levels(clip: Clip) -> np.ndarray:
    """[C, N, H, W] grey levels of a folder of pictures, as uint8 if they fit, else uint16. Raises `DataError`."""
    _check_size(clip.name, math.prod(clip.shape))
    levels = np.empty(clip.shape, np.uint16)
    for first in range(0, clip.shape[1], PICTURES):
        part = range(first, min(first + PICTURES, clip.shape[1]))
        levels[:, first : part.stop] = clip.array(part)
    return levels.astype(np.uint8) if levels.max() <= np.iinfo(np.uint8).max else levels


def key_of(row: int) -> str:
    """The key of a row: its number in the manifest."""
    return f"{row:09d}"


def packed_frames(clip: Clip, start: float, stop: float, packing: Packing) -> Iterator[tuple[float, bytes]]:
    """(second from which it is shown, JPEG) of the frames shown from `start` to `stop`, never enlarged.

    Of a video with more than `packing.fps` frames a second those shown at multiples of 1 / fps, of others all.
    """
    rate, side = clip.frame_rate, min(packing.short_side, *clip.frames([start]).shape[1:3])
    end = clip.duration_of(Reads.FRAMES)
    if end is None:  # a still
        yield 0.0, encode_jpeg(clip.frames([0.0], side)[0], packing.quality)
        return
    until, last = max(start, min(stop, end)), -math.inf
    pieces = max(1, math.ceil((until - start) / AT_ONCE))
    bounds = np.linspace(start, until, pieces + 1)
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if rate is not None and rate > packing.fps * SAME_RATE:
            grid = np.arange(math.floor(low * packing.fps + 1e-6), math.floor(high * packing.fps + 1e-6) + 1)
            since, pictures = grid / packing.fps - 1e-6, clip.frames((grid / packing.fps).tolist(), side)
        else:
            # A file may end later than it says: AVI with B-frames shows them late.
            since, pictures = clip.frames_between(low, high if high < until else max(until, stop), side)
        for time, picture in zip(since.tolist(), pictures, strict=True):
            if time > last:
                last = time
                yield time, encode_jpeg(picture, packing.quality)


def packed_sound(clip: Clip, facts: Facts) -> bytes:
    """FLAC of the sound from `facts.origin` on: 16 kHz, mono, 16 bit."""
    end = clip.duration_of(Reads.WAVEFORM)
    stop = facts.stop if end is None else min(facts.stop, end)
    count = max(1, math.ceil(stop * RATE) - facts.origin)
    sound = clip.waveform(facts.origin / RATE, (facts.origin + count) / RATE, RATE)
    levels = np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        stream.codec_context.format = "s16"
        frame = av.AudioFrame.from_ndarray(levels[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for piece in [*_pieces(frame), None]:
            container.mux(stream.encode(piece))
    return buffer.getvalue()


def _pieces(frame: av.AudioFrame) -> Iterator[av.AudioFrame]:
    """The sound in frames of a size that the encoder takes."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE, frame_size=4096)
    yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _save_array(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)
