"""The student stage: lanes of one shape train as one cohort.

Axes: K lanes, M teachers, N rows, D width, C outputs.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmdistill.models.network import Network, Outputs
from mmdistill.pipeline.cache import Entry
from mmdistill.pipeline.evaluation import evaluate
from mmdistill.pipeline.fold import Fold
from mmdistill.pipeline.parts import network_modalities
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.pipeline.teaching import taught_parts
from mmdistill.randomness import derive_seed
from mmdistill.settings import declared_ranges, digest, flattened
from mmdistill.terms import TERMS, Shapes
from mmdistill.terms.base import AbstractTerm
from mmdistill.training.average import AverageNetwork
from mmdistill.training.batches import BatchOrder
from mmdistill.training.loop import Fitted, Keeper, Plan, Race, fit
from mmdistill.training.race import RaceSettings
from mmdistill.training.runtime import Runtime
from mmdistill.training.student import LiveTeacher, Rows, StudentObjective
from mmdistill.training.teachers import FrozenTeachers

DEGENERATE_SHARE = 0.99
# A discriminator that is right this often, over this many steps in a row, has nothing left to teach.
SATURATED_ACCURACY, SATURATED_STEPS = 0.99, 200


def cohort_key(run: RunSettings) -> str:
    """Return what lanes of one cohort must agree in: everything but the seed and fields with a range.

    A run with a term that cannot be stacked is a cohort of its own.
    """
    # A term of weight 0 is absent, so its lane has another objective than one with a weight.
    run = canonical(run)
    if any(TERMS[name].solo for name in run.terms):
        return digest([run.as_json()])
    varying = set(declared_ranges(run)) | {"seed"}
    same = {path: value for path, value in flattened(run.as_json()).items() if path not in varying}
    return digest([same, list(run.terms)])


def train_students(
    runs: Sequence[RunSettings],
    outputs: Sequence[Entry] | None,
    fold: Fold,
    runtime: Runtime,
    race: RaceSettings | None = None,
    keeper: Keeper | None = None,
    first: Sequence[Entry] | None = None,
) -> list[Entry]:
    """Train the students of lanes with one cohort key.

    Args:
        runs: one per lane.
        outputs: what each lane's networks that were trained before said; None without any.
        fold: the data without test rows.
        runtime: where this runs.
        race: how the lanes race; by default none is stopped.
        keeper: of the snapshots of this training.
        first: each lane's network whose encoders the student begins with; fresh ones by default.

    Returns:
        per lane the student's weights, and as facts the kept epoch, validation metrics, curves, notes, the
        share of each teacher, CPU seconds, for a diverged lane the term and step, and for one that a race
        stopped the epochs it trained.
    """
    objective = student_objective(runs, outputs, fold, runtime)
    if first is not None:
        begin_with(objective.student, first)
    race_on = None if race is None else Race(race, objective.only)
    plan = student_plan(runs, fold)
    fitted = fit(objective, plan, runtime, race_on, keeper)
    metrics = evaluate(objective.student, fold, fold.arrays.validation, fold.validation, len(runs))
    entries = [_entry(k, runs, fitted, metrics) for k in range(len(runs))]
    for entry in entries:
        entry.facts["notes"] = saturated_notes(entry.facts["curves"], plan.steps)
    return entries


def student_plan(runs: Sequence[RunSettings], fold: Fold) -> Plan:
    """Return how the students of lanes with one cohort key are trained."""
    run = runs[0]
    seeds = [derive_seed(r.seed, "student batches") for r in runs]
    batches = BatchOrder([torch.arange(len(fold.train))] * len(runs), seeds, run.batch_size)
    steps = max(1, len(fold.train) // run.batch_size)
    rate, decay = (_lanes(runs, field, fold) for field in ("learning_rate", "weight_decay"))
    return Plan(batches, run.epochs, steps, rate, decay, run.optimiser.schedule)


def _entry(k: int, runs: Sequence[RunSettings], fitted: Fitted, metrics: list[dict[str, float]]) -> Entry:
    prefix = "student."
    lane = fitted.parameters.lane(k)
    tensors = {name.removeprefix(prefix): t for name, t in lane.items() if name.startswith(prefix)}
    curves = {name: values_AE[k] for name, values_AE in fitted.curves.items()}
    facts: dict[str, Any] = {
        "epoch": fitted.epoch_A[k],
        "stopped_epoch": fitted.stopped.get(k),
        "metrics": metrics[k] | _means(curves, fitted.epoch_A[k]),
        "curves": curves,
        "selection": _shares(curves),
        "cpu_s": fitted.share(k),
        "lanes": len(runs),
        "diverged": fitted.diverged.get(k),
    }
    return Entry(tensors, facts)


def _means(curves: dict[str, list[float]], epoch: int) -> dict[str, float]:
    """Return what a table wants of the curves: the unconverged share over training, the teacher's score."""
    found = {}
    converged = curves.get("detail/transport/converged")
    if converged:
        found["transport_unconverged"] = 1 - sum(converged) / len(converged)
    for score in ("accuracy", "log_loss", "ccc", "auxiliary_r2"):
        if f"validation/teacher_{score}" in curves:
            found[f"teacher_{score}"] = curves[f"validation/teacher_{score}"][epoch]
    return found


def _shares(curves: dict[str, list[float]]) -> dict[str, float]:
    prefix = "detail/selection/"
    return {n.removeprefix(prefix): sum(v) / len(v) for n, v in curves.items() if n.startswith(prefix)}


def degenerate_notes(run: RunSettings, shares: Mapping[str, float]) -> list[str]:
    """Return the stamp of a run whose selection is no selection; none for one that selects, or need not."""
    if run.selection.policy == "fixed":
        return []
    return [
        f"selection degenerate: equals fixed:{n}" for n, share in shares.items() if share > DEGENERATE_SHARE
    ]


def saturated_notes(curves: Mapping[str, Sequence[float]], steps: int) -> list[str]:
    """Return the stamp of a run whose discriminator won for good; none where it did not, or there is none.

    Args:
        curves: means over each epoch.
        steps: of an epoch.
    """
    accuracies = [values for name, values in curves.items() if name.endswith("/discriminator_accuracy")]
    won = [[value > SATURATED_ACCURACY for value in values] for values in accuracies]
    longest = max((len(list(run)) for flags in won for is_won, run in groupby(flags) if is_won), default=0)
    return ["adversary saturated"] if longest * steps >= SATURATED_STEPS else []


def student_network(runs: Sequence[RunSettings], fold: Fold) -> Network:
    """Return the students of some lanes, initialised from each pair's seed."""
    run = runs[0]
    seeds = [derive_seed(r.seed, "student") for r in runs]
    widths = fold.widths(run.data.student)
    return Network(widths, fold.outputs, run.network, seeds, run.missing()).to(fold.device)


@torch.no_grad()
def begin_with(student: Network, first: Sequence[Entry]) -> None:
    """Give every lane of the student the encoders of a network that saw every labelled row."""
    for name, parameter in student.encoders.named_parameters(prefix="encoders"):
        parameter.copy_(torch.stack([entry.tensors[name][0] for entry in first]))


def student_objective(
    runs: Sequence[RunSettings], outputs: Sequence[Entry] | None, fold: Fold, runtime: Runtime
) -> StudentObjective:
    """Return what the students of lanes with one cohort key are trained for, at their first weights."""
    run = runs[0]
    labelled = [torch.from_numpy(fold.labelled(r.data.label_fraction, r.seed)) for r in runs]
    rows = Rows(fold.train, fold.validation, torch.stack(labelled).to(fold.device), fold.task)
    live = _live(runs, outputs, fold) if run.trains_teacher() else None
    frozen = None if outputs is None or live is not None else _frozen(runs, outputs, rows)
    width = run.network.width
    names = () if frozen is None else frozen.names
    shapes = Shapes(width, width, width, fold.task, fold.outputs, names, len(fold.train), run.epochs)
    smoothing = _lanes(runs, "label_smoothing", fold)
    terms, average = _terms(runs, shapes, fold), _average(runs, fold)
    return StudentObjective(
        student_network(runs, fold),
        terms,
        rows,
        smoothing,
        runtime,
        frozen,
        live,
        task_weight=run.student.task_weight,
        hallucination=run.hallucinator.loss,
        average=average,
    )


def _average(runs: Sequence[RunSettings], fold: Fold) -> AverageNetwork | None:
    names = [name for name in runs[0].active_terms() if "average" in TERMS[name].needs]
    if not names:
        return None
    momentum = [dict(run.terms[names[0]])["momentum"] for run in runs]
    return AverageNetwork(student_network(runs, fold), momentum)


def _lanes(runs: Sequence[RunSettings], field: str, fold: Fold) -> Tensor:
    return torch.tensor([getattr(run.optimiser, field) for run in runs], device=fold.device)


def _terms(runs: Sequence[RunSettings], shapes: Shapes, fold: Fold) -> dict[str, AbstractTerm]:  # type: ignore[type-arg]
    found = {}
    for name in runs[0].active_terms():
        seeds = [derive_seed(run.seed, "term", name) for run in runs]
        found[name] = TERMS[name]([run.terms[name] for run in runs], shapes, seeds).to(fold.device)
    return found


def _frozen(runs: Sequence[RunSettings], outputs: Sequence[Entry], rows: Rows) -> FrozenTeachers:
    run, names = runs[0], tuple(outputs[0].facts["teachers"])
    device = rows.labelled_KN.device
    stacks = {
        key: torch.stack([entry.tensors[key] for entry in outputs]).to(device) for key in outputs[0].tensors
    }
    selection = run.selection
    judged = stacks["held_out" if selection.evidence == "out_of_fold" else "logits"]
    by_ccc = rows.task == "regression" and selection.regression == "ccc"
    return FrozenTeachers(
        names,
        stacks["features"],
        stacks["logits"],
        _row_losses(judged, rows) * rows.labelled_KN[:, None, :],
        rows.labelled_KN,
        selection.policy,
        torch.tensor([one.selection.temperature for one in runs], device=device),
        # Of a lone teacher nothing is asked, whatever the settings say.
        names.index(selection.fixed_to) if selection.fixed_to in names else 0,
        judged if by_ccc else None,
        rows.train.labels if by_ccc else None,
        stacks.get("streams"),
        {key: stacks[key] for key in stacks if key.startswith("layer_") or key in {"alone", "without"}},
    )


def _row_losses(logits_KMNC: Tensor, rows: Rows) -> Tensor:
    """Return each teacher's cross entropy, or squared error, at each row."""
    labels = rows.train.labels
    if rows.task == "regression":
        return (logits_KMNC - labels).square().mean(dim=-1)
    spread = labels.expand(logits_KMNC.shape[:-1]).reshape(-1)
    losses = cross_entropy(logits_KMNC.reshape(-1, logits_KMNC.shape[-1]), spread, reduction="none")
    return losses.view(logits_KMNC.shape[:-1])


def _live(runs: Sequence[RunSettings], outputs: Sequence[Entry] | None, fold: Fold) -> LiveTeacher:
    run = runs[0]
    (name,) = run.networks()
    teacher = _fresh(runs, fold, name, "live teacher")
    auxiliary: Network | Outputs | None
    auxiliary = _fresh(runs, fold, "privileged", "auxiliary") if run.trains_auxiliary() else None
    if outputs is not None:
        said = (torch.stack([entry.tensors[n][0] for entry in outputs]) for n in ("features", "logits"))
        auxiliary = Outputs(*(x.to(fold.device) for x in said))
    source_KN = taught_parts(runs, fold)[0].source_KN
    return LiveTeacher(teacher, auxiliary, run.teachers.task_weight, source_KN)


def _fresh(runs: Sequence[RunSettings], fold: Fold, name: str, role: str) -> Network:
    seeds = [derive_seed(run.seed, role) for run in runs]
    widths = fold.widths(network_modalities(name, runs[0].data))
    return Network(widths, fold.outputs, runs[0].network, seeds).to(fold.device)
