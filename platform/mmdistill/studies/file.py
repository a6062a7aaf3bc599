"""The study file: TOML, read once, every problem reported at once.

Nothing here looks at data or knows of other arms; :mod:`mmdistill.studies.study` puts it together.
"""

import datetime
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from mmdistill.errors import ConfigError, Problem
from mmdistill.pipeline.parts import Parts
from mmdistill.redaction import redacted
from mmdistill.settings import Choice, Range, Settings, edited, flattened, key_paths, problems_of
from mmdistill.training.race import RaceSettings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=-]{0,79}")
NAME_RULE = "a name starts with a letter or digit and holds at most 80 of letters, digits and `. _ + @ = -`"
SECRET_RULE = "a name must not look like a secret, which is hidden wherever it is written"
LARGEST_FILE = 1 << 20
# Runs that train together where nothing else is known.
PLANNED_LANES = 16
MOST_LANES = 1024

# Which alternative of a union pydantic took; no key is ever written like this.
_TAGS = ("<range>", "<choice>", "<flag>")
_DIMENSION_KEYS = {*Range.model_fields, *Choice.model_fields}


def _tag(value: object) -> str | None:
    if isinstance(value, Choice) or (isinstance(value, Mapping) and "choice" in value):
        return "<choice>"
    if isinstance(value, Range | Mapping):
        return "<range>"
    return "<flag>" if isinstance(value, bool) else None


def _by_path(space: Any, prefix: str = "") -> Any:
    """Return a space by dotted path, however its paths were written: TOML nests keys without quotes."""
    if not isinstance(space, Mapping):
        return space
    flat: dict[str, Any] = {}
    for key, value in space.items():
        is_nested = isinstance(value, Mapping) and value and not _DIMENSION_KEYS & set(value)
        if is_nested and all(isinstance(below, Mapping | bool) for below in value.values()):
            flat |= _by_path(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


_Searched = Annotated[
    Annotated[Range, Tag("<range>")]
    | Annotated[Choice, Tag("<choice>")]
    | Annotated[StrictBool, Tag("<flag>")],
    Discriminator(
        _tag,
        custom_error_type="space",
        custom_error_message="give `{ low, high }`, `{ choice = [...] }`, true or false",
    ),
]
Space = Annotated[dict[str, _Searched], BeforeValidator(_by_path)]


def broken_name_rule(name: str) -> str | None:
    """Return the rule that a name breaks: of its form, or that it would be hidden where it is written."""
    if not NAME.fullmatch(name):
        return NAME_RULE
    return None if redacted(name) == name else SECRET_RULE


def _checked_name(value: str) -> str:
    rule = broken_name_rule(value)
    if rule is not None:
        raise ValueError(rule)
    return value


class ArmEntry(Settings):
    """One alternative.

    Attributes:
        recipe: what it starts from.
        edits: of its run, by dotted path.
        space: its changes of the search space.
        controls: names of controls to add beside it; true means all that apply.
        frozen: name of the arm whose winner's settings it takes instead of a search of its own: the frozen
            reading of a knock-out, biased towards that arm.
        base: arm it was generated from.
        change: in words, how it differs from its base.
    """

    name: str
    recipe: str
    edits: dict[str, Any] = Field(default_factory=dict)
    space: Space = Field(default_factory=dict)
    controls: StrictBool | tuple[str, ...] = ()
    frozen: str | None = None
    base: str | None = None
    change: str | None = None
    _name = field_validator("name")(_checked_name)

    @field_validator("edits")
    @classmethod
    def _by_dotted_path(cls, value: dict[str, Any]) -> dict[str, Any]:
        # TOML makes tables of dotted keys without quotes: they must not replace what is beside them.
        return flattened(value)


class SearchSettings(Settings):
    """The search of every arm: the same number of trials for all.

    Attributes:
        trials: proposals per arm.
        startup: proposals of the first generation; before ``tpe`` and ``cmaes`` these are scrambled Sobol
            points, the same for all arms where spaces overlap.
        generation: proposals made together; a generation sees only those before it.
        sampler: what proposes: ``tpe`` (tree-structured Parzen estimator) or ``cmaes`` (CMA-ES; alternatives
            are drawn at random) after the start; or from the first trial on ``random`` (independent),
            ``qmc`` (scrambled Sobol), ``halton`` (scrambled Halton), the same for all arms where spaces
            overlap; or ``grid``: every combination of alternatives and of the ``steps`` of intervals.
        top: best trials repeated on validation seeds.
        seeds: validation seeds.
        racing: how the lanes of a generation race on their validation curves; none by default.
        space: by dotted path an interval, alternatives, ``true`` (the declared range) or ``false`` (fixed);
            what is not named is searched over its declared range.
    """

    trials: Annotated[int, Field(ge=1, le=10_000)] = 12
    startup: Annotated[int, Field(ge=1)] = 8
    generation: Annotated[int, Field(ge=1)] = 4
    sampler: Literal["tpe", "cmaes", "random", "qmc", "halton", "grid"] = "tpe"
    top: Annotated[int, Field(ge=1)] = 3
    seeds: Annotated[int, Field(ge=1)] = 3
    racing: RaceSettings | None = None
    space: Space = Field(default_factory=dict)


class ConfirmSettings(Settings):
    """Fresh paired seeds on which the winners are confirmed and then read on the test rows.

    Attributes:
        pairs: per fold; a study that is run again may have more, never fewer.
    """

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
        cpus: CPUs that one order, or one worker of it, asks for.
        patience: seconds without a step of training after which an order counts as hung and is ended.
        lanes: most runs that train together; ``auto`` measures what is best when the study begins. Part of
            the identity of a study.
    """

    workers: Annotated[int, Field(ge=0, le=64)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: Annotated[float, Field(gt=0, le=8)] = 1.0
    concurrent: Annotated[int, Field(ge=0)] = 0
    cpus: Annotated[float, Field(gt=0, le=256)] = 1.0
    patience: Annotated[float, Field(ge=1)] = 300.0
    lanes: int | Literal["auto"] = PLANNED_LANES

    @field_validator("lanes", mode="plain")
    @classmethod
    def _is_a_number_of_runs(cls, value: Any) -> Any:
        # One rule in place of one message per alternative.
        if value == "auto" or (type(value) is int and 1 <= value <= MOST_LANES):
            return value
        raise ValueError(f'give a whole number from 1 to {MOST_LANES}, or "auto"')

    @field_validator("gpus")
    @classmethod
    def _is_a_fraction_or_whole(cls, value: float) -> float:
        if value > 1 and value % 1:
            raise ValueError("more than one GPU must be a whole number of them")
        return value


class StudyFile(Settings):
    """Everything a study file may say.

    Attributes:
        prices: what it costs to acquire a privileged modality, by its name, > 0; for the price list.
        price_unit: what prices are counted in, e.g. ``EUR per subject``.
    """

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
    prices: dict[str, Annotated[float, Field(gt=0, strict=True)]] = Field(default_factory=dict)
    price_unit: str = ""
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
    where = str(path)
    tree = _edited(_parsed(path), edits)
    try:
        return StudyFile.model_validate(tree)
    except ValidationError as error:
        problems = problems_of(error, where, StudyFile, known_keys())
        raise ConfigError([_without_tags(problem) for problem in problems]) from error


@cache
def known_keys() -> tuple[str, ...]:
    """Return the dotted paths of all keys of a study file, but those of lists and of terms."""
    return (*key_paths(StudyFile), *key_paths(Parts, "run."))


def sound_part(path: Path, edits: Sequence[str] = ()) -> StudyFile | None:
    """Return what a file with wrong keys would be without them, so that the rest of it can be judged.

    None where the file is no TOML, or where what is wrong cannot be left out.
    """
    try:
        tree = _edited(_parsed(path), edits)
    except ConfigError:
        return None
    # Each round takes out what pydantic named; checks over whole tables come in a later round.
    for _ in range(3):
        try:
            return StudyFile.model_validate(tree)
        except ValidationError as error:
            for detail in error.errors():
                _leave_out(tree, [part for part in detail["loc"] if part not in _TAGS])
    return None


def _leave_out(tree: dict[str, Any], path: Sequence[str | int]) -> None:
    place: Any = tree
    for part in path[:-1]:
        place = place.get(part) if isinstance(place, dict) else None
    if path == ["name"]:
        tree["name"] = "unnamed"
    elif path and isinstance(place, dict):
        place.pop(path[-1], None)


def _parsed(path: Path) -> dict[str, Any]:
    problem = _unreadable(path)
    if problem:
        raise ConfigError([problem])
    try:
        tree = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        rule, mend = f"not readable: {error.strerror}", "check its permissions"
    except UnicodeDecodeError as error:
        rule, mend = f"not UTF-8 at byte {error.start}", "save it as UTF-8"
    except (ValueError, RecursionError) as error:
        # Beside its own error, tomllib lets through those of over-long integers and of deep nesting.
        rule, mend = f"not TOML: {error}", "mend the syntax there"
    else:
        dates = [
            Problem(f"{path}: {key}", "a date is no setting", "put it in quotes") for key in _dates(tree)
        ]
        if dates:
            raise ConfigError(dates)
        return tree
    raise ConfigError([Problem(str(path), rule, mend)])


def _unreadable(path: Path) -> Problem | None:
    if path.is_dir():
        return Problem(str(path), "a folder is no study file", "give the TOML file")
    if not path.is_file():
        return Problem(str(path), "there is no such study file", "check the path")
    if path.stat().st_size > LARGEST_FILE:
        return Problem(str(path), "a study file is at most 1 MiB", "give another file")
    return None


def _dates(value: Any, key: str = "") -> Iterator[str]:
    """Return the keys whose values are dates or times, which nothing here can be."""
    if isinstance(value, datetime.date | datetime.time):
        yield key
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from _dates(below, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for place, below in enumerate(value):
            yield from _dates(below, f"{key}.{place}")


def _without_tags(problem: Problem) -> Problem:
    where = problem.where
    for tag in _TAGS:
        where = where.replace(f".{tag}", "")
    return problem._replace(where=where)


def _edited(tree: dict[str, Any], edits: Sequence[str]) -> dict[str, Any]:
    problems: list[Problem] = []
    for text in edits:
        try:
            key, value = _edit(text)
            tree = edited(tree, {key: value})
        except ConfigError as error:
            problems += [problem._replace(where=f"edit {text!r}") for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return tree


def _edit(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
        raise ConfigError(
            [Problem(f"edit {text!r}", "an edit is `path.to.setting=value`", "e.g. search.trials=4")]
        )
    try:
        found = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        # A bare word is a string: shells eat the quotes that TOML would want.
        return key, value
    return key, value if any(True for _ in _dates(found)) else found
