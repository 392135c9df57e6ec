"""Messages for wrong configurations: the key's path, what came, what was expected, the nearest."""

from typing import Any, Literal

import pytest
from pydantic import Field, PositiveInt, field_validator, model_validator

from mbt_core.config.schema import Auto, ModalityConfig, StrictModel, validate
from mbt_core.errors import ConfigError, nearest, unknown


class Inner(StrictModel):
    depth: int = 4
    """Number of blocks."""
    act: Literal["gelu", "relu"] = "gelu"

    @model_validator(mode="after")
    def _even(self) -> "Inner":
        if self.depth % 2:
            raise ValueError("depth must be even")
        return self


class Outer(StrictModel):
    needed: str
    steps: PositiveInt | Auto | None = "auto"
    sides: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    inner: Inner = Field(default_factory=Inner)
    named: str | Inner = "default"
    by_name: dict[str, Inner] = Field(default_factory=dict)
    kinds: Literal["one", "two"] | dict[str, Literal["one", "two"]] = "one"
    rates: list[float] = Field(default_factory=list)
    word: str = "good"

    @field_validator("word")
    @classmethod
    def _good(cls, value: str) -> str:
        if value == "bad":
            raise ValueError("not a good word")
        if value == "worse":
            raise ConfigError("somewhere.else: says its own path")
        return value


OUTER = "by_name, inner, kinds, named, needed, rates, sides, steps, word"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nedded": 1}, f"nedded: unknown key. Did you mean 'needed'? Known here: {OUTER}"),
        ({"xyz": 1}, f"xyz: unknown key. Known here: {OUTER}"),
        ({3: 1}, "3: keys should be strings, got 3."),
        ({"inner": {"dpeth": 1}}, "inner.dpeth: unknown key. Did you mean 'depth'? Known here: act, depth"),
        ({"by_name": {"a": {"actt": 1}}}, "by_name.a.actt: unknown key. Did you mean 'act'? Known here: act, depth"),
        ({"named": {"dept": 1}}, "named.dept: unknown key. Did you mean 'depth'? Known here: act, depth"),
        ({"steps": "many"}, "steps: input should be a valid integer or 'auto', got 'many'."),
        ({"steps": "Auto"}, "steps: input should be a valid integer or 'auto', got 'Auto'. Did you mean 'auto'?"),
        ({"steps": 0}, "steps: input should be greater than 0 or 'auto', got 0."),
        ({"steps": 2.5}, "steps: input should be a valid integer or 'auto', got 2.5."),
        ({"sides": [1, "x"]}, "sides.1: input should be a valid integer, got 'x'."),
        ({"sides": [1]}, "sides.1: missing, and it has no default"),
        ({"sides": "x"}, "sides: input should be a valid integer or a valid tuple, got 'x'."),
        ({"inner": {"act": "glue"}}, "inner.act: input should be 'gelu' or 'relu', got 'glue'. Did you mean 'gelu'?"),
        ({"inner": {"depth": 3}}, "inner: depth must be even (got: {'depth': 3})"),
        ({"inner": 7}, "inner: input should be a valid dictionary or instance of Inner, got 7."),
        (
            {"kinds": "tow"},
            "kinds: input should be 'one' or 'two' or a valid dictionary, got 'tow'. Did you mean 'two'?",
        ),
        ({"kinds": {"a": "onne"}}, "kinds.a: input should be 'one' or 'two', got 'onne'. Did you mean 'one'?"),
        ({"rates": [1, float("nan")]}, "rates.1: input should be a finite number, got nan."),
        ({"rates": "x" * 100}, f"rates: input should be a valid list, got '{'x' * 76}...."),
        ({"word": "bad"}, "word: not a good word (got: 'bad')"),
        ({"word": "worse"}, "somewhere.else: says its own path"),
        ({"needed": None}, "needed: input should be a valid string, got None."),
    ],
)
def test_messages(given, message):
    with pytest.raises(ConfigError) as error:
        validate(Outer, {"needed": "", **given})
    assert str(error.value) == message


def test_every_wrong_key_has_its_line_and_the_prefix():
    with pytest.raises(ConfigError) as error:
        validate(Outer, {"inner": {"depth": "x", "act": "relv"}, "steps": -1}, "part")
    assert str(error.value).splitlines() == [
        "part.needed: missing, and it has no default",
        "part.steps: input should be greater than 0 or 'auto', got -1.",
        "part.inner.depth: input should be a valid integer, got 'x'.",
        "part.inner.act: input should be 'gelu' or 'relu', got 'relv'. Did you mean 'relu'?",
    ]


@pytest.mark.parametrize("given", [[], "text", 3, None])
def test_something_else_than_a_mapping(given):
    with pytest.raises(ConfigError) as error:
        validate(Outer, given)
    message = f"the configuration: input should be a valid dictionary or instance of Outer, got {given!r}."
    assert str(error.value) == message


def test_what_is_right_stays():
    built = validate(Outer, {"needed": "a", "steps": "12", "sides": [2, 3], "by_name": {"b": {"depth": 2}}})
    assert (built.steps, built.sides, built.by_name["b"].depth) == (12, (2, 3), 2)
    assert validate(Outer, built) is built
    with pytest.raises(ValueError, match="greater than 0"):
        built.steps = -1
    assert Inner.model_fields["depth"].description == "Number of blocks."


def test_booleans_are_no_numbers_where_they_are_not_asked_for():
    class Config(StrictModel):
        count: int | None = None
        share: float | dict[str, float] = 0.5
        size: Literal[1, 2] = 1
        flag: bool | float = False
        options: dict[str, Any] = Field(default_factory=dict)

    for given in ({"count": True}, {"share": False}, {"share": {"a": True}}, {"size": True}):
        with pytest.raises(ConfigError, match="expected a number, not a boolean"):
            validate(Config, given)
    built = validate(Config, {"count": "1", "share": "1e-3", "flag": True, "options": {"a": True}})
    assert (built.count, built.share, built.flag, built.options) == (1, 0.001, True, {"a": True})
    with pytest.raises(ValueError, match="not a boolean"):
        built.count = True


def test_fields_left_to_the_data():
    class Config(ModalityConfig):
        seconds: float | Auto = "auto"
        rate: int | Auto = 5
        shape: Any = (1, 2)

    assert Config(kind="a").auto_fields() == ["seconds"]
    assert Config(kind="a", seconds=1, rate="auto").auto_fields() == ["rate"]


def test_nearest_and_unknown():
    assert nearest("botleneck", ["bottleneck", "late"]) == " Did you mean 'bottleneck'?"
    assert nearest("zzz", ["bottleneck", "late"]) == ""
    assert unknown("thing", 3, ["b", "a"]) == "unknown thing '3'. Known: a, b"
    assert unknown("thing", "x", []) == "unknown thing 'x'. Known: none"
