"""`mmdistill figure`: the figures of a study as PDF and PNG."""

from collections.abc import Sequence
from pathlib import Path

from mmdistill.cli.comparing import studies_in
from mmdistill.cli.folders import figures_folder
from mmdistill.cli.printing import print_json, say
from mmdistill.cli.reading import readable
from mmdistill.cli.table import chosen
from mmdistill.errors import InputError, Problem
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.reports.arms import arm_names
from mmdistill.reports.figures.base import Sources
from mmdistill.reports.figures.drawing import draw
from mmdistill.reports.readings import readings_of


def show_figures(
    study: Path,
    kinds: Sequence[str],
    *,
    output: Path | None,
    rows: Sequence[str],
    curves: Sequence[str],
    beside: Sequence[Path],
    as_json: bool,
) -> int:
    """Write figures and print where they are; say what was skipped and why.

    Args:
        study: its folder.
        kinds: of figures; by default all that the study can fill.
        output: folder; ``report/figures`` in the study by default.
        rows: arms, or patterns; by default all.
        curves: names of the learning curves; by default the score and the loss on validation rows.
        beside: further studies, or folders of them, to compare over data sets.
        as_json: print JSON.

    Raises:
        InputError: with every kind and arm that does not exist, and every kind asked for that the study
            cannot fill.
    """
    folder = StudyFolder.open(readable(study))
    target = figures_folder(output, folder.root)
    sources = Sources(latest(folder), curves=curves)
    problems: list[Problem] = []
    known = arm_names(arm.declared for arm in sources.ablation.arms)
    names = chosen(known, rows, "arm", "--rows", problems)
    if problems:
        raise InputError(problems)
    sources.names = names
    sources.beside = [
        readings_of(latest(StudyFolder.open(root)))
        for root in studies_in(beside)
        if not root.samefile(folder.root)
    ]
    drawn = draw(sources, target, kinds)
    if as_json:
        print_json({"files": drawn.files, "skipped": drawn.skipped})
        return 0
    for file in drawn.files:
        print(file)
    for kind, reason in drawn.skipped.items():
        say(f"skipped {kind}: {reason}")
    return 0
