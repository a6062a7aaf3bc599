"""Does the range of every term's weight fit its loss? Term over task loss at the first weights of a student.

    OMP_NUM_THREADS=1 python tests/benchmarks/term_weights.py [--lanes 4] [TERM ...]

On `digits_views` as in the default study, with trained teachers (the joint one; a term on auxiliaries or on
all teachers has those), terms at their defaults and beyond any warm-up. For each: the ratio of the unweighted
term to the task loss and that of their gradients in the student, means over an epoch's batches and the lanes;
and the ratio at both ends of the weight's range and at its default. A range from .03 to 3 is what one wants.

Axes: K lanes, B batch.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from mmdistill.pipeline.bench import Bench, Piece
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.studying import student_objective, student_plan
from mmdistill.settings import declared_ranges
from mmdistill.terms import TERMS
from mmdistill.training.runtime import LocalRuntime

DATA = {
    "dataset": "digits_views",
    "student": ["rows"],
    "privileged": ["pixels", "fourier", "gradients"],
    "label_fraction": 0.25,
}


def runs_with(name: str, lanes: int) -> list[RunSettings]:
    """Return runs with that term alone, one per seed."""
    teachers = {"pool": ["joint"]}
    if "pool" in TERMS[name].needs:
        teachers = {"pool": ["each", "joint"]}
    if "auxiliary" in TERMS[name].needs:
        teachers = {"pool": ["joint"], "training": "joint"}
    if "average" in TERMS[name].needs:
        teachers = {"pool": ["student"], "training": "joint"}
    tree = {"data": DATA, "teachers": teachers, "terms": {name: {}}}
    return [RunSettings.model_validate(tree | {"seed": seed}) for seed in range(lanes)]


def ratios(name: str, lanes: int, root: Path) -> tuple[float, float]:
    """Return term over task loss, and the ratio of their gradients' lengths in the student."""
    runs = runs_with(name, lanes)
    fold = opened(runs[0].data, runs[0].fold, False, str(LocalRuntime().device))
    bench = Bench("weights", StageCache(root), fold, LocalRuntime())
    objective = student_objective(
        runs, bench.outputs([Piece(run, "pair") for run in runs]), fold, LocalRuntime()
    )
    plan, values, slopes = student_plan(runs, fold), [], []
    student = list(objective.student.parameters())
    for rows_KB in plan.batches.take(plan.steps):
        parts = objective.losses(rows_KB, runs[0].epochs - 1).terms
        values.append((parts[name] / parts["task"]).detach().mean())
        lengths = []
        for part in (name, "task"):
            found = torch.autograd.grad(parts[part].sum(), student, retain_graph=True, allow_unused=True)
            lengths.append(sum(g.square().sum() for g in found if g is not None) ** 0.5)
        slopes.append(lengths[0] / lengths[1])
    return float(torch.stack(values).mean()), float(torch.stack(slopes).mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("terms", nargs="*")
    parser.add_argument("--lanes", type=int, default=4)
    given = parser.parse_args()
    names = given.terms or [name for name in TERMS if "classification" in TERMS[name].tasks]
    heads = ("low", "default", "high")
    print(f"{'term':24} {'term/task':>10} {'gradients':>10}   weighted:" + "".join(f"{h:>9}" for h in heads))
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            value, slope = ratios(name, given.lanes, Path(root))
            settings = TERMS[name].settings_type()
            found = declared_ranges(settings)["weight"]
            weighted = [value * weight for weight in (found.low, settings.weight, found.high)]
            ends = "".join(f"{ratio:9.3g}" for ratio in weighted)
            print(f"{name:24} {value:10.4g} {slope:10.4g}            {ends}", flush=True)


if __name__ == "__main__":
    main()
