"""From settings to the arrays of one fold.

Axes: N rows, D numbers of a modality, T regression targets.
"""

import dataclasses
import difflib
import functools
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

import mmdistill.data.datasets  # noqa: F401  (files every data set in the registry)
from mmdistill.data.card import Card
from mmdistill.data.dataset import DATASETS, Dataset
from mmdistill.data.folds import FoldSettings, counted, fold_problems, parts_of, strata_of
from mmdistill.data.samples import SPLITS, Booleans, Floats, Labels, Samples, Strings, check
from mmdistill.errors import ConfigError, DataError, InputError, Problem, UnknownNameError
from mmdistill.registry import unknown_name
from mmdistill.settings import Settings, digest, problems_of

# Below this share of its mean a spread is rounding of float32, not signal.
_SMALLEST_SPREAD = 1e-7


class DataSettings(Settings):
    """What a run learns from.

    Attributes:
        dataset: name of a registered data set, or path of a ``card.json`` or of its folder.
        options: settings of a registered data set.
        student: modalities available at test time.
        privileged: modalities available at training time only.
        folds: how rows are divided.
        label_fraction: share of the training rows that keep their label, in (0, 1].
    """

    dataset: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = Field(default_factory=dict)
    student: Annotated[tuple[str, ...], Field(min_length=1)]
    privileged: tuple[str, ...] = ()
    folds: FoldSettings = FoldSettings()
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _names_each_modality_once(self) -> Self:
        for key in ("student", "privileged"):
            names: tuple[str, ...] = getattr(self, key)
            if len(set(names)) != len(names):
                raise ValueError(f"`{key}` must name each modality once, but is {list(names)}")
        both = sorted(set(self.student) & set(self.privileged))
        if both:
            raise ValueError(f"a modality is either `student` or `privileged`, but {', '.join(both)} is both")
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the names of the student's and the privileged modalities, in this order."""
        return (*self.student, *self.privileged)

    @property
    def fold_count(self) -> int:
        """Return how many folds have a test part; 1 for the official split."""
        return self.folds.fold_count


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Rows of one part of a fold.

    Attributes:
        inputs: float32 [N, D] per modality, standardised with mean and spread of the fold's training rows.
        labels: int64 classes [N], -1 = no label; or float32 targets [N, T] in their own units.
        groups: group of each row [N].
        rows: identity of each row [N].
    """

    inputs: dict[str, Floats]
    labels: Labels
    groups: Strings
    rows: Strings

    def __len__(self) -> int:
        return len(self.rows)


@dataclasses.dataclass(frozen=True, eq=False)
class FoldData:
    """One fold.

    Attributes:
        test: None unless it was asked for.
        fingerprint: identifies the data set as a whole, the scheme and the fold, with or without test rows.
        target_scale: of a regression, mean and spread of each target over the training rows, float32 [T]; of
            all of them, so that it is one for all arms and label fractions.
    """

    card: Card
    train: Part
    validation: Part
    test: Part | None
    fingerprint: str
    fold: int
    target_scale: tuple[Floats, Floats] | None


def open_dataset(settings: DataSettings, where: str = "data") -> Dataset:
    """Return the data set that the settings name, without reading its rows.

    Raises:
        UnknownNameError: if the name is neither registered nor looks like a path.
        DataError: if there is nothing under the path.
        ConfigError: if the options do not fit the data set.
    """
    name, options = settings.dataset, settings.options
    if name not in DATASETS:
        if not _is_path(name):
            raise UnknownNameError([_unknown_dataset(name, f"{where}.dataset")])
        if not Path(name).exists():
            mend = "give the path of a card.json or of its folder"
            raise DataError([Problem(f"{where}.dataset", f"there is nothing under the path {name!r}", mend)])
        name, options = "table", {**options, "path": name}
    try:
        return DATASETS[name].model_validate(options)
    except ValidationError as error:
        raise ConfigError(problems_of(error, f"{where}.options", DATASETS[name])) from error


def check_data(settings: DataSettings, where: str) -> list[Problem]:
    """Return everything that would stop a study over these settings, test rows included.

    ``where`` is the place of the settings, e.g. ``"study.toml: data"``; keys are put behind it.
    """
    try:
        dataset = open_dataset(settings, where)
        card = dataset.card()
        problems = _name_problems(settings, card, where)
        if problems:
            return problems
        samples = _loaded(dataset, dataset.version(), True, settings.modalities, settings.dataset)
    except InputError as error:
        return list(error.problems)
    settings = settings.model_copy(update={"folds": counted(samples, settings.folds)})
    problems = fold_problems(samples, settings.folds, f"{where}.folds")
    return problems or _fraction_problems(settings, samples, where)


def with_counted_folds(settings: DataSettings) -> DataSettings:
    """Return the settings with the number of folds that only the rows can tell; they must be sound."""
    if settings.folds.scheme != "leave_one_group_out":
        return settings
    dataset = open_dataset(settings)
    samples = _loaded(dataset, dataset.version(), True, settings.modalities, settings.dataset)
    return settings.model_copy(update={"folds": counted(samples, settings.folds)})


def training_rows(settings: DataSettings) -> int:
    """Return how many training rows the smallest fold has; the settings must be sound."""
    dataset = open_dataset(settings)
    samples = _loaded(dataset, dataset.version(), True, settings.modalities, settings.dataset)
    folds = counted(samples, settings.folds)
    return min(int((parts_of(samples, folds, fold) == "train").sum()) for fold in folds.opened_folds)


def open_fold(settings: DataSettings, fold: int, *, with_test: bool = False) -> FoldData:
    """Return one fold with the student's and the privileged modalities.

    Without ``with_test`` no test row leaves this function; from the official split of a table their features
    are not even read. The label fraction is not applied here: see ``labelled_mask``.

    Raises:
        InputError: if the settings, the files or the rows are not as they must be.
    """
    allowed = range(settings.fold_count) if with_test else settings.folds.opened_folds
    if fold not in allowed:
        rule = f"`fold` must be in 0 to {allowed[-1]}{' with its test rows' * with_test}, but is {fold}"
        raise ConfigError([Problem("data.folds", rule, "choose another fold or raise `count`")])
    dataset = open_dataset(settings)
    problems = _name_problems(settings, dataset.card(), "data")
    if problems:
        raise ConfigError(problems)
    needs_all = with_test or settings.folds.scheme != "official"
    samples = _loaded(dataset, dataset.version(), needs_all, settings.modalities, settings.dataset)
    problems = fold_problems(samples, settings.folds, "data.folds", only=fold)
    if problems:
        raise DataError(problems)
    parts_N = parts_of(samples, settings.folds, fold)
    scales = {name: _scale(values[parts_N == "train"]) for name, values in samples.inputs.items()}
    return FoldData(
        card=samples.card,
        train=_part(samples, scales, parts_N == "train"),
        validation=_part(samples, scales, parts_N == "val"),
        test=_part(samples, scales, parts_N == "test") if with_test else None,
        fingerprint=digest([samples.fingerprint, settings.folds.identity, fold]),
        fold=fold,
        target_scale=_scale(samples.labels[parts_N == "train"]) if samples.labels.ndim == 2 else None,
    )


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".json") or Path(name).exists()


def _unknown_dataset(name: str, where: str) -> Problem:
    problem = unknown_name("data set", name, where, list(DATASETS))
    return problem._replace(mend=f"{problem.mend}; or give the path of a card.json")


def _name_problems(settings: DataSettings, card: Card, where: str) -> list[Problem]:
    known = list(card.modalities)
    problems = []
    for key in ("student", "privileged"):
        for name in getattr(settings, key):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                mend = f"did you mean {near[0]!r}? known" if near else "known"
                rule = f"{card.name!r} has no modality {name!r}"
                problems.append(Problem(f"{where}.{key}", rule, f"{mend}: {', '.join(known)}"))
    return problems


def _fraction_problems(settings: DataSettings, samples: Samples, where: str) -> list[Problem]:
    """Return whether some fold has a class of which the fraction is less than one row."""
    problems: list[Problem] = []
    for fold in settings.folds.opened_folds:
        is_known_N = (parts_of(samples, settings.folds, fold) == "train") & samples.is_labelled
        kinds, counts = np.unique(strata_of(samples.labels[is_known_N]), return_counts=True)
        rarest = int(counts.argmin())
        if settings.label_fraction * counts[rarest] < 1:
            kind = "class" if samples.card.task == "classification" else "tercile"
            rule = (
                f"{settings.label_fraction:g} of the training rows must be at least one row of each {kind}, "
                f"but {kind} {kinds[rarest]} has {counts[rarest]} in fold {fold}"
            )
            mend = f"use at least {1 / counts[rarest]:.3g}"
            problems.append(Problem(f"{where}.label_fraction", rule, mend))
    return problems[:1]


# Many orders of one process open the same fold; `_version` makes a changed file a new entry.
@functools.lru_cache(maxsize=4)
def _loaded(
    dataset: Dataset, _version: str, with_test: bool, modalities: tuple[str, ...], where: str
) -> Samples:
    samples = dataset.samples(with_test=with_test, modalities=modalities)
    problems = check(samples, where, SPLITS if with_test else SPLITS[:2])
    if problems:
        raise DataError(problems)
    for values in samples.inputs.values():
        values.flags.writeable = False
    return samples


def _scale(values_ND: Floats) -> tuple[Floats, Floats]:
    """Return mean and spread per column; the spread of a constant column is 1."""
    exact_ND = values_ND.astype(np.float64)
    mean_D, spread_D = exact_ND.mean(axis=0), exact_ND.std(axis=0)
    spread_D[spread_D <= _SMALLEST_SPREAD * np.abs(mean_D)] = 1.0
    return mean_D.astype(np.float32), spread_D.astype(np.float32)


def _part(samples: Samples, scales: dict[str, tuple[Floats, Floats]], keep_N: Booleans) -> Part:
    return Part(
        inputs={
            name: (values[keep_N] - scales[name][0]) / scales[name][1]
            for name, values in samples.inputs.items()
        },
        labels=samples.labels[keep_N],
        groups=samples.groups[keep_N],
        rows=samples.rows[keep_N],
    )
