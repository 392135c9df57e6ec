"""Strict pydantic models, and validation whose errors name the key, what came, what was expected, the nearest key."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mbt_core.errors import ConfigError, nearest

Auto = Literal["auto"]
Stem = Literal["patch", "conv"]
Side = Annotated[PositiveInt, Field(le=8192)]
Sides = Side | tuple[Side, Side]
Count = Annotated[PositiveInt, Field(le=1_000_000)]
"""Of frames, samples of a patch and the like: what nobody needs is refused before memory is taken for it."""
Seconds = Annotated[PositiveFloat, Field(le=1e7)]
AUTO_PATCH = 16
AUTO_PATCHES = (4, 14)
"""The fewest and the most patches along a side of pictures of ``auto`` size."""
AUTO_TOKENS = 256
"""Most patches of a sample of such pictures, unless they are the fewest along a side."""
LARGEST_SAMPLE = 1 << 28
"""Most numbers that a sample may have."""
ModelT = TypeVar("ModelT", bound="StrictModel")


class StrictModel(BaseModel):
    """Every configuration: unknown keys are errors, and the text under a field is its help."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_assignment=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        types = _types(cls.model_fields[str(info.field_name)].annotation)
        if types & {int, float} and not types & {bool, Any} and _has_boolean(value):
            raise ValueError("expected a number, not a boolean")
        return value


class ModalityConfig(StrictModel):
    """What every kind of modality is configured by. Fields may be ``"auto"``: `Modality.fit` fills them from data."""

    of_weights: ClassVar[tuple[str, ...]] = ("patch", "size", "mean", "std")
    """Names of the fields that, left at ``"auto"``, are taken from the run whose weights training starts from."""
    attached: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that hold paths of files without which a model is nothing (a vocabulary): folders of runs
    and models hold copies of them. Such a field is a path as a string, or None."""
    of_preprocessor: ClassVar[tuple[str, ...]] = ("mean", "std")
    """Names of the fields that only the preprocessor needs: a model for preprocessed inputs is made without them."""
    kind: str
    """The kind of modality; the key's own name if not given."""

    def auto_fields(self) -> list[str]:
        """Names of the fields still at ``"auto"``."""
        return [name for name in type(self).model_fields if getattr(self, name) == "auto"]


class Scale(StrictModel):
    """What the numbers of a label are measured by: less `mean`, divided by `std`, each by its own."""

    mean: list[float]
    """Of each number over the training split."""
    std: list[PositiveFloat]
    """Standard deviation of each number over the training split; 1 for one that does not vary."""

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} numbers in mean, but {len(self.std)} in std")
        return self


class PatchedConfig(ModalityConfig):
    """What every kind has whose input is cut into patches."""

    of_weights: ClassVar[tuple[str, ...]] = ("stem", *ModalityConfig.of_weights)
    stem: Stem | Auto = "patch"
    """``patch``: each patch is projected linearly (ViT); ``conv``: convolutions and pools down to one token per patch,
    which learn more from few clips; ``auto``: that of the weights in `model.pretrained` (a pre-trained ViT's is
    ``patch``), without any ``conv``."""


class PictureConfig(PatchedConfig):
    """What every kind has whose input is pictures, scaled, cropped and cut into patches."""

    size: Sides | Auto = 224
    """Height and width of the input, a number or [height, width]; ``auto``: twice that of the training data's pictures,
    4 to 14 patches a side, and at most 256 patches in all; with an accelerator 14 a side."""
    patch: Sides | Auto = 16
    """Height and width of a patch, a number or [height, width]; ``auto``: that of the weights in `model.pretrained`,
    else 16."""
    short_side: Side | None = None
    """Length to which a picture's shorter side is scaled before the crop; not given: size * 256 / 224."""

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if "auto" in (self.size, self.patch):
            return self
        (height, width), (rows, columns) = self.sides, self.patch_sides
        if rows > height or columns > width:
            raise ValueError(f"patch {self.patch} is larger than size {self.size}")
        return self

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) of the input. Raises `ConfigError` while `size` is ``auto``."""
        return self._both("size", self.size)

    @property
    def patch_sides(self) -> tuple[int, int]:
        """(height, width) of a patch. Raises `ConfigError` while `patch` is ``auto``."""
        return self._both("patch", self.patch)

    @property
    def scaled_side(self) -> int:
        """Length of a scaled picture's shorter side."""
        return round(max(self.sides) * 256 / 224) if self.short_side is None else self.short_side

    def _both(self, field: str, side: Sides | Auto) -> tuple[int, int]:
        if side == "auto":
            raise ConfigError(f"{self.kind}: {field} is still 'auto'; give a number, or fit it to training data")
        return (side, side) if isinstance(side, int) else side

    def fitted(self, pictures: Iterable[tuple[int, int] | None], slices: int) -> dict[str, Any]:
        """What ``auto`` in `patch` and `size` comes to.

        Args:
            pictures: (height, width) of pictures of the training data, in pixels; None where it is not known.
            slices: patches of a sample along time.
        """
        found: dict[str, Any] = {"patch": AUTO_PATCH} if self.patch == "auto" else {}
        if self.size == "auto":
            patch = max(self._both("patch", found.get("patch", self.patch)))
            fewest, most = AUTO_PATCHES
            most = max(fewest, min(most, math.isqrt(AUTO_TOKENS // slices)))
            sides = sorted(min(picture) for picture in pictures if picture is not None)
            # a patch is to cover less of a small picture than of a large one
            count = 2 * sides[len(sides) // 2] // patch if sides else most
            found["size"] = patch * min(max(count, fewest), most)
        return found

    def largest(self) -> dict[str, Any]:
        """What ``auto`` in `size` comes to where work is cheap."""
        if self.size != "auto" or self.patch == "auto":
            return {}
        return {"size": AUTO_PATCHES[1] * max(self.patch_sides)}


def check_sample(numbers: float, settings: str) -> None:
    """For validators of a kind: raises `ValueError` if `settings` make samples of too many numbers."""
    if numbers > LARGEST_SAMPLE:
        raise ValueError(f"{settings} make samples of {numbers:,.0f} numbers, expected at most {LARGEST_SAMPLE:,}")


def _types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, those of its literals among them."""
    if parts := get_args(annotation):
        return set().union(*map(_types, parts))
    return {annotation if annotation is Any or isinstance(annotation, type) else type(annotation)}


def _has_boolean(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return any(map(_has_boolean, value)) if isinstance(value, (list, tuple)) else isinstance(value, bool)


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
        found: dict[str, list[Any]] = {}
        for item in error.errors():
            path, owner = _walk(model, item["loc"])
            where = ".".join(part for part in [prefix, *path] if part)
            found.setdefault(where, []).append((item, owner))
        # a union tells of every member it tried: what came further into one was meant to be that one
        ends = [where for where in found if not any(other.startswith(f"{where}.") for other in found)]
        raise ConfigError("\n".join(dict.fromkeys(_explain(where, found[where]) for where in ends))) from None


def _explain(where: str, found: list[Any]) -> str:
    item, owner = found[0]
    inner = item.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):  # already says its path
        return str(inner)
    where = where or "the configuration"
    came = _short(item["input"])
    if item["type"] == "extra_forbidden":
        known = list(owner.model_fields) if owner else []
        return f"{where}: unknown key.{nearest(item['loc'][-1], known)} Known here: {', '.join(sorted(known))}"
    if item["type"] == "missing":
        return f"{where}: missing, and it has no default"
    if inner is not None:
        return f"{where}: {inner} (got: {came})"
    first, *others = dict.fromkeys(_expected(item) for item, _ in found)
    message = " or ".join([first, *(other.removeprefix("input should be ") for other in others)])
    choices = [choice for item, _ in found for choice in _choices(item)]
    return f"{where}: {message}, got {came}.{nearest(item['input'], choices)}"


def _expected(item: Any) -> str:
    """Pydantic's message without how it failed to parse the value."""
    text: str = item["msg"] if item["type"] == "literal_error" else item["msg"].partition(",")[0]
    return text[0].lower() + text[1:]


def _choices(item: Any) -> list[str]:
    if item["type"] != "literal_error" or not isinstance(item["input"], str):
        return []
    return [part.strip(" '") for part in item["ctx"]["expected"].replace(" or ", ",").split(",")]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _walk(model: type[BaseModel], loc: Iterable[Any]) -> tuple[list[str], type[BaseModel] | None]:
    """The real keys of a pydantic location, and the model that owns the last one."""
    path: list[str] = []
    owner: type[BaseModel] | None = None
    current: Any = model
    for part in loc:
        members = _members(current)
        if len(members) > 1:  # pydantic names the member that it tried: no key
            current = next((member for member in members if _keyed(member)), None)
            continue
        current = members[0]
        owner = current if _is_model(current) else None
        path.append(str(part))
        if owner is not None:
            field = owner.model_fields.get(str(part))
            current = field.annotation if field else None
        else:
            current = next((a for a in reversed(get_args(current)) if a is not ...), None)
    return path, owner


def _members(annotation: Any) -> list[Any]:
    """The members of a union but for None, or the annotation itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not types.NoneType]
    return [annotation]


def _keyed(annotation: Any) -> bool:
    return _is_model(annotation) or get_origin(annotation) in (dict, list, tuple)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
