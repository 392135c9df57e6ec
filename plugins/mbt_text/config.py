"""Settings of the modality ``text``. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, field_validator

from mbt_core.config.schema import Auto, ModalityConfig
from mbt_core.errors import ConfigError


class TextConfig(ModalityConfig):
    """A text: a cell of the manifest's column NAME, or a file that its column ``NAME.path`` names: a .txt file, or
    subtitles (.srt, .vtt) cut to the window."""

    attached: ClassVar[tuple[str, ...]] = ("tokenizer",)
    kind: str = "text"
    """The kind of modality."""
    max_length: Annotated[int, Field(ge=2, le=1_000_000)] | Auto = "auto"
    """Most tokens of a text, with the one that ends it; the rest is cut off. ``auto``: what nine of ten texts fit into,
    at most 256."""
    tokenizer: str | None = None
    """A Hugging Face ``tokenizer.json`` (needs the extra ``text``); not given: every byte of UTF-8 is a token. A
    relative path is kept as an absolute one; a run has a copy of the file."""
    seconds: PositiveFloat | None = None
    """Length of the window of subtitles; null: all of the row's span."""
    token_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a token is left out in training; the positions of the others stay."""

    @field_validator("tokenizer")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return None if value is None else str(Path(value).expanduser().absolute())

    @property
    def length(self) -> int:
        """Most tokens of a text. Raises `ConfigError` while `max_length` is ``auto``."""
        if self.max_length == "auto":
            raise ConfigError(f"{self.kind}: max_length is still 'auto'; give a number, or fit it to training data")
        return self.max_length
