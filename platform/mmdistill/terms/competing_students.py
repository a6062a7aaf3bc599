"""Competing students with a mean teacher (competitive ensembling, 2023)."""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from mmdistill.losses.softened import kd, prediction_mse
from mmdistill.models.network import Outputs
from mmdistill.settings import Tunable
from mmdistill.softmax import softmax
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, require


class CompetingStudentsSettings(TermSettings):
    """Ramped squared distance to the mean teacher's probabilities, and ``mutual`` times KL(peer || own)."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 1.0
    mutual: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    ramp_up: Annotated[int, Field(ge=0)] = 10
    teacher_gradient: bool = False


@TERMS.register("competing_students")
class CompetingStudents(AbstractTerm[CompetingStudentsSettings]):
    """Follow a mean teacher that follows the better of two students, and the other student.

    The other student is the teacher that trains along on the same modalities, from other first weights; with
    ``teacher_gradient`` it learns as this one does. At every step the mean teacher takes in 1 - ``momentum``
    of the weights of the student whose task loss is lower in the batch. Squared distances enter with
    exp(-5 (1 - t)^2), t rising from 0 to 1 over the first ``ramp_up`` epochs.
    """

    settings_type = CompetingStudentsSettings
    needs = frozenset({"teacher", "average"})
    tasks = frozenset({"classification"})
    source = "Competitive ensembling teacher-student (2310.13955), abstract; rule, ramp and weights inferred"

    def forward(self, batch: Batch) -> TermValue:
        """Return the loss of each lane, of both students where both learn."""
        student, peer = batch.student, require(batch.teacher, "teacher")
        mean = require(batch.average, "mean teacher")
        value_K = self._learn(student, peer, mean, batch.epoch)
        if self.shared.teacher_gradient:
            value_K = value_K + self._learn(peer, student, mean, batch.epoch)
        return TermValue(value_K)

    def _learn(self, own: Outputs, other: Outputs, mean: Outputs, epoch: int) -> Tensor:
        passed = min(epoch / self.shared.ramp_up, 1.0) if self.shared.ramp_up else 1.0
        mine, target = (softmax(part.logits_KBC) for part in (own, mean.detach()))
        # Squared lengths, not means over classes.
        distance_K = prediction_mse(mine, target) * mine.shape[-1]
        consistency_K = math.exp(-5 * (1 - passed) ** 2) * distance_K
        mutual_K = kd(own.logits_KBC, other.logits_KBC.detach(), temperature=1.0)
        return consistency_K + self.per_lane("mutual", mutual_K) * mutual_K
