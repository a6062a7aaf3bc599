"""What a student is trained for: the task on labelled rows, and the terms on every row.

Axes: K lanes, B batch, N rows, D width, C outputs, M teachers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from mmdistill.models.network import Network, Outputs
from mmdistill.terms.base import AbstractTerm, Batch, Labels, Layers, Masked, Pool, Task
from mmdistill.training.average import AverageNetwork
from mmdistill.training.loop import Losses
from mmdistill.training.objectives import (
    TensorPart,
    at_rows,
    criterion,
    labels_at,
    masked,
    outputs_on,
    task_loss,
)
from mmdistill.training.runtime import Runtime


@dataclass(frozen=True)
class FrozenTeachers:
    """Outputs of the frozen teachers on every training row, and how a batch chooses among them.

    Attributes:
        evidence_KMN: the loss by which teachers are compared; 0 on rows without a label.
        labelled_KN: which rows have a label.
        policy: ``sample`` or ``batch``.
        further: what some terms look at, [K, M, N, ...]: ``layer_0`` ..., and the logits ``alone`` and
            ``without`` of single modalities.
    """

    names: tuple[str, ...]
    features_KMND: Tensor
    logits_KMNC: Tensor
    evidence_KMN: Tensor
    labelled_KN: Tensor
    policy: str
    further: Mapping[str, Tensor] = field(default_factory=dict)

    def only(self, lanes: Tensor) -> "FrozenTeachers":
        """Return the teachers of some lanes."""
        return FrozenTeachers(
            self.names,
            self.features_KMND[lanes],
            self.logits_KMNC[lanes],
            self.evidence_KMN[lanes],
            self.labelled_KN[lanes],
            self.policy,
            {name: found_KMN[lanes] for name, found_KMN in self.further.items()},
        )

    def choose(self, rows_KB: Tensor) -> Tensor:
        """Return the index of the teacher of each row of a batch, choice_KB."""
        lanes = torch.arange(rows_KB.shape[0], device=rows_KB.device)[:, None]
        evidence_KBM = self.evidence_KMN.transpose(1, 2)[lanes, rows_KB]
        labelled_KB = self.labelled_KN[lanes, rows_KB]
        overall_K1 = self.evidence_KMN.sum(dim=2).argmin(dim=1, keepdim=True)
        if self.policy == "sample":
            return torch.where(labelled_KB, evidence_KBM.argmin(dim=2), overall_K1)
        here_K1 = evidence_KBM.sum(dim=1).argmin(dim=1, keepdim=True)
        chosen_K1 = torch.where(labelled_KB.any(dim=1, keepdim=True), here_K1, overall_K1)
        return chosen_K1.expand_as(rows_KB)

    def pool(self, rows_KB: Tensor) -> Pool:
        """Return what every teacher says at each row."""
        lanes = torch.arange(rows_KB.shape[0], device=rows_KB.device)[:, None]
        found = (self.features_KMND, self.logits_KMNC, self.evidence_KMN)
        return Pool(self.names, *(tensor.transpose(1, 2)[lanes, rows_KB] for tensor in found))

    def outputs(self, rows_KB: Tensor, choice_KB: Tensor) -> Outputs:
        """Return the chosen teacher's features and logits at each row."""
        lanes = torch.arange(rows_KB.shape[0], device=rows_KB.device)[:, None]
        features = self.features_KMND[lanes, choice_KB, rows_KB]
        return Outputs(features, self.logits_KMNC[lanes, choice_KB, rows_KB])

    def layers(self, rows_KB: Tensor, choice_KB: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen teacher's layers below the features at each row."""
        names = sorted(name for name in self.further if name.startswith("layer_"))
        return tuple(self._chosen(name, rows_KB, choice_KB) for name in names)

    def masked(self, rows_KB: Tensor, choice_KB: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the chosen teacher says at each row from each modality alone, and without each."""
        alone, without = (self._chosen(name, rows_KB, choice_KB) for name in ("alone", "without"))
        return alone, without

    def _chosen(self, name: str, rows_KB: Tensor, choice_KB: Tensor) -> Tensor:
        lanes = torch.arange(rows_KB.shape[0], device=rows_KB.device)[:, None]
        return self.further[name][lanes, choice_KB, rows_KB]


@dataclass(frozen=True)
class Rows:
    """The rows students learn from: everything in training, labelled or not, per lane."""

    train: TensorPart
    validation: TensorPart
    labelled_KN: Tensor
    task: Task


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher (and an auxiliary) that trains along with the student on its own task loss.

    ``source_KN`` tells from which row each row takes the label they learn; None for its own.
    """

    teacher: Network
    auxiliary: Network | None
    task_weight: float
    source_KN: Tensor | None = None

    def only(self, lanes: Tensor) -> "LiveTeacher":
        """Return the labels of some lanes; the networks are narrowed where their parameters are held."""
        return self if self.source_KN is None else replace(self, source_KN=self.source_KN[lanes])


class StudentObjective:
    """The task loss plus the weighted terms."""

    def __init__(
        self,
        student: Network,
        terms: dict[str, AbstractTerm],  # type: ignore[type-arg]
        rows: Rows,
        smoothing_K: Tensor,
        runtime: Runtime,
        frozen: FrozenTeachers | None = None,
        live: LiveTeacher | None = None,
        average: AverageNetwork | None = None,
    ) -> None:
        self.student, self._terms, self._rows = student, terms, rows
        self._smoothing_K, self._runtime = smoothing_K, runtime
        self._frozen, self._live, self._average = frozen, live, average
        self._weights = {n: t.per_lane("weight", smoothing_K) for n, t in terms.items()}
        parts: dict[str, nn.Module] = {"student": student, "terms": nn.ModuleDict(terms)}
        if live is not None:
            parts["teacher"] = live.teacher
            if live.auxiliary is not None:
                parts["auxiliary"] = live.auxiliary
        if average is not None:
            parts["average"] = average
        self.modules: nn.Module = nn.ModuleDict(parts)

    def only(self, lanes: Tensor) -> "StudentObjective":
        """Return the objective of some lanes.

        Networks and terms keep their parameters, which are narrowed where they are held.
        """
        terms = {name: term.only(lanes) for name, term in self._terms.items()}
        rows = replace(self._rows, labelled_KN=self._rows.labelled_KN[lanes])
        frozen = None if self._frozen is None else self._frozen.only(lanes)
        live = None if self._live is None else self._live.only(lanes)
        return StudentObjective(
            self.student, terms, rows, self._smoothing_K[lanes], self._runtime, frozen, live, self._average
        )

    def losses(self, rows_KB: Tensor, epoch: int = 0) -> Losses:
        """Return the objective of a batch."""
        lanes = torch.arange(rows_KB.shape[0], device=rows_KB.device)[:, None]
        labelled_KB = self._rows.labelled_KN[lanes, rows_KB]
        labels = self._rows.train.labels[rows_KB]
        student = self._run(self.student, rows_KB)
        values = {"task": self._task(student, labels, labelled_KB)}
        total = values["task"]
        details: dict[str, Tensor] = {}
        teacher, auxiliary, pool, choice_KB = None, None, None, None
        if self._frozen is not None:
            choice_KB = self._frozen.choose(rows_KB)
            teacher = self._frozen.outputs(rows_KB, choice_KB)
            details |= _shares(choice_KB, self._frozen.names)
            if self._looks_at("pool"):
                pool = self._frozen.pool(rows_KB)
        if self._live is not None:
            teacher, auxiliary, own = self._run_live(self._live, rows_KB, labelled_KB)
            values |= own
            total = total + self._live.task_weight * sum(own.values(), torch.zeros_like(total))
        layers = self._layers(rows_KB, choice_KB) if self._looks_at("layers") else None
        singly = self._masked(rows_KB, choice_KB) if self._looks_at("masked") else None
        known = Labels(labels, labelled_KB)
        average = self._follow(values, rows_KB)
        batch = Batch(student, teacher, auxiliary, pool, known, rows_KB, epoch, layers, singly, average)
        for name, term in self._terms.items():
            found = term(batch)
            values[name] = found.value_K
            details |= {f"{name}/{key}": value for key, value in found.details.items()}
            total = total + self._weights[name] * found.value_K
        return Losses(total, values, details)

    def validation(self) -> dict[str, Tensor]:
        """Return the student's criterion and score on the validation rows, and the live teacher's score."""
        part, lanes = self._rows.validation, len(self._smoothing_K)
        seen = criterion(self._rows.task, outputs_on(self.student, part, lanes).logits_KBC, part.labels)
        if self._live is not None:
            teacher = criterion(
                self._rows.task, outputs_on(self._live.teacher, part, lanes).logits_KBC, part.labels
            )
            seen |= {f"teacher_{name}": value for name, value in teacher.items() if name != "criterion"}
        return seen

    def _looks_at(self, part: str) -> bool:
        return any(part in term.needs for term in self._terms.values())

    def _run(
        self, network: Network, rows_KB: Tensor, kept: Callable[[str], bool] = lambda _: True
    ) -> Outputs:
        outputs = network(masked(self._inputs(network, rows_KB), kept))
        gather = self._runtime.gather
        return Outputs(gather(outputs.features_KBD), gather(outputs.logits_KBC))

    def _inputs(self, network: Network, rows_KB: Tensor) -> dict[str, Tensor]:
        return at_rows(self._rows.train.inputs, network.modalities, self._runtime.share(rows_KB))

    @torch.no_grad()
    def _follow(self, values: Mapping[str, Tensor], rows_KB: Tensor) -> Outputs | None:
        """Let the average take a step, and return what it says; None where there is none."""
        if self._average is None or self._live is None:
            return None
        self._average.follow(self.student, self._live.teacher, values["task"] <= values["teacher_task"])
        return self._run(self._average.network, rows_KB)

    def _layers(self, rows_KB: Tensor, choice_KB: Tensor | None) -> Layers:
        student = self._layers_of(self.student, rows_KB)
        if self._frozen is not None and choice_KB is not None:
            return Layers(student, self._frozen.layers(rows_KB, choice_KB))
        assert self._live is not None
        return Layers(student, self._layers_of(self._live.teacher, rows_KB))

    def _layers_of(self, network: Network, rows_KB: Tensor) -> tuple[Tensor, ...]:
        _, layers = network.with_layers(self._inputs(network, rows_KB))
        return tuple(self._runtime.gather(layer) for layer in layers)

    def _masked(self, rows_KB: Tensor, choice_KB: Tensor | None) -> Masked:
        student = self._singly(self.student, rows_KB, str.__eq__)
        if self._frozen is not None and choice_KB is not None:
            return Masked(student, *self._frozen.masked(rows_KB, choice_KB))
        assert self._live is not None
        alone, without = (self._singly(self._live.teacher, rows_KB, of) for of in (str.__eq__, str.__ne__))
        return Masked(student, alone, without)

    def _singly(self, network: Network, rows_KB: Tensor, of: Callable[[str, str], bool]) -> Tensor:
        """Return logits_KBSC with the modalities kept that are, or are not, each of the student's."""
        runs = [self._run(network, rows_KB, partial(of, one)) for one in self.student.modalities]
        return torch.stack([outputs.logits_KBC for outputs in runs], dim=2)

    def _task(self, outputs: Outputs, labels: Tensor, labelled_KB: Tensor) -> Tensor:
        return task_loss(self._rows.task, outputs.logits_KBC, labels, labelled_KB, self._smoothing_K)

    def _run_live(
        self, live: LiveTeacher, rows_KB: Tensor, labelled_KB: Tensor
    ) -> tuple[Outputs, Outputs | None, dict[str, Tensor]]:
        labels = labels_at(self._rows.train.labels, rows_KB, live.source_KN)
        teacher = self._run(live.teacher, rows_KB)
        losses = {"teacher_task": self._task(teacher, labels, labelled_KB)}
        if live.auxiliary is None:
            return teacher, None, losses
        auxiliary = self._run(live.auxiliary, rows_KB)
        return teacher, auxiliary, losses | {"auxiliary_task": self._task(auxiliary, labels, labelled_KB)}


def _shares(choice_KB: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    if len(names) == 1:
        return {}
    return {f"selection/{name}": (choice_KB == m).float().mean(dim=1) for m, name in enumerate(names)}
