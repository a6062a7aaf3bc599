"""Which rows train, choose and test; which training rows keep their label.

Axes: N rows, S strata, G groups, F folds.
"""

from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from mmdistill.data.samples import Booleans, Integers, Labels, Samples, Strings, has_label
from mmdistill.errors import DataError, Problem
from mmdistill.randomness import numpy_generator
from mmdistill.settings import Settings

_FEWEST_UNITS = 3


class FoldSettings(Settings):
    """How rows are divided.

    Attributes:
        scheme: "official" keeps the split of the data set (one fold); "stratified" and "grouped" divide all
            labelled rows into ``count`` folds with equal shares of each class; "grouped" keeps groups whole.
        count: folds; fold i is the test part, and 1/count of the other rows is the validation part.
        seed: of the division; the same for every run that is to be compared.
        tuning: ``nested`` searches inside every fold; ``fixed_holdout`` once, on rows kept for tuning only;
            ``shared`` once, in fold 0, whose training rows are test rows of other folds: stamped.
    """

    scheme: Literal["official", "stratified", "grouped"] = "official"
    count: Annotated[int, Field(ge=2, le=50)] = 5
    seed: Annotated[int, Field(ge=0)] = 0
    tuning: Literal["nested", "fixed_holdout", "shared"] = "nested"

    @property
    def fold_count(self) -> int:
        """Return how many folds can be opened."""
        return 1 if self.scheme == "official" else self.count

    @property
    def identity(self) -> list[str | int]:
        """Return what of these settings changes a fold."""
        return ["official"] if self.scheme == "official" else [self.scheme, self.count, self.seed]


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

    Outside the official scheme, rows without a label are training rows of every fold; grouped, those whose
    group is held out are left out, because a group must be in one part only.
    """
    if folds.scheme == "official":
        return samples.split
    known = np.flatnonzero(samples.is_labelled)
    strata, groups = strata_of(samples.labels[known]), samples.groups[known]
    is_grouped = folds.scheme == "grouped"
    outer = _dealt(strata, groups, folds.count, is_grouped, numpy_generator("folds", folds.seed))
    rest = outer != fold
    inner = np.full(len(known), -1)
    generator = numpy_generator("validation share", folds.seed, fold)
    inner[rest] = _dealt(strata[rest], groups[rest], folds.count, is_grouped, generator)
    parts = np.full(len(samples), "train", dtype="<U5")
    parts[known[~rest]] = "test"
    parts[known[inner == 0]] = "val"
    if is_grouped:
        held_out = set(samples.groups[parts != "train"].tolist())
        is_held_out_N = np.array([group in held_out for group in samples.groups.tolist()])
        parts[is_held_out_N & ~samples.is_labelled] = ""
    return parts


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
    chosen = range(folds.count) if only is None else (only,)
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
    fewest = max(folds.count, _FEWEST_UNITS)
    if folds.scheme == "grouped":
        units = len(set(samples.groups[known].tolist()))
        if units >= fewest:
            return []
        rule = f"{folds.count} grouped folds need at least {fewest} groups, but there are {units}"
        return [Problem(f"{where}.count", rule, f"use at most {units} folds" if units >= 3 else "add groups")]
    kinds, counts = np.unique(strata_of(samples.labels[known]), return_counts=True)
    return [
        Problem(
            f"{where}.count",
            f"{folds.count} stratified folds need at least {fewest} labelled rows of a class, "
            f"but class {kind} has {number}",
            "use fewer folds or add rows",
        )
        for kind, number in zip(kinds, counts, strict=True)
        if number < fewest
    ]


def _part_problems(samples: Samples, folds: FoldSettings, fold: int, where: str) -> list[Problem]:
    parts = parts_of(samples, folds, fold)
    mend = "use other folds (`count`, `seed`) or add groups"
    problems = [
        Problem(f"{where}.count", f"fold {fold} has no row in its {name} part", mend)
        for name in ("train", "val", "test")
        if not (parts == name).any()
    ]
    if samples.card.task == "classification":
        seen = set(samples.labels[parts == "train"].tolist())
        missing = sorted(set(range(samples.card.classes or 0)) - seen)
        if missing:
            rule = f"fold {fold} has no labelled training row of class {', '.join(map(str, missing))}"
            problems.append(Problem(f"{where}.count", rule, mend))
    return problems
