"""What a study declares of its arms, and the order in which they read well."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# Designs name the frozen reading of an arm like that arm, and this.
_FROZEN = ".frozen"
# A note begins so; names have no comma.
_ALSO = "also "


class Declared(NamedTuple):
    """An arm as the study declares it.

    Attributes:
        dimensions: searched hyperparameters.
        note: which equal arms were merged into it.
        baseline: the arm it is compared with; None for the study's own baseline.
        frozen: the arm whose winner's settings it takes; None for one with a search of its own.
        base: the arm it was generated from, or whose settings it takes.
        change: in words, how it differs from its base.
        folds: scheme of its folds; None where the study does not say.
        tuning: where its winners were searched: nested, fixed_holdout or shared.
        revision: number of the study's version that added it, from 1.
        planned: runs by phase; None for an arm that left rows and was never declared.
        privileged: modalities that its teachers see beside the student's.
        teachers: names of its networks.
        alike: digest of all its other settings, by which of these two is left out; None where unknown.
        prices: stated cost of privileged modalities, by name, in ``price_unit``.
    """

    name: str
    recipe: str = ""
    dimensions: int = 0
    note: str | None = None
    baseline: str | None = None
    frozen: str | None = None
    base: str | None = None
    change: str | None = None
    folds: str | None = None
    tuning: str = "nested"
    revision: int = 1
    planned: Mapping[str, int] | None = None
    privileged: Sequence[str] = ()
    teachers: Sequence[str] = ()
    alike: Mapping[str, str] | None = None
    prices: Mapping[str, float] | None = None
    price_unit: str = ""

    @property
    def reading_of(self) -> str:
        """Return the name that the re-tuned and the frozen reading of one change share."""
        return self.name.removesuffix(_FROZEN) if self.frozen else self.name

    @property
    def aliases(self) -> tuple[str, ...]:
        """Return the names of the equal arms that were merged into it."""
        return tuple(self.note.removeprefix(_ALSO).split(", ")) if self.note else ()


def declared_arms(study: Mapping[str, Any], found: Iterable[str]) -> list[Declared]:
    """Return the arms of a study, then any others that left a row.

    In the order of the study file, but each base is followed by its changes, and each change by its frozen
    reading.
    """
    common = {"baseline": study["baseline"], "tuning": study["tuning"]}
    stated = [_declared(entry, common) for entry in json.loads(study["arms_json"])]
    rest = sorted(set(found) - {arm.name for arm in stated})
    return _by_base(stated) + [Declared(name, **common) for name in rest]


def arm_names(arms: Iterable[Declared]) -> dict[str, str]:
    """Return every name that leads to an arm, and the arm's own: itself, then those merged into it."""
    arms = list(arms)
    merged = {alias: arm.name for arm in arms for alias in arm.aliases}
    return merged | {arm.name: arm.name for arm in arms}


def _declared(entry: Mapping[str, Any], common: Mapping[str, str]) -> Declared:
    known = {key: value for key, value in entry.items() if key in Declared._fields and value is not None}
    known = {**common, "base": known.get("frozen"), **known}
    return Declared(**known | {"baseline": None if known["baseline"] == entry["name"] else known["baseline"]})


def _by_base(arms: Sequence[Declared]) -> list[Declared]:
    names = {arm.name for arm in arms}
    changes: dict[str | None, list[Declared]] = {}
    for arm in arms:
        changes.setdefault(arm.base if arm.base in names else None, []).append(arm)
    ordered: list[Declared] = []
    waiting = changes.get(None, [])[::-1]
    while waiting:
        ordered.append(waiting.pop())
        waiting += _frozen_beside(changes.pop(ordered[-1].name, []))[::-1]
    return ordered


def _frozen_beside(siblings: Sequence[Declared]) -> list[Declared]:
    """Return the changes of one base, each change's frozen reading right after its re-tuned one."""
    first: dict[str, int] = {}
    for place, arm in enumerate(siblings):
        first.setdefault(arm.reading_of, place)
    return sorted(siblings, key=lambda arm: (first[arm.reading_of], arm.frozen is not None))
