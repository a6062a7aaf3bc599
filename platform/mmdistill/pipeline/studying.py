"""The student stage: lanes of one shape train as one cohort.

Axes: K lanes, M teachers, N rows, D width, C outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmdistill.models.network import Network
from mmdistill.pipeline.cache import Entry
from mmdistill.pipeline.evaluation import evaluate
from mmdistill.pipeline.fold import Fold
from mmdistill.pipeline.run import RunSettings, canonical, network_modalities
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
from mmdistill.training.student import FrozenTeachers, LiveTeacher, Rows, StudentObjective

DEGENERATE_SHARE = 0.99


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
) -> list[Entry]:
    """Train the students of lanes with one cohort key.

    Args:
        runs: one per lane.
        outputs: each lane's teacher outputs; None where no frozen teacher teaches.
        fold: the data without test rows.
        runtime: where this runs.
        race: how the lanes race; by default none is stopped.
        keeper: of the snapshots of this training.

    Returns:
        per lane the student's weights, and as facts the kept epoch, validation metrics, curves, the share
        of each teacher, CPU seconds, for a diverged lane the term and step, and for one that a race stopped
        the epochs it trained.
    """
    objective = student_objective(runs, outputs, fold, runtime)
    race_on = None if race is None else Race(race, objective.only)
    fitted = fit(objective, student_plan(runs, fold), runtime, race_on, keeper)
    metrics = evaluate(objective.student, fold, fold.arrays.validation, fold.validation, len(runs))
    return [_entry(k, runs, fitted, metrics) for k in range(len(runs))]


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
    for score in ("accuracy", "log_loss", "ccc"):
        if f"validation/teacher_{score}" in curves:
            found[f"teacher_{score}"] = curves[f"validation/teacher_{score}"][epoch]
    return found


def _shares(curves: dict[str, list[float]]) -> dict[str, float]:
    prefix = "detail/selection/"
    return {n.removeprefix(prefix): sum(v) / len(v) for n, v in curves.items() if n.startswith(prefix)}


def degenerate_notes(shares: Mapping[str, float]) -> list[str]:
    """Return the stamp of a run whose selection is no selection; none for one that selects."""
    return [
        f"selection degenerate: equals fixed:{n}" for n, share in shares.items() if share > DEGENERATE_SHARE
    ]


def student_network(runs: Sequence[RunSettings], fold: Fold) -> Network:
    """Return the students of some lanes, initialised from each pair's seed."""
    run = runs[0]
    seeds = [derive_seed(r.seed, "student") for r in runs]
    widths = fold.widths(run.data.student)
    return Network(widths, fold.outputs, run.network, seeds).to(fold.device)


def student_objective(
    runs: Sequence[RunSettings], outputs: Sequence[Entry] | None, fold: Fold, runtime: Runtime
) -> StudentObjective:
    """Return what the students of lanes with one cohort key are trained for, at their first weights."""
    run = runs[0]
    labelled = [torch.from_numpy(fold.labelled(r.data.label_fraction, r.seed)) for r in runs]
    rows = Rows(fold.train, fold.validation, torch.stack(labelled).to(fold.device), fold.task)
    frozen = None if outputs is None else _frozen(run, outputs, rows)
    live = _live(runs, fold) if run.trains_teacher() else None
    width = run.network.width
    names = () if frozen is None else frozen.names
    shapes = Shapes(width, width, width, fold.task, fold.outputs, names, len(fold.train), run.epochs)
    smoothing = _lanes(runs, "label_smoothing", fold)
    terms, average = _terms(runs, shapes, fold), _average(runs, fold)
    return StudentObjective(
        student_network(runs, fold), terms, rows, smoothing, runtime, frozen, live, average
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


def _frozen(run: RunSettings, outputs: Sequence[Entry], rows: Rows) -> FrozenTeachers:
    names = tuple(outputs[0].facts["teachers"])
    device = rows.labelled_KN.device
    stacks = {
        key: torch.stack([entry.tensors[key] for entry in outputs]).to(device) for key in outputs[0].tensors
    }
    judged = stacks["held_out" if run.selection.evidence == "out_of_fold" else "logits"]
    evidence_KMN = _row_losses(judged, rows) * rows.labelled_KN[:, None, :]
    return FrozenTeachers(
        names,
        stacks.pop("features"),
        stacks.pop("logits"),
        evidence_KMN,
        rows.labelled_KN,
        run.selection.policy,
        {key: stacks[key] for key in stacks if key != "held_out"},
    )


def _row_losses(logits_KMNC: Tensor, rows: Rows) -> Tensor:
    """Return each teacher's cross entropy, or squared error, at each row."""
    labels = rows.train.labels
    if rows.task == "regression":
        return (logits_KMNC - labels).square().mean(dim=-1)
    spread = labels.expand(logits_KMNC.shape[:-1]).reshape(-1)
    losses = cross_entropy(logits_KMNC.reshape(-1, logits_KMNC.shape[-1]), spread, reduction="none")
    return losses.view(logits_KMNC.shape[:-1])


def _live(runs: Sequence[RunSettings], fold: Fold) -> LiveTeacher:
    run = runs[0]
    (name,) = run.networks()
    teacher = _fresh(runs, fold, name, "live teacher")
    auxiliary = _fresh(runs, fold, "privileged", "auxiliary") if run.needs_auxiliary() else None
    source_KN = taught_parts(runs, fold)[0].source_KN
    return LiveTeacher(teacher, auxiliary, run.teachers.task_weight, source_KN)


def _fresh(runs: Sequence[RunSettings], fold: Fold, name: str, role: str) -> Network:
    seeds = [derive_seed(run.seed, role) for run in runs]
    widths = fold.widths(network_modalities(name, runs[0].data))
    return Network(widths, fold.outputs, runs[0].network, seeds).to(fold.device)
