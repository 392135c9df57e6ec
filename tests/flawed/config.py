"""Settings of the sound kind, and some with a flaw."""

from functools import cache
from typing import Any

from pydantic import Field, PositiveInt, create_model

from mbt_core.config.schema import Auto, ModalityConfig


class SoundConfig(ModalityConfig):
    kind: str = "sound"
    """The kind of modality."""
    channels: PositiveInt | Auto = "auto"
    """Channels of the series; ``auto``: the data's."""
    samples: PositiveInt = 320
    """Length of the series."""
    patch: PositiveInt = 16
    """Length of a patch."""


class NoHelpConfig(SoundConfig):
    kind: str = "nohelp"
    """The kind of modality."""
    gain: float = 1.0


@cache
def __getattr__(name: str) -> Any:
    """``OtherConfig``: the sound one for the kind ``other``."""
    if not name.endswith("Config"):
        raise AttributeError(name)
    kind = name.removesuffix("Config").lower()
    return create_model(name, __base__=SoundConfig, kind=(str, Field(kind, description="The kind of modality.")))
