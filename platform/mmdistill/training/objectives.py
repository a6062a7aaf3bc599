"""What teachers and alignment are trained for.

Axes: K lanes, B batch, N rows, D width, C outputs, I inputs, M teachers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmdistill.losses.alignment import cosine_alignment
from mmdistill.losses.discrepancy import mmd
from mmdistill.losses.hints import fitnet
from mmdistill.losses.softened import kd, prediction_mse
from mmdistill.losses.task import ccc_loss, cross_entropy
from mmdistill.models.lanes import LaneLinear
from mmdistill.models.network import Adapter, Network, Outputs
from mmdistill.terms.base import Task
from mmdistill.training.loop import Losses
from mmdistill.training.runtime import Runtime

AlignmentLossKind = Literal["cosine", "mmd", "mse", "kl"]

# Rows of one forward pass over a whole part: bounds memory at K lanes x rows x width.
CHUNK = 8192


@dataclass(frozen=True)
class TensorPart:
    """One part of a fold on the device; labels are class indices [N] or targets [N, C].

    ``source_KN`` tells from which row each row of a lane takes its label; None for its own.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    source_KN: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


def at_rows(inputs: Mapping[str, Tensor], names: Sequence[str], rows_KB: Tensor) -> dict[str, Tensor]:
    """Return the inputs x_KBI of some modalities at the rows of each lane."""
    flat = rows_KB.reshape(-1)
    return {name: inputs[name].index_select(0, flat).view(*rows_KB.shape, -1) for name in names}


def labels_at(labels: Tensor, rows_KB: Tensor, source_KN: Tensor | None) -> Tensor:
    """Return the labels of lanes at some rows; ``source_KN`` tells from which row each takes its own."""
    return labels[rows_KB if source_KN is None else source_KN.gather(1, rows_KB)]


def all_labels(labels: Tensor, source_KN: Tensor | None) -> Tensor:
    """Return the labels of every row, per lane where lanes take them from other rows."""
    return labels if source_KN is None else labels[source_KN]


def task_loss(
    task: Task, logits_KBC: Tensor, labels: Tensor, mask_KB: Tensor | None, smoothing_K: Tensor
) -> Tensor:
    """Return cross entropy with label smoothing, or 1 - CCC, over the labelled rows of each lane.

    Without a mask all rows are labelled.
    """
    if task == "regression":
        return ccc_loss(logits_KBC, labels, mask_KB)
    return cross_entropy(logits_KBC, labels, mask_KB, label_smoothing=smoothing_K)


def criterion(task: Task, logits_KNC: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the validation values of each lane; ``criterion`` is the log-loss, or 1 - CCC.

    Labels are those of all lanes, [N] or targets [N, C], or each lane's own with K in front.
    """
    if labels.ndim == (2 if task == "regression" else 1):
        labels = labels.expand(logits_KNC.shape[0], *labels.shape)
    if task == "regression":
        loss = ccc_loss(logits_KNC, labels)
        return {"criterion": loss, "ccc": 1 - loss}
    loss = cross_entropy(logits_KNC, labels)
    accuracy = (logits_KNC.argmax(dim=-1) == labels).float().mean(dim=-1)
    return {"criterion": loss, "log_loss": loss, "accuracy": accuracy}


@torch.no_grad()
def outputs_on(network: Network, part: TensorPart, lanes: int) -> Outputs:
    """Return what every lane says about every row of a part, features_KND and logits_KNC."""
    pieces = []
    for start in range(0, len(part), CHUNK):
        stop = start + CHUNK
        inputs = {n: part.inputs[n][start:stop] for n in network.modalities}
        pieces.append(network({n: x.expand(lanes, *x.shape) for n, x in inputs.items()}))
    return _joined(pieces)


@torch.no_grad()
def layers_on(network: Network, part: TensorPart, lanes: int) -> list[Tensor]:
    """Return what every lane's layers below the features make of every row of a part, first to last."""
    pieces = []
    for start in range(0, len(part), CHUNK):
        inputs = {n: part.inputs[n][start : start + CHUNK] for n in network.modalities}
        pieces.append(network.with_layers({n: x.expand(lanes, *x.shape) for n, x in inputs.items()})[1])
    return [torch.cat(layer, dim=1) for layer in zip(*pieces, strict=True)]


def masked(inputs: Mapping[str, Tensor], kept: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return the inputs with all modalities but some replaced by zeros, their mean over training rows."""
    return {name: x if kept(name) else torch.zeros_like(x) for name, x in inputs.items()}


def _joined(pieces: Sequence[Outputs]) -> Outputs:
    features, logits = zip(*pieces, strict=True)
    return Outputs(torch.cat(features, dim=1), torch.cat(logits, dim=1))


class SupervisedObjective:
    """Train one network per lane on its labelled rows."""

    def __init__(
        self,
        network: Network,
        train: TensorPart,
        validation: TensorPart,
        task: Task,
        smoothing_K: Tensor,
        runtime: Runtime,
    ) -> None:
        self.modules: nn.Module = network
        self._network = network
        self._train, self._validation = train, validation
        self._task: Task = task
        self._smoothing_K = smoothing_K
        self._runtime = runtime

    def losses(self, rows_KB: Tensor, _epoch: int = 0) -> Losses:
        """Return the task loss; every row given is labelled."""
        mine = at_rows(self._train.inputs, self._network.modalities, self._runtime.share(rows_KB))
        logits = self._runtime.gather(self._network(mine).logits_KBC)
        labels = labels_at(self._train.labels, rows_KB, self._train.source_KN)
        loss = task_loss(self._task, logits, labels, None, self._smoothing_K)
        return Losses(loss, {"task": loss}, {})

    def validation(self) -> dict[str, Tensor]:
        """Return the criterion and score on the validation rows."""
        outputs = outputs_on(self._network, self._validation, len(self._smoothing_K))
        labels = all_labels(self._validation.labels, self._validation.source_KN)
        return criterion(self._task, outputs.logits_KBC, labels)


@dataclass(frozen=True)
class Streams:
    """Frozen inputs of alignment on one part: features by unimodal teacher, the joint's by modality.

    Labels are those of a :class:`TensorPart`.
    """

    unimodal: dict[str, Tensor]
    joint: dict[str, Tensor]
    labels: Tensor
    source_KN: Tensor | None = None


class AlignedTeachers(nn.Module):
    """Adapters and heads on the unimodal teachers, and the joint teacher's own fusion and head.

    The encoders below stay frozen (MT-PKDOT, stage 1). Without ``adapters`` the heads are on the teachers'
    raw features.
    """

    def __init__(
        self,
        names: Sequence[str],
        joint: Network,
        outputs: int,
        seeds: Sequence[int],
        *,
        adapters: bool = True,
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        width = joint.width
        self.adapters = nn.ModuleDict(
            {n: Adapter(width, seeds, f"adapter.{n}") if adapters else nn.Identity() for n in names}
        )
        self.heads = nn.ModuleDict({n: LaneLinear(width, outputs, seeds, f"adapter_head.{n}") for n in names})
        if joint.fusion is None:
            raise ValueError("the joint teacher sees one modality only: there is nothing to fuse")
        self.fusion = joint.fusion
        self.joint_head = joint.head
        self.joint_modalities = joint.modalities

    def forward(self, unimodal: Mapping[str, Tensor], joint: Mapping[str, Tensor]) -> dict[str, Outputs]:
        """Return the outputs of every teacher by name, the joint one as ``joint``."""
        features = {name: self.adapters[name](unimodal[name]) for name in self.names}
        found = {name: Outputs(z, self.heads[name](z)) for name, z in features.items()}
        fused = self.fusion([joint[name] for name in self.joint_modalities])
        return found | {"joint": Outputs(fused, self.joint_head(fused))}


@torch.no_grad()
def aligned_on(teachers: AlignedTeachers, streams: Streams) -> dict[str, Outputs]:
    """Return what every aligned teacher says about every row of a part, by name."""
    pieces = []
    for start in range(0, len(streams.labels), CHUNK):
        rows = slice(start, start + CHUNK)
        unimodal, joint = (
            {name: stream_KND[:, rows] for name, stream_KND in group.items()}
            for group in (streams.unimodal, streams.joint)
        )
        pieces.append(teachers(unimodal, joint))
    return {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}


@dataclass(frozen=True)
class AlignmentLoss:
    """How far another teacher is from the joint one.

    Attributes:
        kind: on features ``cosine`` (mean of 1 - cos), ``mmd`` or ``mse`` (mean over batch and width); on
            outputs ``kl``, T^2 KL(joint || other), in regression their squared difference.
        detach_joint: whether only the other teacher is pulled.
        temperature: T of ``kl``.
    """

    kind: AlignmentLossKind = "cosine"
    detach_joint: bool = False
    temperature: float = 4.0

    def __call__(self, task: Task, other: Outputs, joint: Outputs) -> Tensor:
        """Return the value of each lane."""
        joint = joint.detach() if self.detach_joint else joint
        if self.kind == "kl" and task == "regression":
            return prediction_mse(other.logits_KBC, joint.logits_KBC)
        if self.kind == "kl":
            return kd(other.logits_KBC, joint.logits_KBC, temperature=self.temperature)
        features = (other.features_KBD, joint.features_KBD)
        if self.kind == "mmd":
            return mmd(*features)
        return fitnet(*features) if self.kind == "mse" else cosine_alignment(*features)


class AlignmentObjective:
    """Equation (1): pull the adapted teachers to the joint one while all keep doing the task.

    weight * sum_m loss(m, J) + (1 - weight) * [task_J + 1/2 sum_m task_m].
    """

    def __init__(
        self,
        teachers: AlignedTeachers,
        train: Streams,
        validation: Streams,
        task: Task,
        weight: float,
        loss: AlignmentLoss | None = None,
    ) -> None:
        self.modules: nn.Module = teachers
        self._teachers = teachers
        self._train, self._validation = train, validation
        self._task: Task = task
        self._weight, self._loss = weight, loss or AlignmentLoss()

    def losses(self, rows_KB: Tensor, _epoch: int = 0) -> Losses:
        """Return the losses of a batch of labelled rows."""
        found = self._teachers(_rows_of(self._train.unimodal, rows_KB), _rows_of(self._train.joint, rows_KB))
        labels = labels_at(self._train.labels, rows_KB, self._train.source_KN)
        none_K = torch.zeros(rows_KB.shape[0], device=rows_KB.device)
        joint = found.pop("joint")
        task = task_loss(self._task, joint.logits_KBC, labels, None, none_K)
        align = torch.zeros_like(task)
        for outputs in found.values():
            task = task + 0.5 * task_loss(self._task, outputs.logits_KBC, labels, None, none_K)
            align = align + self._loss(self._task, outputs, joint)
        total = self._weight * align + (1 - self._weight) * task
        return Losses(total, {"task": task, "alignment": align}, {})

    def validation(self) -> dict[str, Tensor]:
        """Return the joint teacher's criterion, which chooses the epoch as in the released code."""
        joint = aligned_on(self._teachers, self._validation)["joint"]
        labels = all_labels(self._validation.labels, self._validation.source_KN)
        return criterion(self._task, joint.logits_KBC, labels)


def _rows_of(streams: Mapping[str, Tensor], rows_KB: Tensor) -> dict[str, Tensor]:
    lanes = torch.arange(rows_KB.shape[0], device=rows_KB.device)[:, None]
    return {name: stream_KND[lanes, rows_KB] for name, stream_KND in streams.items()}
