"""The shared stages: teachers with their out-of-fold copies, alignment, outputs on the training rows.

Axes: V variants of one teacher (the first saw every labelled row, variant f all but inner fold f), K lanes
(stages x variants), N rows, D width, C outputs, M teachers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from mmdistill.models.network import Network, Outputs
from mmdistill.pipeline.cache import Entry
from mmdistill.pipeline.fold import Fold
from mmdistill.pipeline.parts import network_modalities
from mmdistill.pipeline.run import RunSettings
from mmdistill.randomness import derive_seed
from mmdistill.training.batches import BatchOrder
from mmdistill.training.loop import Fitted, Keeper, Plan, fit
from mmdistill.training.objectives import (
    CHUNK,
    AlignedTeachers,
    AlignmentLoss,
    AlignmentObjective,
    Streams,
    SupervisedObjective,
    TensorPart,
    aligned_on,
    criterion,
    layers_on,
    masked,
    outputs_on,
)
from mmdistill.training.optimiser import load_lanes
from mmdistill.training.runtime import Runtime


@dataclass(frozen=True)
class Variants:
    """The variants of each run's teachers: which rows each saw, and which rows each was kept from.

    Attributes:
        rows: the labelled rows each lane trains on, runs x variants, runs first.
        inner_N: per run the inner fold of each row, -1 without a label.
    """

    rows: list[Tensor]
    inner_N: list[npt.NDArray[np.int64]]
    count: int

    @classmethod
    def of(cls, runs: Sequence[RunSettings], fold: Fold) -> "Variants":
        """Draw the label rows and inner folds of some runs."""
        rows, inner = [], []
        count = runs[0].teachers.out_of_fold
        for run in runs:
            labelled = fold.labelled(run.data.label_fraction, run.seed)
            held_out = fold.held_out(labelled, count, run.seed)
            inner.append(held_out)
            seen = [labelled] + [labelled & (held_out != f) for f in range(count)]
            rows += [torch.from_numpy(np.flatnonzero(mask)) for mask in seen]
        return cls(rows, inner, count + 1)

    def seeds(self, runs: Sequence[RunSettings], role: str) -> list[int]:
        """Return one seed per lane."""
        return [derive_seed(run.seed, role, v) for run in runs for v in range(self.count)]

    def batches(self, runs: Sequence[RunSettings], role: str) -> tuple[BatchOrder, int]:
        """Return the batches of the labelled rows and the steps of an epoch."""
        size = runs[0].batch_size
        steps = max(1, max(len(rows) for rows in self.rows) // size)
        return BatchOrder(self.rows, self.seeds(runs, f"{role} batches"), size), steps


def taught_parts(runs: Sequence[RunSettings], fold: Fold, copies: int = 1) -> tuple[TensorPart, TensorPart]:
    """Return training and validation rows as teachers see them: with their labels, or with permuted ones.

    Every run has ``copies`` lanes, side by side. The validation rows choose the epoch that is kept, so they
    must not tell a teacher of permuted labels anything either.
    """
    if runs[0].teachers.labels == "true":
        return fold.train, fold.validation
    drawn = [fold.permuted(run.data.label_fraction, run.seed) for run in runs]
    train, validation = (
        torch.from_numpy(np.stack(sources)).repeat_interleave(copies, dim=0).to(fold.device)
        for sources in zip(*drawn, strict=True)
    )
    return replace(fold.train, source_KN=train), replace(fold.validation, source_KN=validation)


def train_teachers(
    runs: Sequence[RunSettings], name: str, fold: Fold, runtime: Runtime, keeper: Keeper | None = None
) -> list[Entry]:
    """Train the network called ``name`` of every run, all variants of all runs in one cohort.

    The runs must agree in everything but the seed; ``keeper`` keeps the snapshots of this training. An entry
    holds the weights by parameter, [V, ...].
    """
    run, variants = runs[0], Variants.of(runs, fold)
    modalities = network_modalities(name, run.data)
    seeds = variants.seeds(runs, f"teacher {'+'.join(modalities)}")
    network = Network(fold.widths(modalities), fold.outputs, run.network, seeds).to(fold.device)
    smoothing = torch.full((len(seeds),), run.teachers.label_smoothing, device=fold.device)
    train, validation = taught_parts(runs, fold, variants.count)
    objective = SupervisedObjective(network, train, validation, fold.task, smoothing, runtime)
    batches, steps = variants.batches(runs, "teacher")
    rate = torch.full_like(smoothing, run.teachers.learning_rate)
    decay = torch.full_like(smoothing, run.teachers.weight_decay)
    plan = Plan(batches, run.teachers.epochs, steps, rate, decay, "cosine")
    fitted = fit(objective, plan, runtime, keeper=keeper)
    with torch.no_grad():
        scores = objective.validation()
    return _entries(fitted, variants.count, [_scores(scores, s * variants.count) for s in range(len(runs))])


def align_teachers(
    runs: Sequence[RunSettings],
    teachers: Mapping[str, Sequence[Entry]],
    fold: Fold,
    runtime: Runtime,
    keeper: Keeper | None = None,
) -> list[Entry]:
    """Align the set of teachers of every run; ``teachers`` holds each network's entries, one per run."""
    run, variants = runs[0], Variants.of(runs, fold)
    networks = _loaded(runs, teachers, fold)
    joint, settings = networks.pop("joint"), run.alignment
    aligned = _unaligned(runs, networks, joint, fold, variants).requires_grad_(True)
    lanes = len(runs) * variants.count
    train, validation = (
        _streams(networks, joint, part, lanes) for part in taught_parts(runs, fold, variants.count)
    )
    loss = AlignmentLoss(settings.loss, settings.detach_joint, settings.temperature)
    objective = AlignmentObjective(aligned, train, validation, fold.task, settings.weight, loss)
    batches, steps = variants.batches(runs, "alignment")
    rate = torch.full((lanes,), settings.learning_rate, device=fold.device)
    plan = Plan(batches, settings.epochs, steps, rate, torch.zeros_like(rate), "cosine")
    fitted = fit(objective, plan, runtime, keeper=keeper)
    with torch.no_grad():
        scores = objective.validation()
    return _entries(fitted, variants.count, [_scores(scores, s * variants.count) for s in range(len(runs))])


def teacher_outputs(
    runs: Sequence[RunSettings],
    teachers: Mapping[str, Sequence[Entry]],
    alignment: Sequence[Entry] | None,
    fold: Fold,
) -> list[Entry]:
    """Return what every run's teachers say about the training rows.

    An entry holds ``features`` [M, N, D] and ``logits`` [M, N, C] of the teachers that saw every labelled
    row, and ``held_out`` [M, N, C]: at each labelled row the logits of the variant that did not see it. Where
    the student hallucinates, also ``streams`` [S, N, D]: what the joint teacher's encoders, which alignment
    leaves alone, make of the modalities it is missing. Where terms look at them, ``layer_0``, ``layer_1`` ...
    [M, N, W], teachers with fewer modalities filled up with zeros, and the logits ``alone`` and ``without``
    [M, N, V, C] of each modality of the student.
    """
    variants = Variants.of(runs, fold)
    lanes = len(runs) * variants.count
    networks = _loaded(runs, teachers, fold)
    names = tuple(networks)
    with torch.no_grad():
        train = _named_outputs(networks, alignment, fold, fold.train, lanes, variants, runs)
        seen = _named_outputs(networks, alignment, fold, fold.validation, lanes, variants, runs)
        further = _layers(networks, fold, lanes) if "layers" in runs[0].further() else {}
        if "masked" in runs[0].further():
            further |= _masked(networks, alignment, fold, lanes, variants, runs)
    entries = []
    for s in range(len(runs)):
        first = s * variants.count
        held_out = [_held_out(train[name].logits_KBC, variants.inner_N[s], first) for name in names]
        tensors = {
            "features": torch.stack([train[name].features_KBD[first] for name in names]),
            "logits": torch.stack([train[name].logits_KBC[first] for name in names]),
            "held_out": torch.stack(held_out),
        }
        tensors |= {name: found_KMN[first] for name, found_KMN in further.items()}
        if runs[0].hallucinates():
            tensors["streams"] = _privileged_streams(networks["joint"], runs[0], fold, first)
        facts = {"teachers": list(names), "metrics": _all_scores(seen, fold, first)}
        entries.append(Entry(tensors, facts))
    return entries


def _layers(networks: Mapping[str, Network], fold: Fold, lanes: int) -> dict[str, Tensor]:
    found = [layers_on(network, fold.train, lanes) for network in networks.values()]
    # Zeros change no distance and no inner product between rows.
    return {f"layer_{n}": _filled_up(layers) for n, layers in enumerate(zip(*found, strict=True))}


def _filled_up(layers: Sequence[Tensor]) -> Tensor:
    most = max(layer_KNW.shape[-1] for layer_KNW in layers)
    return torch.stack([pad(layer_KNW, (0, most - layer_KNW.shape[-1])) for layer_KNW in layers], dim=1)


def _masked(
    networks: Mapping[str, Network],
    alignment: Sequence[Entry] | None,
    fold: Fold,
    lanes: int,
    variants: Variants,
    runs: Sequence[RunSettings],
) -> dict[str, Tensor]:
    def logits(kept: Callable[[str], bool]) -> Tensor:
        part = replace(fold.train, inputs=masked(fold.train.inputs, kept))
        found = _named_outputs(networks, alignment, fold, part, lanes, variants, runs)
        return torch.stack([found[name].logits_KBC for name in networks], dim=1)

    modalities = sorted(runs[0].data.student)
    return {
        "alone": torch.stack([logits(one.__eq__) for one in modalities], dim=3),
        "without": torch.stack([logits(one.__ne__) for one in modalities], dim=3),
    }


def _named_outputs(
    networks: Mapping[str, Network],
    alignment: Sequence[Entry] | None,
    fold: Fold,
    part: TensorPart,
    lanes: int,
    variants: Variants,
    runs: Sequence[RunSettings],
) -> dict[str, Outputs]:
    if alignment is None:
        return {name: outputs_on(network, part, lanes) for name, network in networks.items()}
    others = {name: network for name, network in networks.items() if name != "joint"}
    aligned = _unaligned(runs, others, networks["joint"], fold, variants)
    load_lanes(aligned, [entry.tensors for entry in alignment])
    streams = _streams(others, networks["joint"], part, lanes)
    found = aligned_on(aligned, streams)
    return {name: found[name] for name in networks}


def _unaligned(
    runs: Sequence[RunSettings],
    others: Mapping[str, Network],
    joint: Network,
    fold: Fold,
    variants: Variants,
) -> AlignedTeachers:
    """Return the set as it is before alignment."""
    seeds, adapters = variants.seeds(runs, "alignment"), runs[0].alignment.kind == "adapters"
    return AlignedTeachers(tuple(others), joint, fold.outputs, seeds, adapters=adapters).to(fold.device)


def _held_out(logits_KNC: Tensor, inner_N: npt.NDArray[np.int64], first: int) -> Tensor:
    lane_N = torch.from_numpy(inner_N).to(logits_KNC.device) + 1 + first
    rows_N = torch.arange(logits_KNC.shape[1], device=logits_KNC.device)
    return logits_KNC[lane_N, rows_N]


def _loaded(
    runs: Sequence[RunSettings], teachers: Mapping[str, Sequence[Entry]], fold: Fold
) -> dict[str, Network]:
    """Return the networks trained before the students of all runs, every variant of every run a lane."""
    run, found = runs[0], {}
    for name, modalities in run.frozen_networks().items():
        lanes = len(runs) * (run.teachers.out_of_fold + 1)
        network = Network(fold.widths(modalities), fold.outputs, run.network, [0] * lanes)
        load_lanes(network, [entry.tensors for entry in teachers[name]])
        found[name] = network.to(fold.device).requires_grad_(False)
    return found


@torch.no_grad()
def _privileged_streams(joint: Network, run: RunSettings, fold: Fold, lane: int) -> Tensor:
    missing, lanes = run.missing(), len(joint.head.weight_KIO)
    names = () if missing is None else missing.modalities
    return torch.stack([_encoded(joint, name, fold.train, lanes)[lane] for name in names])


def _encoded(network: Network, name: str, part: TensorPart, lanes: int) -> Tensor:
    pieces = torch.split(part.inputs[name], CHUNK)
    return torch.cat([network.encoders[name](x.expand(lanes, *x.shape)) for x in pieces], dim=1)


@torch.no_grad()
def _streams(networks: Mapping[str, Network], joint: Network, part: TensorPart, lanes: int) -> Streams:
    unimodal = {name: outputs_on(network, part, lanes).features_KBD for name, network in networks.items()}
    encoded = {name: _encoded(joint, name, part, lanes) for name in joint.modalities}
    return Streams(unimodal, encoded, part.labels, part.source_KN)


def _entries(fitted: Fitted, variants: int, metrics: Sequence[dict[str, float]]) -> list[Entry]:
    share = fitted.cpu_s / len(metrics)
    entries = []
    for s, found in enumerate(metrics):
        lanes = [fitted.parameters.lane(s * variants + v) for v in range(variants)]
        tensors = {name: torch.cat([lane[name] for lane in lanes]) for name in lanes[0]}
        bad = [reason for lane, reason in fitted.diverged.items() if lane // variants == s]
        entries.append(Entry(tensors, {"metrics": found, "cpu_s": share, "diverged": bad}))
    return entries


def _scores(scores: Mapping[str, Tensor], lane: int) -> dict[str, float]:
    return {f"validation_{n}": float(v[lane]) for n, v in scores.items() if n != "criterion"}


def _all_scores(seen: Mapping[str, Outputs], fold: Fold, lane: int) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, outputs in seen.items():
        logits = outputs.logits_KBC[lane : lane + 1]
        for score, value in criterion(fold.task, logits, fold.validation.labels).items():
            if score != "criterion":
                metrics[f"{name}_{score}"] = float(value[0])
    return metrics


__all__ = ["align_teachers", "teacher_outputs", "train_teachers"]
