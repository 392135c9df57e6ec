"""A folder of shards as a manifest: which rows there are, and in which shard each is.

``FOLDER/pack.json`` says how it was packed (`Packing`). Shard number s holds the rows from s * `shard_size` on in
``shard-000000.tar`` (see `mbt_core.media.shards`), and their cells in ``shard-000000.parquet``. That is written last:
a shard is there when it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from mbt_core.errors import DataError
from mbt_core.io import remote
from mbt_core.io.files import LARGEST_TABLE, open_regular, read_json, read_parquet, write_atomically

FILE = "pack.json"
REPORT_FILE = "report.json"
CLASSES_FILE = "classes.json"
VERSION = 2
MOST_ROWS, MOST_SHARDS = 10**9, 10**6
"""More are refused: lists as long as a damaged ``pack.json`` says would not fit into memory."""
REPORT = b"report"
"""Key of a shard's report in its table's metadata."""


@dataclass(frozen=True)
class Packing:
    """How a manifest is packed: what ``pack.json`` holds.

    Args:
        rows: of the manifest.
        digest: of all cells of the manifest, and of its file of classes.
        reads: modality -> what it reads.
        fps: most frames a second.
        short_side: of the frames, in pixels; smaller ones keep theirs.
        quality: of the JPEGs, 1 to 100.
        window: seconds kept from the start of each row's span, also past its end.
        shard_size: rows of a shard.
        version: of the format.
    """

    rows: int
    digest: str
    reads: dict[str, str]
    fps: float
    short_side: int
    quality: int
    window: float
    shard_size: int
    version: int = VERSION

    @property
    def shards(self) -> int:
        """Number of shards."""
        return math.ceil(self.rows / self.shard_size)

    def rows_of(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_size, min(self.rows, (shard + 1) * self.shard_size))

    def save(self, path: Path) -> None:
        """Writes ``pack.json``."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Packing:
        """Raises `DataError` if the folder was not packed by this version."""
        return cls.checked(read_json(folder / FILE), folder / FILE)

    @classmethod
    def checked(cls, found: Any, path: Path | str) -> Packing:
        """What ``pack.json`` at `path` says. Raises `DataError`."""
        names = {field.name: field.type for field in fields(cls)}
        if not isinstance(found, dict) or found.get("version") != VERSION or set(found) != set(names):
            raise DataError(f"{path}: not of version {VERSION} of packed shards; pack again")
        whole = all(isinstance(found[name], int) and found[name] > 0 for name in ("rows", "shard_size"))
        if not whole:
            raise DataError(f"{path}: expected rows and shard_size above 0")
        packing = cls(**found)
        if packing.rows > MOST_ROWS or packing.shards > MOST_SHARDS:
            raise DataError(f"{path}: at most {MOST_ROWS:,} rows in {MOST_SHARDS:,} shards are read; pack again")
        return packing


def is_packed(folder: Path) -> bool:
    """Whether this is a folder of shards."""
    return (folder / FILE).is_file()


def located(path: str | Path) -> Path:
    """Where `path` is on this machine; of a folder of shards that a URL names, the copy of its small files.

    Copied are ``pack.json``, ``classes.json`` and the shards' tables, once: these are asked for anew when ``pack.json``
    or ``report.json`` has changed.

    Raises:
        ConfigError: for a URL that cannot be read here.
        DataError: if there are no shards.
    """
    if not remote.is_url(path):
        return Path(path).expanduser()
    folder = remote.copy_of(path)
    url = remote.url_of(str(folder))
    if url is not None:
        _copy(url, folder)
    return folder


def _copy(url: str, folder: Path) -> None:
    """Brings the copy of a folder of shards up to date. Raises `DataError`."""
    (content,) = remote.fetch([f"{url}/{FILE}"])
    if content is None:
        raise DataError(f"{url}: no {FILE} there; expected a folder of shards, as mbt data pack makes them")
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{url}/{FILE}: not valid JSON: {error}") from None
    packing = Packing.checked(told, f"{url}/{FILE}")
    others = (CLASSES_FILE, REPORT_FILE)
    fetched = remote.fetch([f"{url}/{name}" for name in others], optional=True)
    small = {**dict(zip(others, fetched, strict=True)), FILE: content}
    changed = any(found != _content(folder / name) for name, found in small.items())
    tables = [table_path(folder, shard) for shard in range(packing.shards)]
    wanted = [table for table in tables if changed or not table.is_file()]
    for table, found in zip(wanted, remote.fetch([f"{url}/{table.name}" for table in wanted]), strict=True):
        _put(table, found)
    for name, found in small.items() if changed else ():  # last: until then they tell that something has changed
        _put(folder / name, found)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _put(path: Path, content: bytes | None) -> None:
    """Makes the file what it is where it was copied from; None: there is none."""
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, lambda file: file.write_bytes(content))


def name_of(shard: int) -> str:
    """``shard-000000``"""
    return f"shard-{shard:06d}"


def table_path(folder: Path, shard: int) -> Path:
    """The table of a shard's rows."""
    return folder / f"{name_of(shard)}.parquet"


def read_shards(folder: Path, wanted: Callable[[str], bool]) -> tuple[pa.Table, list[str]]:
    """The rows of all shards in the manifest's order: see `mbt_core.data.tables.read_table`.

    Raises:
        DataError: if shards are missing, or do not belong together.
    """
    packing = Packing.load(folder)
    missing = [shard for shard in range(packing.shards) if not table_path(folder, shard).is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {packing.shards} shards are missing, e.g. {name_of(missing[0])}; "
            "go on with mbt data pack"
        )
    tables: list[pa.Table] = []
    names: list[str] = []
    for shard in range(packing.shards):
        path = table_path(folder, shard)
        if path.is_symlink():
            raise DataError(f"{path}: a link, expected a file")
        try:
            if not names:
                with open_regular(path, LARGEST_TABLE, follow=False) as file:
                    names = pa.parquet.read_schema(file).names
            table = read_parquet(path, [n for n in names if wanted(n)] or names[:1])
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(f"{path}: malformed: {' '.join(str(error).split())[:300]}") from None
        if table.num_rows != len(packing.rows_of(shard)):
            raise DataError(f"{path}: {table.num_rows} rows, expected {len(packing.rows_of(shard))}")
        tables.append(table.replace_schema_metadata(None))
    try:
        return pa.concat_tables(tables, promote_options="permissive"), names
    except pa.ArrowException as error:
        raise DataError(f"{folder}: the shards' tables do not fit together: {error}") from None


def read_reports(folder: Path, packing: Packing) -> list[dict[str, Any]]:
    """The reports of the shards that are there."""
    found = []
    for shard in range(packing.shards):
        path = table_path(folder, shard)
        if path.is_file():
            found.append(json.loads(pa.parquet.read_schema(path).metadata[REPORT]))
    return found
