"""Pre-trained starts: weight files of other projects and earlier runs, made to fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mbt_core.config import MBTConfig
from mbt_core.config.schema import validate
from mbt_core.model import MBT
from mbt_core.pretrained.follow import follow_weights
from mbt_core.pretrained.report import InitReport
from mbt_core.pretrained.scenic import convert_scenic, load_scenic_params
from mbt_core.pretrained.start import initialise

__all__ = ["InitReport", "build", "build_with_report", "convert_scenic", "initialise", "load_scenic_params"]


def build(config: MBTConfig | Mapping[str, Any]) -> MBT:
    """A fresh model, then initialised from the configuration's ``pretrained`` (a source, or one per modality).

    What is ``auto`` and follows from the source is filled first: ``backbone``, ``pool``, ``fusion.layer``, patches.

    Raises:
        ConfigError: for a source that does not fit the model, or that nobody knows.
        DataError: for a file that is not what it should be.
    """
    return build_with_report(config)[0]


def build_with_report(config: MBTConfig | Mapping[str, Any]) -> tuple[MBT, InitReport]:
    """As `build`, with what each part of the model starts from."""
    parsed = validate(MBTConfig, config)
    followed, modalities = follow_weights(parsed, parsed.modalities)
    model = MBT(followed.model_copy(update={"modalities": modalities}))
    return model, initialise(model, model.config.pretrained)
