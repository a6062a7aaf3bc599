"""Softened logits (Hinton, Vinyals and Dean, 2015)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.softened import kd, prediction_mse
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, require


class SoftenedLogitsSettings(TermSettings):
    """T^2 KL(teacher || student) on softened class probabilities.

    At T = 4 and weight 1 it is five times the task loss at first and pulls the student half as hard again as
    the task; the reference code gives it 9 times the task's weight.
    """

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    temperature: Annotated[float, Field(gt=0), Tunable(low=1.0, high=8.0, log=True)] = 4.0


@TERMS.register("softened_logits")
class SoftenedLogits(AbstractTerm[SoftenedLogitsSettings]):
    """Match the teacher's softened probabilities on every row, labelled or not.

    In regression the counterpart is the squared error between predictions (inferred), without a temperature.
    """

    settings_type = SoftenedLogitsSettings
    classification_only = frozenset({"temperature"})
    source = "Hinton et al. 2015; RepDistiller distiller_zoo/KD.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the divergence of each lane."""
        student, teacher = batch.student.logits_KBC, require(batch.teacher, "teacher").logits_KBC.detach()
        if self.task == "regression":
            return TermValue(prediction_mse(student, teacher))
        return TermValue(kd(student, teacher, temperature=self.per_lane("temperature", student)))
