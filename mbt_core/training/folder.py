"""A run's folder on disk."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbt_core.config import Experiment
from mbt_core.config.assets import copy_attached, find_attached, portable
from mbt_core.config.schema import validate
from mbt_core.config.settings import read_yaml, to_yaml
from mbt_core.distributed.launch import place
from mbt_core.errors import ConfigError, DataError, InUseError, MBTWarning
from mbt_core.io.files import locked, read_json, write_atomically
from mbt_core.version import __version__

if TYPE_CHECKING:  # the command line reads folders before it needs tables
    from mbt_core.data.manifest import Manifest

LOCK = ".training"
"""File of a run folder that the process which trains there holds locked."""
DATA, FILLED, SHARED = "data", "filled from the data:", "one file for several:"
"""What lines of ``config.yaml``'s header begin with: the digest of the rows, the settings that were left open, and
which instances of a kind read the same files (`mbt_core.data.instances`)."""
FINGERPRINT = "data.json"
"""File in the folder of the state: what tells whether the data are still those that the run was trained on."""


class RunFolder:
    """``runs/NAME/``: ``config.yaml``, ``model.safetensors`` + ``config.json`` (best), ``state/`` (last), logs.

    And ``files/``, where a modality's settings name some (`mbt_core.config.assets`).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @classmethod
    def named(cls, base: Path, name: str) -> RunFolder:
        """A new folder below `base`: NAME, or NAME-2, NAME-3 ... if that is taken.

        It is made at once, so that no run started at the same time takes it too; `release` it if nothing comes of it.
        Of several processes of a run the first one makes it, and tells the others.

        Raises:
            ConfigError: if it cannot be made.
        """
        first = place().rank == 0
        for number in range(1, 100_000):
            path = base / (name if number == 1 else f"{name}-{number}")
            if path.exists():
                continue
            try:
                if first:
                    path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfigError(f"{path}: cannot be made: {error.strerror}; give --out") from None
        raise ConfigError(f"{base}: too many runs named {name!r}; give --out")

    def release(self) -> None:
        """Removes the folder if it is empty."""
        with suppress(OSError):
            self.path.rmdir()

    @contextmanager
    def claim(self) -> Iterator[InUseError | None]:
        """Keeps other processes from training here; of several processes of a run the first one does.
        See `mbt_core.io.files.locked`.

        Yields:
            None; the error to raise if another process is training here.
        """
        if place().rank != 0:
            yield None
            return
        with locked(self.path / LOCK) as free:
            yield (
                None
                if free
                else InUseError(
                    f"another process is training in {self.path}; wait for it, stop it, or choose another --out"
                )
            )

    def check_unused(self) -> None:
        """Raises `ConfigError` if the folder holds anything."""
        if self.path.exists() and (not self.path.is_dir() or not all(map(is_temporary, self.path.iterdir()))):
            raise ConfigError(
                f"{self.path} exists and is not empty; go on with it by --resume {self.path}, or choose another --out"
            )

    def start(
        self, experiment: Experiment, command: str, asked: Experiment | None = None, data: Manifest | None = None
    ) -> None:
        """Creates the folder, writes ``config.yaml`` and copies the files that belong to the model.

        Args:
            experiment: resolved.
            command: that trains it.
            asked: the experiment before it was resolved.
            data: that it is trained on.

        Raises:
            ConfigError: if the folder holds anything.
        """
        self.check_unused()
        tree = portable(experiment)
        copy_attached(experiment, tree, self.path)
        lines = _provenance(command)
        if data is not None:
            from mbt_core.data.instances import as_note

            shared = as_note(data, {name: config.kind for name, config in experiment.modalities.items()})
            lines += [f"{DATA} {data.digest()}", *([f"{SHARED} {shared}"] if shared else [])]
        if asked is not None:
            lines.append(f"{FILLED} {', '.join(changed(portable(asked), tree)) or 'nothing'}")
        header = "".join(f"# {line}\n" for line in lines)
        write_atomically(self.config_file, lambda path: path.write_text(header + to_yaml(tree), encoding="utf-8"))
        if data is not None:
            self._note_fingerprint(data)

    def _note_fingerprint(self, data: Manifest) -> None:
        text = json.dumps(data.fingerprint(), indent=1, ensure_ascii=False)
        write_atomically(self.state / FINGERPRINT, lambda path: path.write_text(text, encoding="utf-8"))

    def warn_of_changed_rows(self, data: Manifest) -> None:
        """Which rows are held out depends on all of them: if some came or went, others may be than in training."""
        if data.unsplit and self.noted(DATA) not in (None, data.digest()):
            warnings.warn(
                f"{data.path}: its rows have changed since the training, which may have seen rows that are held out "
                "now; give them a column split",
                MBTWarning,
                stacklevel=4,
            )

    def accept(self, data: Manifest) -> None:
        """Notes that the run goes on with these data, whatever it was trained on before."""
        self._note_fingerprint(data)
        text = self.config_file.read_text(encoding="utf-8")
        noted = re.sub(rf"^# {DATA} \S+$", f"# {DATA} {data.digest()}", text, count=1, flags=re.MULTILINE)
        write_atomically(self.config_file, lambda path: path.write_text(noted, encoding="utf-8"))

    def changes(self, data: Manifest) -> list[str]:
        """In what the data differ from those that the run was trained on; empty also if that is not known.

        Raises:
            DataError: if what was noted of them cannot be read.
        """
        path = self.state / FINGERPRINT
        if not path.exists():  # of an earlier version
            noted = self.noted(DATA)
            return [] if noted in (None, data.digest()) else ["ids, labels or splits of its rows"]
        before, now = read_json(path), data.fingerprint()
        if not isinstance(before, dict) or not all(isinstance(value, str) for value in before.values()):
            raise DataError(f"{path}: not what is noted of a run's data; delete it to go on without")
        differing = [part for part in dict.fromkeys((*before, *now)) if before.get(part) != now.get(part)]
        if "rows" in differing:  # of other rows all else differs
            differing = [part for part in differing if part in ("rows", "classes") or part.startswith("split ")]
        return [_change(part, before.get(part, ""), now.get(part, "")) for part in differing]

    def rows(self, split: str) -> int | None:
        """How many rows a split had when the run began; None: not known."""
        with suppress(DataError, AttributeError, ValueError):
            return int(read_json(self.state / FINGERPRINT).get(f"split {split}", "").partition(" ")[0])
        return None

    def clean(self) -> None:
        """Removes what a killed process left half written."""
        for left in [*self.path.glob(".*.tmp"), *self.state.glob(".*.tmp")]:
            left.unlink(missing_ok=True)

    def experiment(self) -> Experiment:
        """The resolved experiment of the run.

        Raises:
            ConfigError: if this is no run folder, or its ``config.yaml`` is wrong.
            DataError: if a file that belongs to the model is gone or has changed.
        """
        if not self.path.is_dir():
            raise ConfigError(f"{self.path}: no such run folder")
        if not self.config_file.is_file():
            runs = sorted(path.parent.name for path in self.path.glob("*/config.yaml"))
            below = f"; runs in it: {', '.join(runs[:5])}{', ...' if len(runs) > 5 else ''}" if runs else ""
            raise ConfigError(f"{self.path} is no run folder: it has no config.yaml{below}")
        tree = find_attached(read_yaml(self.config_file), self.path)
        if isinstance(tree.get("data"), dict):  # of a version that held out no test rows: it has trained on them
            tree["data"].setdefault("test_fraction", 0.0)
        try:
            return validate(Experiment, tree)
        except ConfigError as error:
            raise ConfigError(f"{self.config_file}: {error}") from None

    def noted(self, begin: str) -> str | None:
        """The rest of the line of ``config.yaml``'s header that begins so (`DATA`, `FILLED`); None: there is none."""
        text = self.config_file.read_text(encoding="utf-8")
        found = re.search(rf"^# {re.escape(begin)} (\S.*)$", text, re.MULTILINE)
        return found[1] if found else None

    def write_bad_clips(self, failed: dict[str, str]) -> None:
        """Writes ``bad_clips.csv`` (id, error), if there are any."""
        import csv

        if not failed:
            return

        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["id", "error"])
                writer.writerows(sorted(failed.items()))

        write_atomically(self.path / "bad_clips.csv", write)


def is_temporary(path: Path) -> bool:
    """Whether this is a lock, or what a killed process left half written."""
    return path.name == LOCK or (path.name.startswith(".") and path.suffix == ".tmp")


def _change(part: str, before: str, now: str) -> str:
    """A part of the data's fingerprint that has changed, with the number of its rows if that has."""
    was, are = before.partition(" ")[0] or "none", now.partition(" ")[0] or "none"
    return part if was == are else f"{part} ({was} before, {are} now)"


def changed(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``KEY.PATH`` of the settings in which two trees differ."""
    found = []
    for key in dict.fromkeys((*one, *other)):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += changed(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def _provenance(command: str) -> list[str]:
    lines = [" ".join(command.split()), f"started {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"]
    versions = [f"mbt-fusion {__version__}", f"python {platform.python_version()}"]
    for package in ("torch", "torchaudio", "torchvision", "timm", "av", "lightning-fabric"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    lines.append(", ".join(versions))
    commit = _commit()
    return [*lines, f"commit {commit}"] if commit else lines


def _commit() -> str:
    """Commit of the working folder, if it is a git checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def command_line() -> str:
    """The command as the user gave it."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def changed_data(run: Path, data: Path, changes: Sequence[str]) -> str:
    """What to say of a run whose data are not those that it began with."""
    moved = ""
    if all(change.startswith("files of") for change in changes):
        moved = " (if the files are the same and only lie elsewhere, that is fine)"
    return (
        f"{run}: {data} is not what it was when the run began; what has changed: {', '.join(changes)}. Put it back, "
        f"start another run from these weights (--set model.pretrained={run}), or go on with what there is now{moved}: "
        f"mbt train --resume {run} --accept-changed-data"
    )
