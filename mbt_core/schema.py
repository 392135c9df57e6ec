"""Strict pydantic models, and validation whose errors name the key, what came, what was expected and the nearest key."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from mbt_core.errors import ConfigError, nearest

Auto = Literal["auto"]
ModelT = TypeVar("ModelT", bound="StrictModel")


class StrictModel(BaseModel):
    """Every configuration: unknown keys are errors, and the text under a field is its help."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_assignment=True
    )


class ModalityConfig(StrictModel):
    """What every kind of modality is configured by. Fields may be ``"auto"``: `Modality.fit` fills them from data."""

    kind: str
    """The kind of modality; the key's own name if not given."""

    def auto_fields(self) -> list[str]:
        """Names of the fields still at ``"auto"``."""
        return [name for name in type(self).model_fields if getattr(self, name) == "auto"]


def validate(model: type[ModelT], data: Any, prefix: str = "") -> ModelT:
    """Builds `model` from `data`.

    Raises:
        ConfigError: one line per wrong key or value, each with its full path.
    """
    if isinstance(data, model):
        return data
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(model, item, prefix) for item in error.errors())
        raise ConfigError("\n".join(lines)) from None


def _explain(model: type[BaseModel], item: Any, prefix: str) -> str:
    inner = item.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):  # already says its path
        return str(inner)
    # pydantic adds the tag of the tried member of a union to the location: keep real keys only
    path, owner = _walk(model, item["loc"])
    where = ".".join(p for p in [prefix, *path] if p) or "the configuration"
    came = _short(item["input"])
    if item["type"] == "extra_forbidden":
        known = list(owner.model_fields) if owner else []
        return f"{where}: unknown key.{nearest(path[-1], known)} Known here: {', '.join(sorted(known))}"
    if item["type"] == "missing":
        return f"{where}: missing, and it has no default"
    if inner is not None:
        return f"{where}: {inner} (came: {came})"
    message = item["msg"]
    message = message[0].lower() + message[1:]
    guess = ""
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        guess = nearest(item["input"], _choices(item["ctx"]["expected"]))
    return f"{where}: {message}, came {came}.{guess}"


def _choices(expected: str) -> Iterable[str]:
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _walk(model: type[BaseModel], loc: Iterable[Any]) -> tuple[list[str], type[BaseModel] | None]:
    """The real keys of a pydantic location, and the model that owns the last one."""
    path: list[str] = []
    owner: type[BaseModel] | None = model
    current: Any = model
    for part in loc:
        owner = current if isinstance(current, type) and issubclass(current, BaseModel) else None
        if owner is not None:
            path.append(str(part))
            field = owner.model_fields.get(str(part))
            current = _strip(field.annotation) if field else None
        elif get_origin(current) in (dict, Mapping, list, tuple):
            path.append(str(part))
            args = [a for a in get_args(current) if a is not ...]
            current = _strip(args[-1]) if args else None
    return path, owner


def _strip(annotation: Any) -> Any:
    """The member of a union that has keys of its own, or the annotation itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            if isinstance(member, type) and issubclass(member, BaseModel):
                return member
            if get_origin(member) in (dict, list, tuple):
                return member
    return annotation
