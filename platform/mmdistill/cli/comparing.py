"""`mmdistill compare`: arms over several data sets."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmdistill.cli.printing import points, print_json, text_table
from mmdistill.cli.reading import readable
from mmdistill.errors import InputError, Problem
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.reports.ranks import Ranks, ranks
from mmdistill.reports.readings import readings_of


def show_ranks(paths: Sequence[Path], *, as_json: bool) -> int:
    """Print arms x data sets: mean scores, mean ranks and what tells the arms apart."""
    found = ranks([readings_of(latest(StudyFolder.open(root))) for root in studies_in(paths)])
    if as_json:
        print_json(found)
    else:
        print(_text(found))
    return 0


def studies_in(paths: Sequence[Path]) -> list[Path]:
    """Return the studies among some paths: each one itself, or those directly inside it."""
    problems: list[Problem] = []
    found: dict[Path, Path] = {}
    for path in paths:
        inside = [path] if _is_study(readable(path)) else [one for one in _inside(path) if _is_study(one)]
        if not inside:
            mend = "give studies, or a folder that holds some"
            problems.append(Problem(str(path), "no study here, nor in a folder directly inside", mend))
        found |= {one.resolve(): one for one in inside}
    if problems:
        raise InputError(problems)
    return list(found.values())


def _inside(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []


def _is_study(path: Path) -> bool:
    return (path / "study.json").is_file()


def _text(found: Ranks) -> str:
    lines = [
        [arm, round(rank, 2), *(round(row[place], 3) for row in found.scores)]
        for place, (arm, rank) in enumerate(zip(found.arms, found.mean_ranks, strict=True))
    ]
    notes = [
        "Mean score per data set over its seeds; a data set is one replicate. Rank 1 is best",
        *_pooled(found),
        *_answer(found),
        *found.cautions,
        *(_left_out(why, names) for why, names in _by_reason(found.left_out).items()),
    ]
    table = text_table(["arm", "mean rank", *found.datasets], lines)
    return f"{table}\n\n{points(notes)}"


def _pooled(found: Ranks) -> list[str]:
    """Return for each data set that several studies stand behind, whose runs each score is of."""
    told = []
    for dataset, behind in zip(found.datasets, found.studies, strict=True):
        arms: dict[str, list[str]] = {}
        for arm, names in zip(found.arms, behind, strict=True):
            arms.setdefault(" and ".join(names), []).append(arm)
        if any(len(names) > 1 for names in behind) or len(arms) > 1:
            told.append(
                f"{dataset} is averaged over the runs of studies with equal settings: "
                + "; ".join(f"{', '.join(one)} of {names}" for names, one in arms.items())
            )
    return told


def _by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name, why in left_out.items():
        reasons.setdefault(why, []).append(name)
    return reasons


def _left_out(why: str, names: Sequence[str]) -> str:
    first, rest = (names[0], why) if len(names) == 1 else (why, ", ".join(names))
    return f"Left out, {first}: {rest}"


def _answer(found: Ranks) -> list[str]:
    if found.friedman_p is None or found.critical_difference is None:
        return [f"No test: {found.reason}"]
    groups = "; ".join(", ".join(clique) for clique in found.cliques) or "none"
    return [
        f"Friedman's test of no difference: p = {found.friedman_p:.2g}",
        f"Critical difference of mean ranks (Nemenyi, .05): {found.critical_difference:.2f}. "
        f"Not told apart: {groups}",
    ]
