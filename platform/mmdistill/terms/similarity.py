"""Similarity-preserving distillation (Tung and Mori, 2019)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.similarity import sp
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class SimilaritySettings(TermSettings):
    """Squared distance between the two row-normalised matrices of inner products, over B^2."""

    weight: Annotated[float, Field(ge=0), Tunable(low=10.0, high=3000.0, log=True)] = 100.0


@TERMS.register("similarity")
class Similarity(AbstractTerm[SimilaritySettings]):
    """Let the same pairs of samples be alike for the student as for the teacher."""

    settings_type = SimilaritySettings
    source = "Tung and Mori 2019; RepDistiller distiller_zoo/SP.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the distance of each lane."""
        return TermValue(sp(batch.student.features_KBD, frozen_teacher(batch).features_KBD))
