"""`mmdistill plan`: what a study is going to run and cost, and what it can show."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdistill.cli.folders import cache_folder, study_folder
from mmdistill.cli.printing import print_json, text_table
from mmdistill.cli.reading import readable
from mmdistill.records.rows import PHASES
from mmdistill.redaction import redacted_tree
from mmdistill.studies.lanes import Lanes
from mmdistill.studies.plan import Cost, Plan, plan
from mmdistill.studies.power import Power
from mmdistill.studies.study import Study, open_study


def show_plan(
    file: Path,
    edits: Sequence[str] = (),
    *,
    output: Path | None = None,
    cache: Path | None = None,
    may_pilot: bool = True,
    as_json: bool = False,
) -> int:
    """Print the plan of a study; nothing is written.

    Raises:
        InputError: with every problem of the file, and of its folder where that holds something else: what
            ``run`` would refuse is refused here.
    """
    study = open_study(readable(file), edits)
    root = study_folder(output, study.file.name)
    found = plan(study, root, cache_folder(cache, root), may_pilot=may_pilot)
    if as_json:
        print_json(found._asdict() | {"settings": _settings(study)})
    else:
        print(plan_text(found))
    return 0


def _settings(study: Study) -> dict[str, Any]:
    """Return every setting of a study, defaults included; ``run`` and the space are said arm by arm."""
    file = study.file.as_json() | {"arms": study.resolved()["arms"]}
    kept = {key: value for key, value in file.items() if key not in {"run", "designs"}}
    shown: dict[str, Any] = redacted_tree(kept)
    return shown


def plan_text(found: Plan) -> str:
    """Return a plan as tables and sentences."""
    parts = [f"{found.study} on {found.dataset}, into {found.output}", _arms(found), _phases(found)]
    common = ", ".join(_short(path) for path in _everywhere(found))
    sentences = [f"Every arm that searches has {common or 'a space of its own'}.", _sharing(found)]
    sentences += _lanes(found.lanes)
    sentences += [*_cost(found.cost), *_powers(found.power)]
    wrapped = [
        textwrap.fill(line, 110, initial_indent="- ", subsequent_indent="  ", break_long_words=False)
        for line in sentences
    ]
    return "\n\n".join([*parts, "\n".join(wrapped)])


def _arms(found: Plan) -> str:
    everywhere = _everywhere(found)
    header = ["arm", "recipe", "trials", "searched", *PHASES, "CPU-s", "searches besides", "note"]
    lines: list[list[Any]] = []
    for arm in found.arms:
        costs = [cost for cost in arm.cpu_s.values() if cost is not None]
        total = round(sum(costs), 1) if len(costs) == len(arm.cpu_s) else None
        besides = ", ".join(_short(path) for path in arm.dimensions if path not in everywhere)
        runs = [arm.runs[phase] for phase in PHASES]
        note = arm.note or ""
        lines.append([arm.name, arm.recipe, arm.trials, len(arm.dimensions), *runs, total, besides, note])
    return text_table(header, lines)


def _everywhere(found: Plan) -> list[str]:
    """Return what every arm that searches does search."""
    spaces = [set(arm.dimensions) for arm in found.arms if arm.dimensions]
    return sorted(set.intersection(*spaces)) if spaces else []


def _short(path: str) -> str:
    return path.removeprefix("optimiser.").removeprefix("terms.")


def _phases(found: Plan) -> str:
    header = ["phase", "orders left", "runs", "on record", "shared stages", "there", "CPU-s left"]
    lines = [
        [
            phase.phase,
            phase.orders,
            phase.runs,
            phase.runs_recorded,
            phase.stages,
            phase.stages_there,
            None if phase.cpu_s is None else round(phase.cpu_s, 1),
        ]
        for phase in found.phases
    ]
    return text_table(header, lines)


def _sharing(found: Plan) -> str:
    about = "" if found.is_exact else "about "
    return (
        f"Teachers: {about}{found.trainings} trainings with their out-of-fold copies, "
        f"{found.trainings_alone} if every run trained its own."
    )


def _lanes(lanes: Lanes) -> Iterator[str]:
    """Say how many runs train together where the study file leaves it open."""
    why = {
        "on record": "measured when the study began",
        "measured": "measured on this machine just now; `run` measures again, and keeps what it finds",
        "assumed": "assumed, since nothing may be timed; `run` measures it",
    }
    if lanes.source != "given":
        yield f'resources.lanes = "auto": up to {lanes.number} runs train together, {why[lanes.source]}.'


def _cost(cost: Cost) -> Iterator[str]:
    if not cost.cpu_s and not cost.unknown:
        yield "Nothing is left to run."
        return
    source = f"{cost.recorded:.0%} of it from recorded timings"
    gpu = f", {_time(cost.gpu_s)} of GPU" if cost.gpu_s else ""
    # A cluster's CPUs are not known before it is joined.
    here = f" with {cost.concurrent} orders at once, as many as the CPUs of this machine take"
    wall = "" if cost.wall_s is None else f"; about {_time(cost.wall_s)}{here}"
    yield f"Cost: {cost.cpu_s:.0f} CPU-s{gpu} ({source}){wall}."
    if cost.unknown:
        yield f"Not in it: {cost.unknown} runs and stages that were never timed on this machine."


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _powers(powers: Sequence[Power]) -> Iterator[str]:
    for power in powers:
        # Whose folds they are is worth saying only where there are several.
        yield _power(power) + (f" That is for {', '.join(power.arms)}." if len(powers) > 1 else "")
        if power.caution:
            yield f"{power.caution}."


def _power(power: Power) -> str:
    family = f"the first of {power.family} planned contrasts" if power.family > 1 else "one contrast"
    if power.refusal:
        return f"No significance can be promised: {power.refusal}."
    if power.in_sd is None:
        return f"No significance can be promised: {power.n} {power.replicate} have no spread."
    test = f"n = {power.n} {power.replicate}, two-sided at {power.level:.3g} for {family}, power .8"
    return f"Smallest difference it can be expected to find ({test}): {_size(power)}."


def _size(power: Power) -> str:
    in_sd = f"{power.in_sd:.2f} sd of the paired differences"
    if power.spread is None:
        return f"{in_sd}; no earlier study of this data set tells that sd"
    return f"{power.difference:.3f} = {in_sd}, which were {power.spread:.3f} in {power.source}"
