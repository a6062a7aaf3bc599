"""Frozen settings: one place for a default, its domain, its search range and its identity.

A float or integer field that declares a :class:`Tunable` range is searchable, and may differ between the
lanes of one cohort; every other field is structural.
"""

import copy
import difflib
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from mmdistill.errors import ConfigError, Problem
from mmdistill.registry import unknown_name

# How JSON, which has no word for it, holds an infinite setting.
INFINITY = "Infinity"
_NO_NUMBER = "no_number"
# How alike a key of another table must be to be the one that was meant, and how many are named.
_ALIKE = 0.8
_MOST_KEYS = 3


class Settings(BaseModel):
    """Base of every settings object: frozen, no unknown keys, knows its digest."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="strings", validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_written_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would turn into a number: text and truth values."""
        if cls.model_fields[str(info.field_name)].annotation not in {int, float}:
            return value
        if isinstance(value, bool) or (isinstance(value, str) and value != INFINITY):
            raise PydanticCustomError(_NO_NUMBER, "a number is expected, without quotes")
        return value

    @property
    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify these settings."""
        return digest(self.as_json())

    def __hash__(self) -> int:
        return hash((type(self), self.digest))

    def as_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; infinity is the string ``"Infinity"``."""
        loaded: dict[str, Any] = json.loads(self.model_dump_json())
        return loaded


def digest(value: object) -> str:
    """Return 16 hexadecimal digits that identify a plain JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Range(Settings):
    """An interval to search, ends included; a grid divides it into ``steps`` values."""

    low: float
    high: float
    log: bool = False
    integer: bool = False
    steps: Annotated[int, Field(ge=2, le=1000)] | None = None

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"`low` must be below `high`, but is {self.low:g} against {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range needs `low` > 0, but `low` is {self.low:g}")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            ends = f"{self.low:g} and {self.high:g}"
            raise ValueError(f"an integer range needs whole ends, but they are {ends}")
        return self

    def at(self, unit: float) -> float | int:
        """Return the value at a position in [0, 1); never outside, whatever a logarithm is rounded to."""
        low, high = self.low, self.high + (1 if self.integer else 0)
        if self.log:
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = low + unit * (high - low)
        value = min(max(value, low), high)
        return min(int(value), int(self.high)) if self.integer else value

    def position(self, value: float) -> float:
        """Return where in [0, 1] a value lies; :meth:`at` gives the value back, up to rounding."""
        low, high = self.low, self.high + (1 if self.integer else 0)
        value += 0.5 if self.integer else 0.0
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def grid(self) -> list[float | int]:
        """Return ``steps`` values from end to end, evenly apart (in the logarithm); whole ones only once."""
        steps = self.steps or 2
        shares = [step / (steps - 1) for step in range(steps)]
        if self.log:
            values = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            values = [self.low + share * (self.high - self.low) for share in shares]
        values = [min(max(value, self.low), self.high) for value in values]
        return sorted({round(value) for value in values}) if self.integer else list(values)


@dataclass(frozen=True)
class Tunable:
    """Declares beside a field's default that it is searchable, and where: ``Annotated[float, Tunable(...)]``.

    Not a :class:`Range` itself, since pydantic would take a model in an annotation for the field's type.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @property
    def range(self) -> Range:
        """Return the interval."""
        return Range(low=self.low, high=self.high, log=self.log, integer=self.integer)


class Choice(Settings):
    """Alternatives to search; each may be any JSON value."""

    choice: Annotated[tuple[Any, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _has_no_repeats(self) -> Self:
        if len({json.dumps(option, sort_keys=True) for option in self.choice}) != len(self.choice):
            raise ValueError("the alternatives of `choice` must differ from each other")
        return self

    def at(self, unit: float) -> Any:
        """Return the alternative at a position in [0, 1)."""
        return self.choice[min(int(unit * len(self.choice)), len(self.choice) - 1)]

    def grid(self) -> list[Any]:
        """Return every alternative."""
        return list(self.choice)


Dimension = Range | Choice


def declared_ranges(settings: BaseModel, prefix: str = "") -> dict[str, Range]:
    """Return the ranges declared beside the defaults of the settings, by dotted path."""
    found: dict[str, Range] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        path = f"{prefix}{name}"
        for note in field.metadata:
            if isinstance(note, Tunable):
                found[path] = note.range
        for key, child in _children(value):
            found |= declared_ranges(child, f"{path}{key}.")
    return found


def _children(value: object) -> Iterator[tuple[str, BaseModel]]:
    if isinstance(value, BaseModel):
        yield "", value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            if isinstance(child, BaseModel):
                yield f".{key}", child


def edited(tree: Mapping[str, Any], edits: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a nested mapping with the values at some dotted paths replaced."""
    result: dict[str, Any] = json.loads(json.dumps(tree))
    for path, value in edits.items():
        place = result
        *parents, last = path.split(".")
        for parent in parents:
            below = place.setdefault(parent, {})
            if not isinstance(below, dict):
                raise ConfigError([Problem(path, f"`{parent}` is a value, not a table", "shorten the path")])
            place = below
        # A later edit may reach into a table that an earlier one gave, which is not ours.
        place[last] = copy.deepcopy(value)
    return result


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as dotted paths to its leaves; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the leaves of ``over`` laid on top; tables are merged, lists replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Return the dotted paths of all keys of some settings, those of the tables in them included."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        # What stands in lists and under free names has no path of its own.
        if get_origin(field.annotation) not in {dict, list, tuple}:
            for below in _models_in(field.annotation):
                yield from key_paths(below, f"{prefix}{name}.")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def problems_of(
    error: ValidationError, where: str, model: type[BaseModel], known: Collection[str] = ()
) -> list[Problem]:
    """Return what pydantic found in settings of a type, one problem per key, in our words.

    An unknown key is told what it may have meant: a key beside it, or one of the ``known`` dotted paths.
    """
    return [_problem(detail, where, model, known) for detail in error.errors()]


def _problem(detail: ErrorDetails, where: str, model: type[BaseModel], known: Collection[str]) -> Problem:
    key = ".".join(str(part) for part in detail["loc"]) or "(whole file)"
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        meant = _beside(detail["loc"], model) or _elsewhere(str(detail["loc"][-1]), value, known)
        mend = f"did you mean {' or '.join(f'`{one}`' for one in meant)}?" if meant else ""
        return Problem(f"{where}: {key}", "unknown key", mend or "remove it or correct its spelling")
    if detail["type"] == "missing":
        return Problem(f"{where}: {key}", "this key is required", "add it")
    message = detail["msg"].removeprefix("Value error, ")
    got = "" if isinstance(value, Mapping) else f" (got {value!r})"
    number = _number(value) if detail["type"] == _NO_NUMBER else None
    mend = "correct the value" if number is None else f"write {number}"
    return Problem(f"{where}: {key}", f"{message}{got}", mend)


def _beside(path: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """Return the key that stands where the last part of a path is unknown, and is most like it."""
    models = [model]
    for part in path[:-1]:
        fields = [one.model_fields[str(part)] for one in models if part in one.model_fields]
        # A number, a free name or an alternative of a union leads to no other settings.
        models = [below for field in fields for below in _models_in(field.annotation)] or models
    keys = [name for one in models for name in one.model_fields]
    return difflib.get_close_matches(str(path[-1]), keys, n=1)


def _elsewhere(key: str, value: object, known: Collection[str]) -> list[str]:
    """Return the uppermost of the paths that end like an unknown key, or like the first key below it."""
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
    ends = {path: path.rpartition(".")[2] for path in known}
    near = difflib.get_close_matches(key, sorted(set(ends.values())), n=1, cutoff=_ALIKE)
    found = [path for path, end in ends.items() if end in near]
    least = min((path.count(".") for path in found), default=0)
    return [path for path in found if path.count(".") == least][:_MOST_KEYS]


def _number(value: object) -> float | None:
    """Return the finite number that a text holds, if it does."""
    for kind in (int, float):
        try:
            number = kind(str(value))
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None


__all__ = [
    "Choice",
    "Dimension",
    "Range",
    "Settings",
    "Tunable",
    "declared_ranges",
    "digest",
    "edited",
    "flattened",
    "key_paths",
    "merged",
    "problems_of",
    "unknown_name",
]
