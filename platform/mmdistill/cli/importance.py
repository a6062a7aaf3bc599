"""`mmdistill importance`: which hyperparameters mattered in the searches of a study."""

import dataclasses
from pathlib import Path

from mmdistill.cli.printing import points, print_json, text_table
from mmdistill.cli.reading import readable
from mmdistill.cli.table import say_merged
from mmdistill.errors import InputError
from mmdistill.records.study import StudyFolder
from mmdistill.registry import unknown_name
from mmdistill.reports.arms import arm_names, declared_arms
from mmdistill.reports.importance import ANSWERS, Importance, Method, Search, importance, searches_of


def show_importance(study: Path, arm: str | None, method: Method, *, as_json: bool) -> int:
    """Print the importance of the hyperparameters of one arm or of all."""
    found = [importance(search, method) for search in _chosen(study, arm)]
    if as_json:
        print_json({"method": method, "answers": ANSWERS[method], "arms": found})
    else:
        print(_text(found, method))
    return 0


def _chosen(study: Path, arm: str | None) -> list[Search]:
    folder = StudyFolder.open(readable(study))
    searches = searches_of(folder)
    if arm is None:
        return searches
    names = [search.arm for search in searches]
    declared = declared_arms(dataclasses.asdict(folder.row), names)
    known = {name: target for name, target in arm_names(declared).items() if target in names}
    if arm not in known:
        raise InputError([unknown_name("searched arm", arm, "--arm", list(known))])
    say_merged(known, [arm])
    return [search for search in searches if search.arm == known[arm]]


def _text(found: list[Importance], method: Method) -> str:
    lines = [
        [one.arm, one.trials, share.parameter, round(share.share, 3)] for one in found for share in one.shares
    ]
    remarks: dict[str, list[str]] = {}
    for one in found:
        for remark in (*one.cautions, *([one.reason] if one.reason else [])):
            remarks.setdefault(remark, []).append(one.arm)
    whole = len(found)
    notes = [
        f"{'All arms' if len(arms) == whole > 1 else ', '.join(arms)}: {remark}"
        for remark, arms in remarks.items()
    ]
    table = text_table(["arm", "trials", "hyperparameter", "share"], lines) if lines else ""
    return "\n\n".join(part for part in (points([ANSWERS[method]]), table, points(notes)) if part)
