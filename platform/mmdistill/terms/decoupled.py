"""Decoupled knowledge distillation (Zhao et al., 2022)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.decoupled import dkd
from mmdistill.settings import Tunable
from mmdistill.terms.base import (
    TERMS,
    AbstractTerm,
    Batch,
    TermSettings,
    TermValue,
    Unlabelled,
    classes_of,
    frozen_teacher,
)


class DecoupledSettings(TermSettings):
    """T^2 [alpha KL(label or not) + beta KL(among the other classes)], warmed up linearly."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.003, high=1.0, log=True)] = 0.1
    temperature: Annotated[float, Field(gt=0), Tunable(low=1.0, high=8.0, log=True)] = 4.0
    alpha: Annotated[float, Field(ge=0), Tunable(low=0.2, high=4.0, log=True)] = 1.0
    beta: Annotated[float, Field(ge=0), Tunable(low=0.5, high=16.0, log=True)] = 8.0
    warm_up: Annotated[int, Field(ge=0)] = 20
    unlabelled: Unlabelled = "skip"


@TERMS.register("decoupled")
class Decoupled(AbstractTerm[DecoupledSettings]):
    """Match the probability of the label, and apart from it the distribution over the other classes.

    In epoch e, counted from 1, the value is multiplied by min(e / warm_up, 1). The classes of rows without a
    label may be the teacher's choice (inferred).
    """

    settings_type = DecoupledSettings
    tasks = frozenset({"classification"})
    # Among the other classes of two there is one: its distribution is always the same.
    least_classes = 3
    source = "Zhao et al. 2022, equation 7; mdistiller mdistiller/distillers/DKD.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the divergence of each lane."""
        student, teacher = batch.student.logits_KBC, frozen_teacher(batch).logits_KBC
        classes = classes_of(batch, self.shared.unlabelled)
        value_K = dkd(
            student,
            teacher,
            classes.value,
            temperature=self.per_lane("temperature", student),
            alpha=self.per_lane("alpha", student),
            beta=self.per_lane("beta", student),
            row_weights_LB=classes.known_KB,
        )
        return TermValue(min((batch.epoch + 1) / max(self.shared.warm_up, 1), 1.0) * value_K)
