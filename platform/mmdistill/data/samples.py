"""A data set in memory, and what must hold for it.

Axes: N rows, D numbers of a modality, T regression targets.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mmdistill.data.card import Card
from mmdistill.errors import Problem

SPLITS = ("train", "val", "test")
UNLABELLED = -1
_SHOWN = 3

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.str_]
# int64 classes [N], or float32 targets [N, T].
Labels = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Rows of a data set.

    Attributes:
        card: what the data set says about itself; may know more modalities than are here.
        inputs: float32 [N, D] per modality.
        labels: int64 classes [N], -1 = no label; or float32 targets [N, T].
        split: "train", "val" or "test" [N].
        groups: subject, speaker, ... that must not be in two splits [N].
        rows: identity of each row [N].
        fingerprint: 16 hexadecimal digits of the whole data set, whatever part of it is here.
    """

    card: Card
    inputs: dict[str, Floats]
    labels: Labels
    split: Strings
    groups: Strings
    rows: Strings
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_labelled(self) -> Booleans:
        """Return which rows have a label; every row of a regression has one."""
        return has_label(self.labels)

    def narrowed(self, *, with_test: bool, modalities: Sequence[str] | None) -> Self:
        """Return the rows without those of the test split unless ``with_test``, and only some modalities."""
        names = self.inputs if modalities is None else modalities
        keep_N = np.full(len(self), True) if with_test else self.split != "test"
        return dataclasses.replace(
            self,
            inputs={name: self.inputs[name][keep_N] for name in names},
            labels=self.labels[keep_N],
            split=self.split[keep_N],
            groups=self.groups[keep_N],
            rows=self.rows[keep_N],
        )


def has_label(labels: Labels) -> Booleans:
    """Return which rows have a label [N]."""
    return labels != UNLABELLED if labels.ndim == 1 else np.full(len(labels), True)


def content_fingerprint(inputs: dict[str, Floats], labels: Labels, *columns: Strings) -> str:
    """Return 16 hexadecimal digits (BLAKE2b) of the names, shapes and values of arrays."""
    state = hashlib.blake2b(digest_size=8)
    named = [*sorted(inputs.items()), ("labels", labels), *(("column", column) for column in columns)]
    for name, array in named:
        state.update(f"{name}\x1f{array.dtype.str}\x1f{array.shape}\x1f".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def check(samples: Samples, where: str, splits: Sequence[str] = SPLITS) -> list[Problem]:
    """Return everything that is wrong with rows that should belong to ``splits``."""
    problems = [
        problem
        for name, values in samples.inputs.items()
        for problem in _input_problems(samples, name, values, f"{where}: {samples.card.column(name)}")
    ]
    if samples.card.task == "classification":
        problems += _class_problems(samples, f"{where}: label")
    else:
        problems += _target_problems(samples, where)
    return problems + _split_problems(samples, f"{where}: split", splits) + _identity_problems(samples, where)


def _input_problems(samples: Samples, name: str, values_ND: Floats, where: str) -> list[Problem]:
    expected = (len(samples), samples.card.width(name))
    if values_ND.shape != expected:
        rule = f"must have the shape {expected} after flattening, but has {values_ND.shape}"
        return [Problem(where, rule, f"correct `modalities.{name}.shape` of the card or the data")]
    bad_N = ~np.isfinite(values_ND).all(axis=1)
    if not bad_N.any():
        return []
    count = int((~np.isfinite(values_ND)).sum())
    rule = f"every value must be finite, but {count} are not, {_listed('row', samples.rows[bad_N])}"
    return [Problem(where, rule, "remove these rows or fill in their values")]


def _class_problems(samples: Samples, where: str) -> list[Problem]:
    labels, classes, problems = samples.labels, samples.card.classes or 0, []
    if labels.shape != (len(samples),):
        rule = f"must have one class per row, but has the shape {labels.shape} for {len(samples)} rows"
        return [Problem(where, rule, "give one integer per row")]
    wrong_N = (labels >= classes) | (labels < UNLABELLED)
    for row, label in list(zip(samples.rows[wrong_N], labels[wrong_N], strict=True))[:_SHOWN]:
        rule = f"row {row} has the label {label}, allowed are 0 to {classes - 1}"
        problems.append(Problem(where, rule, "correct the label or `classes` of the card"))
    hidden_N = (labels == UNLABELLED) & (samples.split != "train")
    if hidden_N.any():
        rule = f"only training rows may be without a label (-1), {_listed('row', samples.rows[hidden_N])}"
        problems.append(Problem(where, rule, "label these rows or move them to the training split"))
    seen = set(labels[samples.split == "train"].tolist())
    missing = sorted(set(range(classes)) - seen)
    if missing:
        rule = f"every class needs a labelled training row, {_listed('class', missing, 'classes')} without"
        problems.append(Problem(where, rule, "add rows or lower `classes` of the card"))
    return problems


def _target_problems(samples: Samples, where: str) -> list[Problem]:
    expected = (len(samples), len(samples.card.targets))
    if samples.labels.shape != expected:
        rule = f"targets must have the shape {expected}, but have {samples.labels.shape}"
        return [Problem(f"{where}: targets", rule, "correct `targets` of the card or the data")]
    problems = []
    for target, values_N in zip(samples.card.targets, samples.labels.T, strict=True):
        bad_N = ~np.isfinite(values_N)
        if bad_N.any():
            rows = _listed("row", samples.rows[bad_N])
            rule = f"every target must be finite, but {bad_N.sum()} are not, {rows}"
            problems.append(Problem(f"{where}: {target}", rule, "remove these rows or fill in their values"))
    return problems


def _split_problems(samples: Samples, where: str, splits: Sequence[str]) -> list[Problem]:
    unknown = sorted(set(samples.split.tolist()) - set(SPLITS))
    problems = [
        Problem(where, f"the split {name!r} is unknown", f"use one of {', '.join(SPLITS)}")
        for name in unknown
    ]
    empty = [name for name in splits if not (samples.split == name).any()]
    return problems + [
        Problem(where, f"no row belongs to the split {name!r}", "assign rows to it") for name in empty
    ]


def _identity_problems(samples: Samples, where: str) -> list[Problem]:
    problems = []
    pairs = np.unique(np.stack([samples.groups, samples.split]), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        rule = f"a group must be in one split only, {_listed('group', names[counts > 1])} in several"
        mend = "move each group to one split: the test score would be too good"
        problems.append(Problem(f"{where}: group", rule, mend))
    rows, counts = np.unique(samples.rows, return_counts=True)
    if (counts > 1).any():
        rule = f"row names must differ, {_listed('row', rows[counts > 1])} given twice"
        problems.append(Problem(f"{where}: rows", rule, "keep one of each"))
    return problems


def _listed(kind: str, names: Sequence[Any] | npt.NDArray[Any], plural: str = "") -> str:
    """Return e.g. ``rows 3, 8, 9 (12 in all)``."""
    shown = ", ".join(str(name) for name in list(names)[:_SHOWN])
    noun = kind if len(names) == 1 else plural or f"{kind}s"
    more = f" ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{noun} {shown}{more}"
