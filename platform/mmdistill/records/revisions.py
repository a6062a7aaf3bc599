"""What may be added to a study that has begun, and what may not.

A study is identified by everything that decides its results. Arms, confirmation pairs and contrasts may be
added; the number of trials may change while nothing has been proposed. Each such change makes a revision.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmdistill.errors import Problem
from mmdistill.records.rows import StudyRow
from mmdistill.records.sealed import pack
from mmdistill.settings import flattened

_ELSEWHERE = "run with another --output, or "
_MENDS = {
    "stage_versions": f"{_ELSEWHERE}use the version of mmdistill that began the study",
    "fingerprints": f"{_ELSEWHERE}restore the data",
    "contrasts": f"{_ELSEWHERE}leave the planned contrasts of arms that were read on test rows as they are",
}


def normal(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved study as plain JSON values in which contrasts are found by their arms."""
    tree: dict[str, Any] = json.loads(json.dumps(pack(resolved)))
    if isinstance(tree.get("contrasts"), list):
        found: dict[str, list[str]] = {}
        for contrast in tree["contrasts"]:
            pair = f"{contrast['arm']} against {contrast['against']}"
            found.setdefault(pair, []).append(contrast["question"])
        tree["contrasts"] = found
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
    before, after = flattened(old), flattened(_without_additions(old, new, begun, opened))
    return [
        Problem(f"{where}: {key}", f"{_shown(before, key)} -> {_shown(after, key)}", _mend(key))
        for key in sorted(set(before) | set(after))
        if key not in before or key not in after or before[key] != after[key]
    ]


def _mend(key: str) -> str:
    return _MENDS.get(key.split(".")[0], f"{_ELSEWHERE}restore the value")


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(absent)"


def _without_additions(
    old: Mapping[str, Any], new: Mapping[str, Any], begun: bool, opened: Collection[str]
) -> dict[str, Any]:
    """Return ``new`` with everything taken back that may be added to ``old``."""
    kept = dict(new)
    for table in ("arms", "fingerprints"):
        before, after = old.get(table), new.get(table)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            kept[table] = {name: value for name, value in after.items() if name in before}
    if isinstance(old.get("order"), list) and isinstance(new.get("order"), list):
        added = set(new.get("arms", ())) - set(old.get("arms", ()))
        kept["order"] = [name for name in new["order"] if name not in added]
    if isinstance(old.get("contrasts"), Mapping) and isinstance(new.get("contrasts"), Mapping):
        kept["contrasts"] = _contrasts(old["contrasts"], new["contrasts"], opened)
    for table, key, may_change in (
        ("confirm", "pairs", lambda was, now: now >= was),
        ("search", "trials", lambda _was, _now: not begun),
    ):
        was, now = (side.get(table, {}).get(key) for side in (old, new))
        if isinstance(was, int) and isinstance(now, int) and may_change(was, now):
            kept[table] = {**new[table], key: was}
    return kept


def _contrasts(
    old: Mapping[str, Sequence[str]], new: Mapping[str, Sequence[str]], opened: Collection[str]
) -> dict[str, Any]:
    """Return the new contrasts without the added ones of which an arm was not read on test rows yet."""
    kept: dict[str, Any] = {}
    for pair, questions in new.items():
        if all(arm in opened for arm in pair.split(" against ")):
            kept[pair] = questions
        elif pair in old:
            kept[pair] = [question for question in questions if question in old[pair]]
    return kept


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
