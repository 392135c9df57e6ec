"""Folders of models on the Hugging Face hub: downloading one, uploading one. Nothing but safetensors is taken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mbt_core.errors import DataError, MBTError

WEIGHTS = "model.safetensors"
FILES = ["config.json", "config.yaml", WEIGHTS, "README.md", "files/*"]
"""What a repository's folder is made of; nothing else is downloaded."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(source: str | Path, **options: Any) -> Path:
    """The folder that `source` names: a local one, which wins, or one downloaded to the hub's cache.

    Args:
        source: a folder, or ORG/NAME of a repository.
        options: of `huggingface_hub.snapshot_download`: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        DataError: if there is neither, it may not be read, or it has no safetensors.
        MBTError: if the hub cannot be reached.
    """
    path = Path(source)
    if isinstance(source, Path) or path.exists() or not HUB_ID.fullmatch(source):
        return path
    from huggingface_hub import snapshot_download

    with _explained(f"{source}: there is no such folder here, and", DataError):
        folder = Path(snapshot_download(source, allow_patterns=FILES, **options))
    if not (folder / WEIGHTS).exists():
        raise DataError(f"{source}: the repository has no {WEIGHTS}; weights in other formats are never loaded")
    return folder


def upload(
    folder: Path,
    repo: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload model",
    create_pr: bool = False,
) -> str:
    """Uploads a folder as one commit; makes the repository if there is none.

    Args:
        folder: its files of `FILES`.
        repo: ORG/NAME.
        token: of the hub; by default the one of ``hf auth login`` or ``HF_TOKEN``.
        private: for a new repository; None: as the organisation's default says.
        revision: branch; the main one by default.
        message: of the commit.
        create_pr: open a pull request instead.

    Returns:
        The address of the commit.

    Raises:
        MBTError: without a token, without the right to write, or if the hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    if not HUB_ID.fullmatch(repo):
        raise MBTError(f"{repo!r} is no repository of the hub; expected ORG/NAME")
    if token is None and get_token() is None:
        raise MBTError(f"{repo}: no token to write with; run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    with _explained(f"{repo}:", MBTError):
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=FILES,
            revision=revision,
            commit_message=message,
            create_pr=create_pr,
        )
    return str(commit.commit_url)


@contextmanager
def _explained(prefix: str, wrong: type[MBTError]) -> Iterator[None]:
    """Errors of the hub in one clear message each."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise wrong(f"{prefix} the repository on the hub is gated: ask for access on its page, then log in") from None
    except errors.RevisionNotFoundError:
        raise wrong(f"{prefix} the repository on the hub has no such revision") from None
    except errors.RepositoryNotFoundError:
        why = "the hub has no such repository, or it is private; then run `hf auth login`, or set HF_TOKEN"
        raise wrong(f"{prefix} {why}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        why = "the hub cannot be reached (or HF_HUB_OFFLINE is set), and nothing of it was downloaded before"
        raise MBTError(f"{prefix} {why}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; the token may not write here" if status in (401, 403) else ""
        raise MBTError(f"{prefix} the hub refuses (HTTP {status}){hint}") from None
    except OSError as error:
        raise MBTError(f"{prefix} the hub cannot be used: {error}") from None
    except Exception as error:
        # the clients of HTTP libraries have errors of their own, and these libraries change
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            raise
        raise MBTError(f"{prefix} the hub cannot be reached: {error or type(error).__name__}") from None
