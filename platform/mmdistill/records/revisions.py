"""What may be added to a study that has begun, and what may not.

A study is identified by everything that decides its results. Arms, confirmation pairs and contrasts may be
added; the number of trials may change while nothing has been proposed; prices may change at any time. Each
such change makes a revision.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mmdistill.errors import Problem
from mmdistill.records.rows import StudyRow
from mmdistill.records.sealed import pack
from mmdistill.settings import flattened

_ELSEWHERE = "run with another --output, or "
_MENDS = {
    "stage_versions": f"{_ELSEWHERE}use the version of mmdistill that began the study",
    "fingerprints": f"{_ELSEWHERE}restore the data",
    "contrasts": f"{_ELSEWHERE}restore it: one can be added while an arm of it was not read on test rows",
}


class _Change(NamedTuple):
    """One key that differs; None is a value that is not there.

    Attributes:
        below: the key without its first part.
        added: arms that are new.
        begun: whether there are proposals on record.
        opened: arms that were read on test rows.
    """

    key: str
    below: str
    was: Any
    now: Any
    added: Collection[str]
    begun: bool
    opened: Collection[str]


def _new_arm(change: _Change) -> bool:
    return any(change.key.startswith(f"arms.{name}.") for name in change.added)


def _new_in_between(change: _Change) -> bool:
    return bool([name for name in change.now or () if name not in change.added] == change.was)


def _new_data(change: _Change) -> bool:
    return bool(change.below) and change.was is None


def _new_question(change: _Change) -> bool:
    kept = all(question in (change.now or ()) for question in change.was or ())
    return kept and any(arm not in change.opened for arm in change.below.split(" against "))


def _more_pairs(change: _Change) -> bool:
    return change.below == "pairs" and change.was is not None and (change.now or 0) >= change.was


def _before_the_search(change: _Change) -> bool:
    return change.below == "trials" and not change.begun


def _always(_change: _Change) -> bool:
    return True


# By the first part of a key: whether the change adds something and leaves what was there.
_EXTENTS: dict[str, Callable[[_Change], bool]] = {
    "arms": _new_arm,
    "order": _new_in_between,
    "fingerprints": _new_data,
    "contrasts": _new_question,
    "confirm": _more_pairs,
    "search": _before_the_search,
    # They change no result.
    "prices": _always,
    "price_unit": _always,
}


def normal(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved study as plain JSON values in which contrasts are found by their arms."""
    tree: dict[str, Any] = json.loads(json.dumps(pack(resolved)))
    if isinstance(tree.get("contrasts"), list):
        found: dict[str, list[str]] = {}
        for contrast in tree.pop("contrasts"):
            pair = f"{contrast['arm']} against {contrast['against']}"
            found.setdefault(pair, []).append(contrast["question"])
        # No table without keys: it would be a key of its own when flattened.
        tree |= {"contrasts": found} if found else {}
    return tree


def refusals(
    where: str, old: Mapping[str, Any], new: Mapping[str, Any], *, begun: bool, opened: Collection[str]
) -> list[Problem]:
    """Return one problem per key in which ``new`` neither equals nor extends ``old``.

    Args:
        where: the file that holds the old study.
        old: as :func:`normal` returns it.
        new: as :func:`normal` returns it.
        begun: whether there are proposals on record.
        opened: the arms that were read on test rows.
    """
    before, after = flattened(old), flattened(new)
    added = _names(new) - _names(old)
    problems = []
    for key in sorted(before.keys() | after.keys()):
        table, _, below = key.partition(".")
        change = _Change(key, below, before.get(key), after.get(key), added, begun, opened)
        is_equal = key in before and key in after and change.was == change.now
        if not is_equal and not _EXTENTS.get(table, _never)(change):
            rule = f"{_shown(before, key)} -> {_shown(after, key)}"
            mend = _MENDS.get(table, f"{_ELSEWHERE}restore the value")
            problems.append(Problem(f"{where}: {key}", rule, mend))
    return problems


def _names(resolved: Mapping[str, Any]) -> set[str]:
    return set(resolved.get("arms", ()))


def _never(_change: _Change) -> bool:
    return False


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(absent)"


def stamped(row: StudyRow, before: StudyRow | None) -> StudyRow:
    """Return the row of the next revision; each arm and contrast says with which revision it came."""
    number = 1 if before is None else before.revision + 1
    arms = _stamped(row.arms_json, None if before is None else before.arms_json, ("name",), number)
    keys = ("arm", "against", "question")
    contrasts = _stamped(row.contrasts_json, None if before is None else before.contrasts_json, keys, number)
    return dataclasses.replace(row, revision=number, arms_json=arms, contrasts_json=contrasts)


def _stamped(text: str, before: str | None, keys: Sequence[str], number: int) -> str:
    known = {tuple(entry.get(key) for key in keys): entry["revision"] for entry in json.loads(before or "[]")}
    entries = json.loads(text)
    for entry in entries:
        entry["revision"] = known.get(tuple(entry.get(key) for key in keys), number)
    return json.dumps(entries)
