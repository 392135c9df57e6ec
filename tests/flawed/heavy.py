"""A configuration in a module that imports torch."""

import torch

from flawed.config import SoundConfig


class HeavyConfig(SoundConfig):
    kind: str = "heavyconfig"
    """The kind of modality."""
    size: int = torch.Size([1]).numel()
    """A number."""
