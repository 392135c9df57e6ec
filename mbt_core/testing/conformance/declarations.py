"""Checks of what a plugin declares: classes, imports, help, card, and the configuration that `fit` returns."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from mbt_core.config.schema import ModalityConfig
from mbt_core.errors import DataError
from mbt_core.media.reads import Reads
from mbt_core.modality import Modality, ModalityCard
from mbt_core.plugins import registry
from mbt_core.testing.conformance.case import NAME, Case, Fault

HEAVY = "torch"
NEEDED = ("title", "units", "shape", "normalisation")
"""Fields of a card that nobody can do without."""


def check_contract(case: Case) -> None:
    """The classes are what the spec says, with nothing left abstract"""
    kind, cls, config = case.kind, case.modality_class, registry().config_class(case.kind)
    if not (isinstance(cls, type) and issubclass(cls, Modality)):
        raise Fault(f"{case.spec.modality} is no subclass of mbt_core.Modality")
    if cls.__abstractmethods__:
        raise Fault(f"{cls.__name__} does not implement {', '.join(sorted(cls.__abstractmethods__))}")
    if getattr(cls, "kind", None) != kind:
        raise Fault(f"{cls.__name__}.kind is {getattr(cls, 'kind', None)!r}, but the spec says {kind!r}")
    if not (isinstance(config, type) and issubclass(config, ModalityConfig)):
        raise Fault(f"{case.spec.config} is no subclass of mbt_core.ModalityConfig")
    default = config.model_fields["kind"].default
    if default != kind:
        raise Fault(f'{config.__name__}.kind is {default!r} by default; write kind: str = "{kind}"')
    instance = cls(NAME, case.given)
    if (instance.name, instance.config) != (NAME, case.given):
        raise Fault(f"{cls.__name__}.__init__ does not keep name and config; call super().__init__(name, config)")
    reads = getattr(instance, "reads", None)
    if reads not in tuple(Reads):
        raise Fault(f"reads is {reads!r}, expected one of {', '.join(Reads)}")


def check_imports(case: Case) -> None:
    """Importing the hooks and the configuration imports no torch, so that `mbt --help` stays fast"""
    plugin = registry().manager.get_plugin(registry().modalities[case.kind].plugin)
    hooks = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    for module in dict.fromkeys((hooks, case.spec.config.partition(":")[0])):
        if module == "__main__":  # registered by hand, in a notebook
            continue
        done = subprocess.run(
            [sys.executable, "-c", f"import sys, {module}; print({HEAVY!r} in sys.modules)"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            check=False,
        )
        if done.returncode:
            raise Fault(f"{module} cannot be imported: {done.stderr.strip().rpartition(chr(10))[2]}")
        if done.stdout.strip().endswith("True"):
            raise Fault(
                f"importing {module} imports {HEAVY}; keep hooks and configuration in a module that does not, and name "
                "the modality by its import path in ModalitySpec"
            )


def check_help(case: Case) -> None:
    """Every field of the configuration has a text under it, which is its help"""
    without = list(_undocumented(type(case.given)))
    if without:
        raise Fault(f"no help for {', '.join(without)}; write a docstring under each field")


def _undocumented(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if not (field.description or "").strip():
            yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _undocumented(field.annotation, f"{prefix}{name}.")


def check_card(case: Case) -> None:
    """The card says title, units, shape and normalisation"""
    card = getattr(case.modality_class, "card", None)
    if not isinstance(card, ModalityCard):
        raise Fault(f"card is {card!r}, expected a ModalityCard")
    empty = [name for name, value in asdict(card).items() if name in NEEDED and not value]
    if empty:
        raise Fault(f"the card's {', '.join(empty)} {'are' if len(empty) > 1 else 'is'} empty")


def check_fit(case: Case) -> None:
    """`fit` fills every field at "auto", twice the same, skips unreadable clips, and the result survives being saved"""
    given = copy.deepcopy(case.given)
    fitted = case.config
    if type(fitted) is not type(given):
        raise Fault(f"fit returns a {type(fitted).__name__}, expected a {type(given).__name__}")
    if case.given != given:
        raise Fault("fit changes the configuration it is given; return a new one (config.model_copy(update=...))")
    left = fitted.auto_fields()
    if left:
        raise Fault(f"fit leaves {', '.join(left)} at 'auto'")
    changed = _differences(case.fit(copy.deepcopy(given)), fitted) or _differences(
        case.fit(copy.deepcopy(fitted)), fitted
    )
    if changed:
        raise Fault(f"fit gives another {', '.join(changed)} when it is called again")
    lost = _differences(type(fitted).model_validate_json(fitted.model_dump_json()), fitted)
    if lost:
        raise Fault(f"{', '.join(lost)} of the fitted configuration is another one after saving and loading")
    try:
        case.fit(copy.deepcopy(given), [case.files[0].with_stem("unreadable")])
    except DataError as error:
        raise Fault(
            f"fit fails at one clip that cannot be read ({error}); leave out clips of which reading raises DataError, "
            "and raise it yourself only if none is left"
        ) from error


def _differences(one: Any, two: Any) -> list[str]:
    return [name for name in type(two).model_fields if getattr(one, name) != getattr(two, name)]
