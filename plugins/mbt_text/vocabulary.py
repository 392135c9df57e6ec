"""From text to numbers of tokens and back: bytes, or a Hugging Face tokenizer file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mbt_core.errors import ConfigError


class Vocabulary(Protocol):
    """What tokens there are.

    Attributes:
        size: tokens are numbered from 0 to below it.
    """

    size: int

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any that mark its start or end."""

    def pieces(self, tokens: Sequence[int]) -> list[tuple[str, int]]:
        """Text for people to read, piece by piece, each with the number of tokens that it is of."""


class Bytes:
    """Every byte of UTF-8 is a token (ByT5, arXiv 2105.13626): no vocabulary is needed, no text is unknown."""

    size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def pieces(self, tokens: Sequence[int]) -> list[tuple[str, int]]:
        """One piece per character; bytes that make none are shown as U+FFFD."""
        found: list[tuple[str, int]] = []
        data, at = bytes(tokens), 0
        while at < len(data):
            lead = data[at]
            length = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            try:
                character = data[at : at + length].decode()
            except UnicodeDecodeError:
                character, length = "\ufffd", 1
            found.append((character, length))
            at += length
        return found


class TokenizerFile:
    """A ``tokenizer.json``, as the package ``tokenizers`` reads it.

    Raises:
        ConfigError: if the package is missing, or the file is missing or something else.
    """

    def __init__(self, path: str) -> None:
        if find_spec("tokenizers") is None:
            raise ConfigError(f"tokenizer {path} needs the package tokenizers: pip install 'mbt-fusion[text]'")
        from tokenizers import Tokenizer

        if not Path(path).is_file():
            raise ConfigError(f"tokenizer: {path}: there is no such file; expected a Hugging Face tokenizer.json")
        try:
            self.tokenizer: Any = Tokenizer.from_file(path)
        except Exception as error:  # the package raises bare ones
            raise ConfigError(f"tokenizer: {path}: no Hugging Face tokenizer.json: {error}") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.size = max(self.tokenizer.get_vocab().values(), default=-1) + 1  # some numbers may be of no token

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def pieces(self, tokens: Sequence[int]) -> list[tuple[str, int]]:
        """One piece per token, as the file spells it."""
        return [(self.tokenizer.id_to_token(token) or "\ufffd", 1) for token in tokens]


@lru_cache(maxsize=8)
def vocabulary(path: str | None) -> Vocabulary:
    """The vocabulary of a ``tokenizer.json``, or bytes; kept in each process."""
    return Bytes() if path is None else TokenizerFile(path)
