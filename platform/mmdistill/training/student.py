"""What a student is trained for: the task on labelled rows, and the terms on every row.

Axes: K lanes, B batch, N rows, D width, C outputs, M teachers, S modalities the student is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor, nn

from mmdistill.losses.anchors import similarities
from mmdistill.losses.discrepancy import mmd
from mmdistill.losses.hints import fitnet
from mmdistill.models.network import Network, Outputs
from mmdistill.terms.base import AbstractTerm, Batch, Labels, Layers, Masked, Task
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
from mmdistill.training.probe import input_r2
from mmdistill.training.runtime import Runtime
from mmdistill.training.teachers import FrozenTeachers

HallucinationLoss = Literal["mmd", "mse"]


@dataclass(frozen=True)
class Rows:
    """The rows students learn from: everything in training, labelled or not, per lane."""

    train: TensorPart
    validation: TensorPart
    labelled_KN: Tensor
    task: Task

    @cached_property
    def are_labelled(self) -> bool:
        """Whether every row has its label in every lane."""
        return bool(self.labelled_KN.all())


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher (and an auxiliary) that trains along with the student on its own task loss.

    ``source_KN`` tells from which row each row takes the label they learn; None for its own. A frozen
    auxiliary is what it said about every training row, features_KND and logits_KNC.
    """

    teacher: Network
    auxiliary: Network | Outputs | None
    task_weight: float
    source_KN: Tensor | None = None

    def only(self, lanes: Tensor) -> "LiveTeacher":
        """Return labels and outputs of some lanes; networks are narrowed where their parameters are held."""
        source_KN = None if self.source_KN is None else self.source_KN[lanes]
        said = self.auxiliary
        auxiliary = Outputs(*(x[lanes] for x in said)) if isinstance(said, Outputs) else said
        return replace(self, auxiliary=auxiliary, source_KN=source_KN)


class StudentObjective:
    """The task loss plus the weighted terms.

    A student that hallucinates adds the loss of its hallucinators, unweighted: they learn from nothing else,
    and nothing else learns from it.
    """

    def __init__(
        self,
        student: Network,
        terms: dict[str, AbstractTerm],  # type: ignore[type-arg]
        rows: Rows,
        smoothing_K: Tensor,
        runtime: Runtime,
        frozen: FrozenTeachers | None = None,
        live: LiveTeacher | None = None,
        *,
        task_weight: float = 1.0,
        hallucination: HallucinationLoss = "mmd",
        average: AverageNetwork | None = None,
    ) -> None:
        self.student, self._terms, self._rows = student, terms, rows
        self._smoothing_K, self._runtime = smoothing_K, runtime
        self._frozen, self._live, self._average = frozen, live, average
        self._task_weight: float = task_weight
        self._hallucination: HallucinationLoss = hallucination
        self._weights = {n: t.per_lane("weight", smoothing_K) for n, t in terms.items()}
        parts: dict[str, nn.Module] = {"student": student, "terms": nn.ModuleDict(terms)}
        if live is not None:
            parts["teacher"] = live.teacher
            if isinstance(live.auxiliary, Network):
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
            self.student,
            terms,
            rows,
            self._smoothing_K[lanes],
            self._runtime,
            frozen,
            live,
            task_weight=self._task_weight,
            hallucination=self._hallucination,
            average=self._average,
        )

    def losses(self, rows_KB: Tensor, epoch: int = 0) -> Losses:
        """Return the objective of a batch."""
        lanes = torch.arange(rows_KB.shape[0], device=rows_KB.device)[:, None]
        labelled_KB = self._rows.labelled_KN[lanes, rows_KB]
        labels = self._rows.train.labels[rows_KB]
        student, missing = self._run_with_missing(self.student, rows_KB)
        values = {"task": self._task(student, labels, labelled_KB)}
        total = self._task_weight * values["task"]
        details: dict[str, Tensor] = {}
        teacher, auxiliary, pool, weights_KBM = None, None, None, None
        if self._frozen is not None:
            teacher, weights_KBM = self._frozen.taught(rows_KB)
            details |= _shares(weights_KBM, self._frozen.names)
            own = self._hallucinated(missing, rows_KB, self._frozen)
            values |= own
            total = total + sum(own.values(), torch.zeros_like(total))
            if self._looks_at("pool"):
                pool = self._frozen.pool(rows_KB)
        if self._live is not None:
            teacher, auxiliary, own = self._run_live(self._live, rows_KB, labelled_KB)
            values |= own
            total = total + self._live.task_weight * sum(own.values(), torch.zeros_like(total))
        batch = Batch(
            student,
            teacher,
            auxiliary,
            pool,
            labels=Labels(labels, labelled_KB),
            rows_KB=rows_KB,
            epoch=epoch,
            layers=self._layers(rows_KB, weights_KBM) if self._looks_at("layers") else None,
            masked=self._masked(rows_KB, weights_KBM) if self._looks_at("masked") else None,
            average=self._follow(values, rows_KB),
        )
        for name, term in self._terms.items():
            found = term(batch)
            values[name] = found.value_K
            details |= {f"{name}/{key}": value for key, value in found.details.items()}
            total = total + self._weights[name] * found.value_K
        return Losses(total, values, details)

    def validation(self) -> dict[str, Tensor]:
        """Return the student's criterion and score on the validation rows, and about the live teacher.

        Of that one its score, and ``teacher_auxiliary_r2``: how much of the inputs that the student does not
        see a linear map of its features tells.
        """
        part, lanes = self._rows.validation, len(self._smoothing_K)
        seen = criterion(self._rows.task, outputs_on(self.student, part, lanes).logits_KBC, part.labels)
        if self._live is not None:
            teacher = criterion(
                self._rows.task, outputs_on(self._live.teacher, part, lanes).logits_KBC, part.labels
            )
            seen |= {f"teacher_{name}": value for name, value in teacher.items() if name != "criterion"}
            hidden = tuple(n for n in self._live.teacher.modalities if n not in self.student.modalities)
            if hidden:
                parts = (self._rows.train, part)
                seen["teacher_auxiliary_r2"] = input_r2(self._live.teacher, hidden, parts)
        return seen

    @torch.no_grad()
    def structures(self, rows_KB: Tensor) -> dict[str, Tensor]:
        """Return matrices_KBB between rows: ``student``, and beside frozen teachers ``teacher`` and ``plan``.

        The first two are cosine similarities between the features, the teacher's as the rows are taught; the
        plan is that of the first term that has one. Nothing of a teacher that trains along.
        """
        inputs = at_rows(self._rows.train.inputs, self.student.modalities, rows_KB)
        student = self.student.with_missing(inputs)[0]
        found = {"student": similarities(student.features_KBD)}
        if self._frozen is None:
            return found
        teacher, _ = self._frozen.taught(rows_KB)
        found["teacher"] = similarities(teacher.features_KBD)
        batch = Batch(student, teacher, rows_KB=rows_KB)
        plans = (term.plan(batch) for term in self._terms.values())
        plan_KBB = next((plan_KBB for plan_KBB in plans if plan_KBB is not None), None)
        return found if plan_KBB is None else found | {"plan": plan_KBB}

    def _looks_at(self, part: str) -> bool:
        return any(part in term.needs for term in self._terms.values())

    def _run(self, network: Network, rows_KB: Tensor) -> Outputs:
        return self._run_with_missing(network, rows_KB)[0]

    def _run_with_missing(
        self, network: Network, rows_KB: Tensor, kept: Callable[[str], bool] = lambda _: True
    ) -> tuple[Outputs, list[Tensor]]:
        outputs, missing = network.with_missing(masked(self._inputs(network, rows_KB), kept))
        gather = self._runtime.gather
        gathered = Outputs(gather(outputs.features_KBD), gather(outputs.logits_KBC))
        return gathered, [gather(stream_KBD) for stream_KBD in missing]

    def _hallucinated(
        self, missing: Sequence[Tensor], rows_KB: Tensor, frozen: FrozenTeachers
    ) -> dict[str, Tensor]:
        """Return the loss of the hallucinators, where there are any."""
        if frozen.streams_KSND is None:
            return {}
        found = torch.zeros_like(rows_KB[:, 0], dtype=self._smoothing_K.dtype)
        for mine_KBD, theirs_KBD in zip(missing, frozen.streams(rows_KB), strict=True):
            is_mmd = self._hallucination == "mmd"
            found = found + (mmd(mine_KBD, theirs_KBD) if is_mmd else fitnet(mine_KBD, theirs_KBD))
        return {"hallucination": found}

    def _inputs(self, network: Network, rows_KB: Tensor) -> dict[str, Tensor]:
        return at_rows(self._rows.train.inputs, network.modalities, self._runtime.share(rows_KB))

    @torch.no_grad()
    def _follow(self, values: Mapping[str, Tensor], rows_KB: Tensor) -> Outputs | None:
        """Let the average take a step, and return what it says; None where there is none."""
        if self._average is None or self._live is None:
            return None
        self._average.follow(self.student, self._live.teacher, values["task"] <= values["teacher_task"])
        return self._run(self._average.network, rows_KB)

    def _layers(self, rows_KB: Tensor, weights_KBM: Tensor | None) -> Layers:
        student = self._layers_of(self.student, rows_KB)
        if self._frozen is not None and weights_KBM is not None:
            return Layers(student, self._frozen.layers(rows_KB, weights_KBM))
        assert self._live is not None
        return Layers(student, self._layers_of(self._live.teacher, rows_KB))

    def _layers_of(self, network: Network, rows_KB: Tensor) -> tuple[Tensor, ...]:
        _, layers = network.with_layers(self._inputs(network, rows_KB))
        return tuple(self._runtime.gather(layer) for layer in layers)

    def _masked(self, rows_KB: Tensor, weights_KBM: Tensor | None) -> Masked:
        student = self._singly(self.student, rows_KB, str.__eq__)
        if self._frozen is not None and weights_KBM is not None:
            return Masked(student, *self._frozen.masked(rows_KB, weights_KBM))
        assert self._live is not None
        alone, without = (self._singly(self._live.teacher, rows_KB, of) for of in (str.__eq__, str.__ne__))
        return Masked(student, alone, without)

    def _singly(self, network: Network, rows_KB: Tensor, of: Callable[[str, str], bool]) -> Tensor:
        """Return logits_KBSC with the modalities kept that are, or are not, each of the student's."""
        modalities = self.student.modalities
        runs = [self._run_with_missing(network, rows_KB, partial(of, one))[0] for one in modalities]
        return torch.stack([outputs.logits_KBC for outputs in runs], dim=2)

    def _task(self, outputs: Outputs, labels: Tensor, labelled_KB: Tensor) -> Tensor:
        mask_KB = None if self._rows.are_labelled else labelled_KB
        return task_loss(self._rows.task, outputs.logits_KBC, labels, mask_KB, self._smoothing_K)

    def _run_live(
        self, live: LiveTeacher, rows_KB: Tensor, labelled_KB: Tensor
    ) -> tuple[Outputs, Outputs | None, dict[str, Tensor]]:
        labels = labels_at(self._rows.train.labels, rows_KB, live.source_KN)
        teacher = self._run(live.teacher, rows_KB)
        losses = {"teacher_task": self._task(teacher, labels, labelled_KB)}
        if live.auxiliary is None:
            return teacher, None, losses
        if isinstance(live.auxiliary, Outputs):
            lanes = torch.arange(rows_KB.shape[0], device=rows_KB.device)[:, None]
            return teacher, Outputs(*(x[lanes, rows_KB] for x in live.auxiliary)), losses
        auxiliary = self._run(live.auxiliary, rows_KB)
        return teacher, auxiliary, losses | {"auxiliary_task": self._task(auxiliary, labels, labelled_KB)}


def _shares(weights_KBM: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    if len(names) == 1:
        return {}
    means_KM = weights_KBM.mean(dim=1)
    return {f"selection/{name}": means_KM[:, m] for m, name in enumerate(names)}
