"""Contrast between modalities by class (compositional contrastive learning, Chen et al., 2021)."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from mmdistill.losses.contrastive import ccl_nce
from mmdistill.settings import Tunable
from mmdistill.terms.base import (
    TERMS,
    AbstractTerm,
    Batch,
    Shapes,
    TermSettings,
    TermValue,
    Unlabelled,
    classes_of,
    frozen_teacher,
    to_teacher_width,
)


class ClassContrastSettings(TermSettings):
    """Multi-class NCE between features, from the student to the teacher and back."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    temperature: Annotated[float, Field(gt=0), Tunable(low=0.05, high=1.0, log=True)] = 0.5
    unlabelled: Unlabelled = "skip"


@TERMS.register("class_contrast")
class ClassContrast(AbstractTerm[ClassContrastSettings]):
    """Let the student's features be near the teacher's of the same class, and far from those of others.

    The teacher stands for the composed embedding of the paper. The classes of rows without a label may be the
    teacher's choice (inferred).
    """

    settings_type = ClassContrastSettings
    tasks = frozenset({"classification"})
    source = "Chen et al. 2021, equation 4; yanbeic/CCL loss/nce_loss.py"

    def __init__(
        self, settings: Sequence[ClassContrastSettings], shapes: Shapes, seeds: Sequence[int]
    ) -> None:
        super().__init__(settings, shapes, seeds)
        self.mapped = to_teacher_width(shapes, seeds, "class_contrast.map")

    def forward(self, batch: Batch) -> TermValue:
        """Return the contrast of each lane, both directions added."""
        teacher = frozen_teacher(batch).features_KBD
        student = self.mapped(batch.student.features_KBD)
        classes = classes_of(batch, self.shared.unlabelled)
        temperature = self.per_lane("temperature", student)
        there, back = (
            ccl_nce(one, other, classes.value, temperature=temperature, row_weights_LB=classes.known_KB)
            for one, other in ((student, teacher), (teacher, student))
        )
        return TermValue(there + back)
