"""Reading and writing the small files of a run: atomic writes, and readers that never unpickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbt_core.errors import DataError, MBTError

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary sibling, then renames it to `path`: readers see the old file or the new one.

    Raises:
        MBTError: if it cannot be written (disk full, no permission); the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; some writers make private files
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        # safetensors reports a full disk as an error of its own
        if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
            reason = getattr(error, "strerror", None) or str(error)
            raise MBTError(f"{path}: cannot be written: {reason}. What was saved before is untouched") from error
        raise
    finally:
        with suppress(OSError):  # or it would hide the error above
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Raises `DataError` for a file that is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Raises `DataError` for a file that is missing, truncated or of another format (pickles are never loaded)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise DataError(f"{path}: no safetensors file, or a truncated one: {error}") from None
