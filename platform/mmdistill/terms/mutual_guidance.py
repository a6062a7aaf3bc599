"""Weak mutual guidance: peers that speak only where they are confident (IterWeGO, 2024)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from mmdistill.losses.guidance import weak_mutual
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, Shapes, TermSettings, TermValue, require


class MutualGuidanceSettings(TermSettings):
    """KL(guide || learner) where the guide's greatest probability is at least ``delta``."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    delta: Annotated[float, Field(ge=0, lt=1), Tunable(low=0.3, high=0.95)] = 0.5
    schedule: Literal["constant", "rising", "falling"] = "constant"
    teacher_gradient: bool = False


@TERMS.register("mutual_guidance")
class MutualGuidance(AbstractTerm[MutualGuidanceSettings]):
    """Let two networks teach each other, each only where it is confident.

    The peer is the teacher that trains along; with ``teacher_gradient`` it learns from the student too, else
    guidance goes one way. Neither learns to be a better guide: what guides is a constant. ``rising`` takes
    the threshold linearly from 0 in the first epoch to ``delta`` in the last, ``falling`` back.
    """

    settings_type = MutualGuidanceSettings
    tasks = frozenset({"classification"})
    source = "IterWeGO (MM 2024), page 1; IterWeGO model.py; on class probabilities (inferred)"

    def __init__(
        self, settings: Sequence[MutualGuidanceSettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        self.last_epoch = max(shapes.epochs - 1, 1)

    def forward(self, batch: Batch) -> TermValue:
        """Return the guidance of each lane, both directions added where there are two."""
        student, peer = batch.student.logits_KBC, require(batch.teacher, "teacher").logits_KBC
        threshold = self._threshold(student, batch.epoch)
        value_K = weak_mutual(student, peer.detach(), threshold=threshold)
        if self.shared.teacher_gradient:
            value_K = value_K + weak_mutual(peer, student.detach(), threshold=threshold)
        return TermValue(value_K)

    def _threshold(self, like: Tensor, epoch: int) -> Tensor:
        passed = min(epoch / self.last_epoch, 1.0)
        share = {"constant": 1.0, "rising": passed, "falling": 1 - passed}[self.shared.schedule]
        return share * self.per_lane("delta", like)
