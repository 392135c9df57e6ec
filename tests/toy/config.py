"""Settings of the anonymous modalities. Imports no torch."""

from typing import ClassVar

from pydantic import PositiveInt

from mbt_core.config.schema import Auto, ModalityConfig, PatchedConfig


class AlphaConfig(PatchedConfig):
    """A series of fixed length."""

    kind: str = "alpha"
    """The kind of modality."""
    channels: PositiveInt | Auto = 2
    """Channels of the series; ``auto``: the data's."""
    samples: PositiveInt = 13
    """Length of the series."""
    patch: PositiveInt = 4
    """Length of a patch."""


class FrozenConfig(AlphaConfig):
    """A series that goes through layers which are not trained."""

    kind: str = "frozen"
    """The kind of modality."""


class BetaConfig(PatchedConfig):
    """A picture of fixed size."""

    kind: str = "beta"
    """The kind of modality."""
    size: tuple[PositiveInt, PositiveInt] = (4, 6)
    """Rows and columns of the picture."""
    patch: tuple[PositiveInt, PositiveInt] = (2, 3)
    """Rows and columns of a patch."""


class GammaConfig(ModalityConfig):
    """A sequence of any length up to `longest`."""

    attached: ClassVar[tuple[str, ...]] = ("words",)
    kind: str = "gamma"
    """The kind of modality."""
    features: PositiveInt = 3
    """Values of an element."""
    longest: PositiveInt = 6
    """Length that longer sequences are cut to."""
    words: str | None = None
    """A file that belongs to the model."""
