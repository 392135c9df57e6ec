"""An N-modality fusion framework around attention bottlenecks (MBT, arXiv 2107.00135).

Importing this package imports neither torch nor pydantic: every public name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "hookimpl": "hookspecs",
    "ModalitySpec": "hookspecs",
    "FusionSpec": "hookspecs",
    "DatasetSpec": "hookspecs",
    "RecipeSpec": "hookspecs",
    "CommandSpec": "hookspecs",
    "LoggerSpec": "hookspecs",
    "MBTError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "registry": "plugins",
    "ModalityConfig": "schema",
    "PatchedConfig": "schema",
    "Modality": "modality",
    "ModalityCard": "modality",
    "Picture": "modality",
    "Window": "modality",
    "Clip": "media",
    "Tokens": "tokens",
    "Tokenizer": "tokens",
    "PatchTokenizer": "patch",
    "ConvTokenizer": "conv_stem",
    "make_tokenizer": "conv_stem",
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
    "write_report": "report.write",
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
    from mbt_core.config import Experiment, MBTConfig, ModelConfig
    from mbt_core.conv_stem import ConvTokenizer, make_tokenizer
    from mbt_core.errors import ConfigError, DataError, MBTError
    from mbt_core.hookspecs import (
        CommandSpec,
        DatasetSpec,
        FusionSpec,
        LoggerSpec,
        ModalitySpec,
        RecipeSpec,
        hookimpl,
    )
    from mbt_core.media import Clip
    from mbt_core.modality import Modality, ModalityCard, Picture, Window
    from mbt_core.model import MBT, Fusion, Prediction
    from mbt_core.patch import PatchTokenizer
    from mbt_core.plugins import registry
    from mbt_core.pretrained import build
    from mbt_core.report.write import write_report
    from mbt_core.run import Run, load, train
    from mbt_core.schema import ModalityConfig, PatchedConfig
    from mbt_core.sweep.cross_validation import cross_validate
    from mbt_core.tokens import Tokenizer, Tokens


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
