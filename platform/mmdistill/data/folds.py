"""Which rows train, choose and test; which training rows keep their label.

Axes: N rows, S strata, G groups, F folds.
"""

from typing import Annotated, Literal, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from mmdistill.data.samples import Booleans, Integers, Labels, Samples, Strings, has_label
from mmdistill.errors import DataError, Problem
from mmdistill.randomness import numpy_generator
from mmdistill.settings import Settings

# More folds than this are no folds; a group each is another matter.
_MOST_FOLDS = 50
# Of the groups that are not left out, one in so many validates.
_GROUP_PARTS = 5
_HELD_OUT = -1


class FoldSettings(Settings):
    """How rows are divided.

    Attributes:
        scheme: "official" keeps the split of the data set (one fold); "stratified" and "grouped" divide all
            labelled rows into ``count`` folds with equal shares of each class; "grouped" keeps groups whole;
            "leave_one_group_out" makes a fold of every group.
        count: folds; fold i is the test part, and 1/count of the other rows is the validation part (a fifth
            of them where a fold is a single group). Leaving one group out, it is the number of groups and
            need not be given.
        seed: of the division; the same for every run that is to be compared.
        tuning: ``nested`` searches inside every fold; ``fixed_holdout`` once, on rows that are kept for
            tuning and are in no test fold; ``shared`` once, in fold 0, whose training rows are test rows of
            other folds: stamped.
        holdout: with ``fixed_holdout``, one part in so many is kept for tuning (groups stay whole); it is
            also what the other folds validate on.
    """

    scheme: Literal["official", "stratified", "grouped", "leave_one_group_out"] = "official"
    count: Annotated[int, Field(ge=2, le=1000)] = 5
    seed: Annotated[int, Field(ge=0)] = 0
    tuning: Literal["nested", "fixed_holdout", "shared"] = "nested"
    holdout: Annotated[int, Field(ge=2, le=50)] = 5

    @model_validator(mode="after")
    def _tunes_in_folds_there_are(self) -> Self:
        if self.scheme == "official" and self.tuning != "nested":
            raise ValueError(
                f"`tuning` = {self.tuning!r} needs folds, but the official split is a single one"
            )
        if self.scheme in {"stratified", "grouped"} and self.count > _MOST_FOLDS:
            raise ValueError(f"`count` must be at most {_MOST_FOLDS} (got {self.count})")
        return self

    @property
    def fold_count(self) -> int:
        """Return how many folds have a test part."""
        return 1 if self.scheme == "official" else self.count

    @property
    def has_holdout(self) -> bool:
        """Return whether rows are kept for tuning only; they make the fold with the index ``count``."""
        return self.tuning == "fixed_holdout"

    @property
    def keeps_groups(self) -> bool:
        """Return whether groups stay whole."""
        return self.scheme in {"grouped", "leave_one_group_out"}

    @property
    def opened_folds(self) -> range:
        """Return every fold that can be opened, the one for tuning only included."""
        return range(self.fold_count + self.has_holdout)

    @property
    def search_folds(self) -> tuple[int, ...]:
        """Return the folds in which hyperparameters are searched."""
        return tuple(dict.fromkeys(self.tuned_in(fold) for fold in range(self.fold_count)))

    def tuned_in(self, fold: int) -> int:
        """Return the fold whose search the winner of a fold with a test part comes from."""
        return {"nested": fold, "fixed_holdout": self.count, "shared": 0}[self.tuning]

    @property
    def identity(self) -> list[str | int]:
        """Return what of these settings changes a fold."""
        if self.scheme == "official":
            return ["official"]
        kept: list[str | int] = ["holdout", self.holdout] if self.has_holdout else []
        return [self.scheme, self.count, self.seed, *kept]


class Rows(Protocol):
    """Rows of a training part."""

    @property
    def labels(self) -> Labels:
        """Return int64 classes [N] with -1 for none, or float32 targets [N, T]."""
        ...

    @property
    def groups(self) -> Strings:
        """Return the group of each row [N]."""
        ...


def parts_of(samples: Samples, folds: FoldSettings, fold: int) -> Strings:
    """Return "train", "val" or "test" for each row, or "" for a row that has to be left out [N].

    Outside the official scheme, rows without a label are training rows of every fold; where groups stay
    whole, those whose group is held out are left out, because a group must be in one part only. The fold for
    tuning only (index ``count``) has no test part, and no row of a group that is tested anywhere.
    """
    if folds.scheme == "official":
        return samples.split
    known = np.flatnonzero(samples.is_labelled)
    outer = _outer_folds(samples, folds)
    is_tuning = folds.has_holdout and fold == folds.count
    # What is neither tested nor left for the other folds.
    rest = outer == _HELD_OUT if is_tuning else outer != fold
    parts = np.full(len(samples), "train", dtype="<U5")
    parts[known[~rest]] = "" if is_tuning else "test"
    if folds.has_holdout and not is_tuning:
        parts[known[outer == _HELD_OUT]] = "val"
    else:
        strata, groups = strata_of(samples.labels[known[rest]]), samples.groups[known[rest]]
        generator = numpy_generator("validation share", folds.seed, fold)
        inner = _dealt(strata, groups, _validation_parts(folds), folds.keeps_groups, generator)
        parts[known[rest][inner == 0]] = "val"
    if folds.keeps_groups:
        held_out = set(samples.groups[parts != "train"].tolist())
        is_held_out_N = np.array([group in held_out for group in samples.groups.tolist()])
        parts[is_held_out_N & ~samples.is_labelled] = ""
    return parts


def _outer_folds(samples: Samples, folds: FoldSettings) -> Integers:
    """Return the fold that tests each labelled row, or -1 where it is kept for tuning."""
    known = np.flatnonzero(samples.is_labelled)
    strata, groups = strata_of(samples.labels[known]), samples.groups[known]
    outer = np.full(len(known), _HELD_OUT)
    tested = np.full(len(known), True)
    if folds.has_holdout:
        generator = numpy_generator("kept for tuning", folds.seed)
        tested = _dealt(strata, groups, folds.holdout, folds.keeps_groups, generator) != 0
    if folds.scheme == "leave_one_group_out":
        outer[tested] = np.unique(groups[tested], return_inverse=True)[1]
    else:
        generator = numpy_generator("folds", folds.seed)
        outer[tested] = _dealt(strata[tested], groups[tested], folds.count, folds.keeps_groups, generator)
    return outer


def _validation_parts(folds: FoldSettings) -> int:
    """Return the number of parts of which one validates: a single group would say little."""
    return min(folds.count, _GROUP_PARTS) if folds.scheme == "leave_one_group_out" else folds.count


def counted(samples: Samples, folds: FoldSettings) -> FoldSettings:
    """Return the settings with the number of groups as ``count``, where each is left out in turn."""
    if folds.scheme != "leave_one_group_out" or "count" in folds.model_fields_set:
        return folds
    outer = _outer_folds(samples, folds)
    # A number of groups that is no number of folds is told by `fold_problems`.
    return folds.model_copy(update={"count": max(2, int(outer.max(initial=0)) + 1)})


def fold_problems(
    samples: Samples, folds: FoldSettings, where: str, only: int | None = None
) -> list[Problem]:
    """Return why the rows cannot be divided as asked, into all folds or into one of them.

    The official scheme has no problem of its own.
    """
    if folds.scheme == "official":
        return []
    known_N = samples.is_labelled
    groups = samples.groups[known_N]
    if folds.scheme == "stratified" and len(set(groups.tolist())) < len(groups):
        rule = "`scheme` = 'stratified' would put rows of one group into several parts"
        return [Problem(f"{where}.scheme", rule, "use 'grouped'")]
    problems = _unit_problems(samples, folds, where)
    if problems:
        return problems
    chosen = folds.opened_folds if only is None else (only,)
    found = (_part_problems(samples, folds, fold, where) for fold in chosen)
    return [problem for problems in found for problem in problems]


def labelled_mask(part: Rows, *, fraction: float, seed: int) -> Booleans:
    """Return which rows of a training part keep their label [N].

    Drawn per class (regression: per tercile of the first target), rounded, at least one each; the rows at a
    smaller fraction are among those at a larger one with the same seed. A row without a label is never in.

    Args:
        part: the training part of a fold.
        fraction: share of the labelled rows, in (0, 1].
        seed: the same for all runs of a pair.
    """
    generator = numpy_generator("labelled rows", seed)
    known = np.flatnonzero(has_label(part.labels))
    strata = strata_of(part.labels[known])
    mask_N = np.full(len(part.labels), False)
    for stratum in np.unique(strata):
        # The order does not depend on the fraction: that is what makes the draws nested.
        order = generator.permutation(known[strata == stratum])
        mask_N[order[: max(1, round(fraction * len(order)))]] = True
    return mask_N


def held_out_folds(part: Rows, labelled_mask: Booleans, count: int, seed: int) -> Integers:
    """Return the inner fold of each labelled row and -1 elsewhere [N], for out-of-fold teacher outputs.

    Stratified; where a group has several labelled rows, groups are kept whole. There are ``count`` folds, or
    as many as there are groups (rows) where these are fewer, so ``result.max() + 1`` is the number to use.

    Raises:
        DataError: if the labelled rows are of fewer than two groups, so that nothing can be held out.
    """
    known = np.flatnonzero(labelled_mask)
    strata, groups = strata_of(part.labels[known]), part.groups[known]
    units = len(set(groups.tolist()))
    if units < 2:
        rule = f"out-of-fold outputs need labelled rows of two groups, but there are {units}"
        raise DataError([Problem("data", rule, "use in-sample outputs or raise `label_fraction`")])
    generator = numpy_generator("held-out folds", seed)
    folds_N = np.full(len(part.labels), -1, dtype=np.int64)
    folds_N[known] = _dealt(strata, groups, min(count, units), units < len(known), generator)
    return folds_N


def strata_of(labels: Labels) -> Integers:
    """Return what to keep in equal shares [N]: the class, or the tercile of the first target."""
    if labels.ndim == 1:
        return labels.astype(np.int64)
    if len(labels) == 0:
        return np.zeros(0, dtype=np.int64)
    edges = np.quantile(labels[:, 0], [1 / 3, 2 / 3])
    return np.searchsorted(edges, labels[:, 0]).astype(np.int64)


def _dealt(
    strata: Integers, groups: Strings, count: int, is_grouped: bool, generator: np.random.Generator
) -> Integers:
    """Return folds 0 to count - 1 [N] with equal shares of each stratum."""
    if is_grouped and len(np.unique(groups)) < len(groups):
        return _dealt_groups(strata, groups, count, generator)
    return _dealt_rows(strata, count, generator)


def _dealt_rows(strata: Integers, count: int, generator: np.random.Generator) -> Integers:
    """Return folds [N] whose sizes, in all and per stratum, differ by at most one."""
    if len(strata) == 0:
        return np.zeros(0, dtype=np.int64)
    order = np.concatenate(
        [generator.permutation(np.flatnonzero(strata == stratum)) for stratum in np.unique(strata)]
    )
    folds = np.empty(len(strata), dtype=np.int64)
    folds[order] = np.arange(len(order)) % count
    return folds


def _dealt_groups(strata: Integers, groups: Strings, count: int, generator: np.random.Generator) -> Integers:
    """Return folds [N] with groups whole, large groups first, each where the squared loads grow least."""
    names, group_N = np.unique(groups, return_inverse=True)
    kinds, kind_N = np.unique(strata, return_inverse=True)
    share_GS = np.zeros((len(names), len(kinds)))
    np.add.at(share_GS, (group_N, kind_N), 1.0)
    share_GS /= share_GS.sum(axis=0)
    shuffled = generator.permutation(len(names))
    order = shuffled[np.argsort(-share_GS[shuffled].sum(axis=1), kind="stable")]
    load_FS, fold_G = np.zeros((count, len(kinds))), np.zeros(len(names), dtype=np.int64)
    for group in order:
        growth_F = ((load_FS + share_GS[group]) ** 2 - load_FS**2).sum(axis=1)
        # Where classes do not overlap, the emptier fold; rounding because sums of shares are not exact.
        best = min(range(count), key=lambda f: (round(growth_F[f], 12), round(load_FS[f].sum(), 12)))
        fold_G[group] = best
        load_FS[best] += share_GS[group]
    return fold_G[group_N]


def _unit_problems(samples: Samples, folds: FoldSettings, where: str) -> list[Problem]:
    """Return whether there are too few groups, or too few rows of a class, to have some in every part."""
    known = np.flatnonzero(samples.is_labelled)
    known = known[_outer_folds(samples, folds) != _HELD_OUT]
    beside = " beside those kept for tuning" if folds.has_holdout else ""
    if folds.keeps_groups:
        return _group_problems(len(set(samples.groups[known].tolist())), folds, where, beside)
    fewest = _fewest_units(folds)
    kinds, counts = np.unique(strata_of(samples.labels[known]), return_counts=True)
    return [
        Problem(
            f"{where}.count",
            f"{folds.count} stratified folds need at least {fewest} labelled rows of a class{beside}, "
            f"but class {kind} has {number}",
            "use fewer folds or add rows",
        )
        for kind, number in zip(kinds, counts, strict=True)
        if number < fewest
    ]


def _group_problems(units: int, folds: FoldSettings, where: str, beside: str) -> list[Problem]:
    fewest = _fewest_units(folds)
    if folds.scheme == "leave_one_group_out":
        if units < fewest:
            rule = f"leaving one group out needs at least {fewest} groups{beside}, but there are {units}"
            return [Problem(f"{where}.scheme", rule, "add groups")]
        if units != folds.count:
            rule = f"leaving one group out makes a fold of each of the {units} groups{beside}"
            return [Problem(f"{where}.count", f"{rule} (got {folds.count})", "leave `count` out")]
        return []
    if units >= max(folds.count, fewest):
        return []
    need = max(folds.count, fewest)
    rule = f"{folds.count} grouped folds need at least {need} groups{beside}, but there are {units}"
    return [
        Problem(f"{where}.count", rule, f"use at most {units} folds" if units >= fewest else "add groups")
    ]


def _fewest_units(folds: FoldSettings) -> int:
    """Return how many groups (rows of a class) give every part one; a holdout is a part of its own."""
    fewest = 2 if folds.has_holdout else 3
    return fewest if folds.keeps_groups else max(folds.count, fewest)


def _part_problems(samples: Samples, folds: FoldSettings, fold: int, where: str) -> list[Problem]:
    parts = parts_of(samples, folds, fold)
    is_tuning = folds.has_holdout and fold == folds.count
    name, key = ("the fold kept for tuning", "holdout") if is_tuning else (f"fold {fold}", "count")
    mend = f"use other folds (`{key}`, `seed`) or add groups"
    problems = [
        Problem(f"{where}.{key}", f"{name} has no row in its {part} part", mend)
        for part in (("train", "val") if is_tuning else ("train", "val", "test"))
        if not (parts == part).any()
    ]
    if samples.card.task == "classification":
        seen = set(samples.labels[parts == "train"].tolist())
        missing = sorted(set(range(samples.card.classes or 0)) - seen)
        if missing:
            rule = f"{name} has no labelled training row of class {', '.join(map(str, missing))}"
            problems.append(Problem(f"{where}.{key}", rule, mend))
    return problems
