"""`mmdistill rerun`: compute recorded runs again and compare."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from mmdistill.cli.folders import cache_folder
from mmdistill.cli.printing import print_json, say
from mmdistill.cli.reading import readable
from mmdistill.errors import InputError, Problem
from mmdistill.records.study import StudyFolder
from mmdistill.reports.why import runs_behind
from mmdistill.studies.rerun import Rerun, rerun

SAME, DIFFERENT = 0, 1
MOST_DIFFERENCES = 5


def show_rerun(
    study: Path,
    trials: Sequence[str],
    *,
    arm: str | None,
    cache: Path | None,
    fresh: bool,
    tolerance: float | None,
    as_json: bool,
) -> int:
    """Print whether runs come out as recorded; 1 if one does not.

    Args:
        study: its folder.
        trials: keys of runs.
        arm: every run behind the score of this arm too.
        cache: folder of the stage cache; ``cache/`` in the study by default.
        fresh: take nothing from it.
        tolerance: see :func:`mmdistill.studies.rerun.rerun`.
        as_json: print JSON.

    Raises:
        InputError: no run was named, or one that is not on record.
    """
    folder = StudyFolder.open(readable(study))
    place = cache_folder(cache, folder.root)
    wanted = [*trials, *(runs_behind(folder.root, arm) if arm is not None else ())]
    if not wanted:
        rule = "no run to compute again was named" if arm is None else f"no run is behind {arm} yet"
        mend = f"give TRIAL or --arm; `{shlex.join(['mmdistill', 'why', str(study), '--arm', 'NAME'])}` lists"
        raise InputError([Problem("rerun", rule, f"{mend} the runs of an arm")])
    found = rerun(folder, wanted, place, fresh=fresh, tolerance=tolerance, say=say)
    same = all(one.is_same for one in found)
    if as_json:
        print_json({"same": same, "runs": [one._asdict() | {"same": one.is_same} for one in found]})
    else:
        print("\n".join(line for one in found for line in _lines(one)))
        _print_verdict(found)
    return SAME if same else DIFFERENT


def _lines(one: Rerun) -> list[str]:
    how = "bit for bit" if one.tolerance == 0 else f"within {one.tolerance:g}"
    largest = "no difference" if one.largest is None else f"largest difference {_largest(one.largest)}"
    verdict = f"same {how}" if one.is_same else f"DIFFERENT, not the same {how}"
    lines = [f"{one.trial_id}  {one.arm}, {one.phase}: {verdict}; {one.compared} values, {largest}"]
    shown = one.differences[:MOST_DIFFERENCES]
    lines += [f"  {what}: recorded {old}, recomputed {new}" for what, old, new in shown]
    if len(one.differences) > len(shown):
        lines.append(f"  and {len(one.differences) - len(shown)} more")
    return lines


def _largest(largest: tuple[str, float]) -> str:
    what, size = largest
    return f"{size:.2g} ({what})"


def _print_verdict(found: Sequence[Rerun]) -> None:
    same = sum(one.is_same for one in found)
    print(f"{same} of {len(found)} run(s) came out as recorded.")
    for difference in dict.fromkeys(line for one in found for line in one.elsewhere):
        print(f"Not as recorded: {difference}; so a tolerance holds, and not equality bit for bit.")
    openings = sorted({one.opening for one in found if one.opening is not None})
    if openings:
        numbers = ", ".join(map(str, openings))
        print(f"Test rows were read that opening {numbers} had read: no new opening, nothing was written.")
    else:
        print("No test row was read, nothing was written.")
