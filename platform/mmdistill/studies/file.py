"""The study file: TOML, read once, every problem reported at once.

Nothing here looks at data or knows of other arms; :mod:`mmdistill.studies.study` puts it together.
"""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from mmdistill.errors import ConfigError, Problem
from mmdistill.settings import Choice, Range, Settings, edited, problems_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,79}")
LARGEST_FILE = 1 << 20

Space = dict[str, Range | Choice | bool]


def _checked_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(
            "a name starts with a letter or digit and holds at most 80 of letters, digits, `.`, `_`, `+`, `@`, `-`"
        )
    return value


class ArmEntry(Settings):
    """One hand-written alternative: a recipe, edits of its run by dotted path, its own changes of the space."""

    name: str
    recipe: str
    edits: dict[str, Any] = {}
    space: Space = {}
    _name = field_validator("name")(_checked_name)


class SearchSettings(Settings):
    """The search of every arm: the same number of trials for all.

    Attributes:
        trials: proposals per arm.
        startup: of which this many are scrambled Sobol points, the same for all arms where spaces overlap.
        generation: proposals made together; a generation sees only those before it.
        sampler: what proposes after the start.
        top: best trials repeated on validation seeds.
        seeds: validation seeds.
        space: by dotted path an interval, alternatives, ``true`` (the declared range) or ``false`` (fixed);
            what is not named is searched over its declared range.
    """

    trials: Annotated[int, Field(ge=1, le=10_000)] = 12
    startup: Annotated[int, Field(ge=1)] = 8
    generation: Annotated[int, Field(ge=1)] = 4
    sampler: Literal["tpe", "random"] = "tpe"
    top: Annotated[int, Field(ge=1)] = 3
    seeds: Annotated[int, Field(ge=1)] = 3
    space: Space = {}


class ConfirmSettings(Settings):
    """Fresh paired seeds on which the winners are confirmed and then read on the test rows."""

    pairs: Annotated[int, Field(ge=1, le=1000)] = 10


class Contrast(Settings):
    """A planned comparison; the family of all of them shares one error rate (Holm)."""

    question: Annotated[str, Field(min_length=1)]
    arm: str
    against: str


class Resources(Settings):
    """Where orders run.

    Attributes:
        workers: 0 runs an order inside its Tune actor; more start a Ray Train worker group of that size.
        device: ``auto`` asks for a GPU where the cluster has one.
        gpus: GPUs per worker when there are any; may be a fraction.
        concurrent: orders at once; 0 means as many as the CPUs allow.
        lanes: most runs that train together; part of the identity of a study.
    """

    workers: Annotated[int, Field(ge=0, le=64)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: Annotated[float, Field(gt=0, le=8)] = 1.0
    concurrent: Annotated[int, Field(ge=0)] = 0
    lanes: Annotated[int, Field(ge=1, le=1024)] = 16


class StudyFile(Settings):
    """Everything a study file may say."""

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    run: dict[str, Any]
    arms: Annotated[tuple[ArmEntry, ...], Field(min_length=1)]
    designs: tuple[dict[str, Any], ...] = ()
    search: SearchSettings = SearchSettings()
    confirm: ConfirmSettings = ConfirmSettings()
    contrasts: tuple[Contrast, ...] = ()
    reference: str | None = None
    margin: Annotated[float, Field(gt=0)] = 0.005
    resources: Resources = Resources()
    _name = field_validator("name")(_checked_name)

    @model_validator(mode="after")
    def _names_each_arm_once(self) -> Self:
        names = [arm.name.casefold() for arm in self.arms]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"arms must have different names, but {', '.join(repeated)} stands twice")
        return self


def read_study_file(path: Path, edits: Sequence[str] = ()) -> StudyFile:
    """Return the study in a TOML file with ``key=value`` edits laid on top.

    Raises:
        ConfigError: with every problem of the file.
    """
    tree = _parsed(path)
    where = str(path)
    tree = edited(tree, dict(_edit(text) for text in edits))
    try:
        return StudyFile.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(problems_of(error, where)) from error


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError([Problem(str(path), "there is no such study file", "check the path")])
    if path.stat().st_size > LARGEST_FILE:
        raise ConfigError([Problem(str(path), "a study file is at most 1 MiB", "give another file")])
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), f"not UTF-8 at byte {error.start}", "save it as UTF-8")]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Problem(str(path), f"not TOML: {error}", "mend the syntax there")]) from error


def _edit(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
        raise ConfigError([Problem(f"edit {text!r}", "an edit is `key=value`", "e.g. search.trials=4")])
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word is a string: shells eat the quotes that TOML would want.
        return key, value
