"""Self-paced experts (LFME, Xiang, Ding and Han, 2020).

Axes: K lanes, B batch, C classes, M teachers.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmdistill.losses.base import known_labels
from mmdistill.losses.experts import lfme
from mmdistill.settings import Tunable
from mmdistill.softmax import softmax
from mmdistill.terms.base import (
    TERMS,
    AbstractTerm,
    Batch,
    Shapes,
    TermSettings,
    TermValue,
    frozen_pool,
    require,
)

# Below this share of an expert's confidence the student follows it with full weight.
FULL_WEIGHT_BELOW = 0.3


class SelfPacedExpertsSettings(TermSettings):
    """KL(expert || student) of every teacher, weighted by how far the student is behind it."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.3, high=30.0, log=True)] = 1.0
    temperature: Annotated[float, Field(gt=0), Tunable(low=1.0, high=8.0, log=True)] = 2.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    curriculum: bool = True


@TERMS.register("self_paced_experts")
class SelfPacedExperts(AbstractTerm[SelfPacedExpertsSettings]):
    """Follow every teacher until the student is as good as it is.

    Expert e has the weight clip((1 - S / E) / 0.7, 0, 1), S and E the probabilities student and expert give
    the label, running means over the labelled rows of past batches. Where there is a ``curriculum``, rows
    enter with the expert's confidence, which rises linearly to 1 over the first half of training. Its
    confidence in a row is the evidence teachers are chosen by (the reference has accuracies on validation
    rows); without a label, its greatest probability (inferred). All experts know all classes.
    """

    settings_type = SelfPacedExpertsSettings
    needs = frozenset({"pool"})
    tasks = frozenset({"classification"})
    source = "Xiang, Ding and Han 2020; LFME loss/DistillationLoss.py, run_network_LFME.py"
    student_K: Tensor
    experts_KM: Tensor

    def __init__(
        self, settings: Sequence[SelfPacedExpertsSettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        self.epochs = shapes.epochs
        # Sums with forgetting: only their ratio counts.
        self.register_buffer("student_K", torch.zeros(len(seeds)))
        self.register_buffer("experts_KM", torch.zeros(len(seeds), len(shapes.teachers)))

    def forward(self, batch: Batch) -> TermValue:
        """Return the weighted divergences of each lane added; details tell the weights."""
        student, pool = batch.student.logits_KBC, frozen_pool(batch)
        labels = require(batch.labels, "label")
        experts_KMBC = pool.logits_KBMC.transpose(1, 2)
        confidence_KMB = pool.evidence_KBM.mT.neg().exp()
        truth_KB1 = known_labels(labels.value, labels.known_KB)[..., None]
        own_KB = softmax(student.detach()).gather(-1, truth_KB1)[..., 0]
        self._remember(own_KB, confidence_KMB, labels.known_KB)
        rows_KMB = self._curriculum(confidence_KMB, experts_KMBC, labels.known_KB, batch.epoch)
        divergence_KM = lfme(
            student[:, None].expand_as(experts_KMBC),
            experts_KMBC,
            classes_E=torch.arange(student.shape[-1]),
            temperature=self.per_lane("temperature", student)[:, None],
            row_weights_LB=rows_KMB,
        )
        weights_KM = self._weights()
        # The loss is a mean over the rows' weights; theirs is meant to lower it.
        value_K = (weights_KM * divergence_KM * rows_KMB.mean(dim=-1)).sum(dim=1)
        return TermValue(value_K, {f"weight/{name}": weights_KM[:, m] for m, name in enumerate(pool.names)})

    def _remember(self, own_KB: Tensor, confidence_KMB: Tensor, known_KB: Tensor) -> None:
        momentum = self.shared.momentum
        self.student_K = momentum * self.student_K + (own_KB * known_KB).sum(dim=-1)
        self.experts_KM = momentum * self.experts_KM + (confidence_KMB * known_KB[:, None]).sum(dim=-1)

    def _weights(self) -> Tensor:
        knows_KM, student_K1 = self.experts_KM > 0, self.student_K[:, None]
        # An expert that knows nothing has nothing to teach to a student that knows something.
        reached_KM = torch.where(
            knows_KM, student_K1 / torch.where(knows_KM, self.experts_KM, 1.0), student_K1.sign()
        )
        return ((1 - reached_KM) / (1 - FULL_WEIGHT_BELOW)).clamp(0, 1)

    def _curriculum(
        self, confidence_KMB: Tensor, experts_KMBC: Tensor, known_KB: Tensor, epoch: int
    ) -> Tensor:
        if not self.shared.curriculum:
            return torch.ones_like(confidence_KMB)
        greatest_KMB = softmax(experts_KMBC).amax(dim=-1)
        first_KMB = torch.where(known_KB[:, None], confidence_KMB, greatest_KMB)
        progress = min(2 * epoch / self.epochs, 1.0)
        return first_KMB + (1 - first_KMB) * progress
