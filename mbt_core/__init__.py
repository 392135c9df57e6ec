"""An N-modality fusion framework around attention bottlenecks (MBT, arXiv 2107.00135).

Importing this package imports neither torch nor pydantic: every public name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "hookimpl": "plugins.hookspecs",
    "ModalitySpec": "plugins.hookspecs",
    "FusionSpec": "plugins.hookspecs",
    "DatasetSpec": "plugins.hookspecs",
    "RecipeSpec": "plugins.hookspecs",
    "CommandSpec": "plugins.hookspecs",
    "LoggerSpec": "plugins.hookspecs",
    "MBTError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "registry": "plugins",
    "ModalityConfig": "config.schema",
    "PatchedConfig": "config.schema",
    "Modality": "modality",
    "ModalityCard": "modality",
    "Picture": "modality",
    "Window": "modality",
    "Clip": "media",
    "Tokens": "modality.tokens",
    "Tokenizer": "modality.tokens",
    "PatchTokenizer": "modality.patch_tokenizer",
    "ConvTokenizer": "modality.conv_tokenizer",
    "make_tokenizer": "modality.conv_tokenizer",
    "MBTConfig": "config",
    "ModelConfig": "config",
    "Experiment": "config",
    "Fusion": "model",
    "MBT": "model",
    "Prediction": "model",
    "build": "pretrained",
    "cross_validate": "sweep.cross_validation",
    "Run": "run",
    "load": "run",
    "train": "run",
    "write_report": "analysis.report.write",
}

__all__ = [
    "MBT",
    "Clip",
    "CommandSpec",
    "ConfigError",
    "ConvTokenizer",
    "DataError",
    "DatasetSpec",
    "Experiment",
    "Fusion",
    "FusionSpec",
    "LoggerSpec",
    "MBTConfig",
    "MBTError",
    "Modality",
    "ModalityCard",
    "ModalityConfig",
    "ModalitySpec",
    "ModelConfig",
    "PatchTokenizer",
    "PatchedConfig",
    "Picture",
    "Prediction",
    "RecipeSpec",
    "Run",
    "Tokenizer",
    "Tokens",
    "Window",
    "build",
    "cross_validate",
    "hookimpl",
    "load",
    "make_tokenizer",
    "registry",
    "train",
    "write_report",
]

if TYPE_CHECKING:
    from mbt_core.analysis.report.write import write_report
    from mbt_core.config import Experiment, MBTConfig, ModelConfig
    from mbt_core.config.schema import ModalityConfig, PatchedConfig
    from mbt_core.errors import ConfigError, DataError, MBTError
    from mbt_core.media import Clip
    from mbt_core.modality import Modality, ModalityCard, Picture, Window
    from mbt_core.modality.conv_tokenizer import ConvTokenizer, make_tokenizer
    from mbt_core.modality.patch_tokenizer import PatchTokenizer
    from mbt_core.modality.tokens import Tokenizer, Tokens
    from mbt_core.model import MBT, Fusion, Prediction
    from mbt_core.plugins import registry
    from mbt_core.plugins.hookspecs import (
        CommandSpec,
        DatasetSpec,
        FusionSpec,
        LoggerSpec,
        ModalitySpec,
        RecipeSpec,
        hookimpl,
    )
    from mbt_core.pretrained import build
    from mbt_core.run import Run, load, train
    from mbt_core.sweep.cross_validation import cross_validate


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
