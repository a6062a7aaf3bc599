"""Does the range of every term's weight fit its loss? Term against task, in the gradient of a student.

    OMP_NUM_THREADS=1 python tests/benchmarks/term_weights.py [--lanes 4] [--set form="alice"] [TERM ...]

On `digits_views` as in the default study, with trained teachers (the joint one; a term on auxiliaries or on
all teachers has those), terms at their defaults but for what is set, and beyond any warm-up. For each: the
ratio of the unweighted term to the task loss at first; that of their gradients' lengths in the student (in
the teacher that trains along, for a term that leaves the student alone) at first and after some epochs of
training with the default weight, means over an epoch's batches and the lanes; and the geometric mean of those
two at both ends of the weight's range and at its default. A range should reach from about .1 to 10.

Axes: K lanes, B batch.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from mmdistill.pipeline.bench import Bench, Piece
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.studying import student_objective, student_plan
from mmdistill.settings import declared_ranges
from mmdistill.terms import TERMS
from mmdistill.training.loop import Plan, Training
from mmdistill.training.runtime import LocalRuntime
from mmdistill.training.student import StudentObjective

DATA = {
    "dataset": "digits_views",
    "student": ["rows"],
    "privileged": ["pixels", "fourier", "gradients"],
    "label_fraction": 0.25,
}
TRAINED_EPOCHS = 10


class Ratios(NamedTuple):
    """Term over task: the loss at first, the gradient at first and in training."""

    value: float
    first: float
    later: float

    @property
    def slope(self) -> float:
        return math.sqrt(self.first * self.later)


def runs_with(name: str, lanes: int, settings: dict[str, object]) -> list[RunSettings]:
    """Return runs with that term alone, one per seed."""
    teachers: dict[str, object] = {"pool": ["joint"]}
    if "pool" in TERMS[name].needs:
        teachers = {"pool": ["each", "joint"]}
    if "auxiliary" in TERMS[name].needs:
        teachers = {"pool": ["joint"], "training": "joint"}
        settings = {"teacher_gradient": True} | settings
    if "average" in TERMS[name].needs:
        teachers = {"pool": ["student"], "training": "joint"}
    tree = {"data": DATA, "teachers": teachers, "terms": {name: settings}}
    return [RunSettings.model_validate(tree | {"seed": seed}) for seed in range(lanes)]


def ratios(name: str, lanes: int, settings: dict[str, object], root: Path) -> Ratios:
    """Return term over task loss at first, and the ratio of their gradients' lengths at first and later."""
    runs = runs_with(name, lanes, settings)
    fold = opened(runs[0].data, runs[0].fold, False, str(LocalRuntime().device))
    bench = Bench("weights", StageCache(root), fold, LocalRuntime())
    outputs = bench.outputs([Piece(run, "pair") for run in runs])
    objective, plan = student_objective(runs, outputs, fold, LocalRuntime()), student_plan(runs, fold)
    training = Training(objective, plan, LocalRuntime())
    value, first = measured(objective, plan, name)
    for _ in range(TRAINED_EPOCHS):
        training.run_epoch()
    return Ratios(value, first, measured(objective, plan, name)[1])


def measured(objective: StudentObjective, plan: Plan, name: str) -> tuple[float, float]:
    """Return term over task, losses and gradients, over the batches of an epoch."""
    values, slopes = [], []
    auxiliary = "auxiliary" in TERMS[name].needs
    # An auxiliary's term is for the teacher that trains along, whose task that is.
    task = "teacher_task" if auxiliary else "task"
    learner = objective.modules.get_submodule("teacher") if auxiliary else objective.student
    learned = list(learner.parameters())
    for rows_KB in plan.batches.take(plan.steps):
        parts = objective.losses(rows_KB, plan.epochs - 1).terms
        values.append((parts[name] / parts[task]).detach().mean())
        lengths = []
        for part in (name, task):
            found = torch.autograd.grad(parts[part].sum(), learned, retain_graph=True, allow_unused=True)
            lengths.append(sum(g.square().sum() for g in found if g is not None) ** 0.5)
        slopes.append(lengths[0] / lengths[1])
    return float(torch.stack(values).mean()), float(torch.stack(slopes).mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("terms", nargs="*")
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", dest="settings")
    given = parser.parse_args()
    changed = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in given.settings)}
    names = given.terms or [name for name in TERMS if "classification" in TERMS[name].tasks]
    ends = ("low", "default", "high")
    print(f"{'':35} gradients {'':17}weight {'':20}weighted gradient")
    print(f"{'term':24}{'value':>10}{'at first':>10}{'later':>10}" + 2 * "".join(f"{e:>10}" for e in ends))
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            found = ratios(name, given.lanes, changed, Path(root))
            weight = TERMS[name].settings_type(**changed).weight
            searched = declared_ranges(TERMS[name].settings_type())["weight"]
            weights = [searched.low, weight, searched.high]
            figures = [*found, *weights, *(found.slope * weight for weight in weights)]
            print(f"{name:24}" + "".join(f"{figure:10.3g}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
