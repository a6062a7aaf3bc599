"""Rank-gated targets (Speculative knowledge distillation, Xu et al., 2025)."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from mmdistill.losses.guidance import skd_gate
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Shapes, TermSettings, TermValue, frozen_teacher


class RankGateSettings(TermSettings):
    """T^2 KL(teacher || student) where the student's class is accepted, else the teacher's class as label."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    temperature: Annotated[float, Field(gt=0), Tunable(low=1.0, high=8.0, log=True)] = 4.0
    top: Annotated[int, Field(ge=1)] = 3

    def least_classes(self) -> int:
        """With no more classes than ``top`` every row is accepted."""
        return self.top + 1


@TERMS.register("rank_gate")
class RankGate(AbstractTerm[RankGateSettings]):
    """Follow the teacher's probabilities only where the student's first class is among the teacher's first.

    How many are looked at falls linearly from ``top`` in the first epoch to 1 in the last (inferred).
    """

    settings_type = RankGateSettings
    tasks = frozenset({"classification"})
    source = "Speculative KD (Xu et al. 2025), transferred to classification (inferred)"

    def __init__(self, settings: Sequence[RankGateSettings], shapes: Shapes, seeds: Sequence[int]) -> None:
        super().__init__(settings, shapes, seeds)
        self.last_epoch = max(shapes.epochs - 1, 1)

    def forward(self, batch: Batch) -> TermValue:
        """Return the gated loss of each lane."""
        student, teacher = batch.student.logits_KBC, frozen_teacher(batch).logits_KBC
        left = max(1 - batch.epoch / self.last_epoch, 0.0)
        k = 1 + round((self.shared.top - 1) * left)
        return TermValue(skd_gate(student, teacher, k=k, temperature=self.per_lane("temperature", student)))
