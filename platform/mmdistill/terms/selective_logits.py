"""Selective logits: what teacher and student rank alike (C2KD, Huo et al., 2024)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.decoupled import c2kd
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


class SelectiveLogitsSettings(TermSettings):
    """Non-target KL(teacher || student) of the samples whose logits have Kendall's tau above a threshold."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    threshold: Annotated[float, Field(ge=-1, lt=1), Tunable(low=-0.5, high=0.5)] = 0.0
    temperature: Annotated[float, Field(gt=0), Tunable(low=1.0, high=8.0, log=True)] = 1.0
    unlabelled: Unlabelled = "skip"


@TERMS.register("selective_logits")
class SelectiveLogits(AbstractTerm[SelectiveLogitsSettings]):
    """Leave out the samples on which modalities disagree too much, and the label's own logit.

    The classes of rows without a label may be the teacher's choice (inferred).
    """

    settings_type = SelectiveLogitsSettings
    tasks = frozenset({"classification"})
    source = "Huo et al. 2024; huofushuo/C2KD ave/main_overlap_tag.py, there in both directions"

    def forward(self, batch: Batch) -> TermValue:
        """Return the divergence of each lane."""
        student, teacher = batch.student.logits_KBC, frozen_teacher(batch).logits_KBC
        classes = classes_of(batch, self.shared.unlabelled)
        value_K = c2kd(
            student,
            teacher,
            classes.value,
            threshold=self.per_lane("threshold", student),
            temperature=self.per_lane("temperature", student),
            row_weights_LB=classes.known_KB,
        )
        return TermValue(value_K)
