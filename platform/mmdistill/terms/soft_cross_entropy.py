"""Cross entropy against softened class probabilities."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.softened import softce
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class SoftCrossEntropySettings(TermSettings):
    """-sum p_T log p_S on softened probabilities, without the factor T^2."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.3, high=30.0, log=True)] = 1.0
    temperature: Annotated[float, Field(gt=0), Tunable(low=1.0, high=8.0, log=True)] = 2.0


@TERMS.register("soft_cross_entropy")
class SoftCrossEntropy(AbstractTerm[SoftCrossEntropySettings]):
    """Match the teacher's softened probabilities; gradients shrink as 1 / T^2."""

    settings_type = SoftCrossEntropySettings
    tasks = frozenset({"classification"})
    source = "Hinton et al. 2015; probabilistic_kt nn/distillation.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the cross entropy of each lane; its least value is the teacher's entropy, not 0."""
        student = batch.student.logits_KBC
        temperature = self.per_lane("temperature", student)
        return TermValue(softce(student, frozen_teacher(batch).logits_KBC, temperature=temperature))
