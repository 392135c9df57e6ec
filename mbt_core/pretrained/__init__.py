"""Pre-trained starts: weight files of other projects and earlier runs, made to fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mbt_core.config import MBTConfig
from mbt_core.errors import ConfigError
from mbt_core.model import MBT

__all__ = ["build"]


def build(config: MBTConfig | Mapping[str, Any]) -> MBT:
    """A model of `config`, fresh, or initialised from its ``pretrained``."""
    model = MBT(config)
    if model.config.pretrained is not None:
        raise ConfigError("model.pretrained: not supported yet")
    return model
