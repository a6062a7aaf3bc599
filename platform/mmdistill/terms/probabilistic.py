"""Probabilistic knowledge transfer (Passalis and Tefas, 2018)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.similarity import pkt
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class ProbabilisticSettings(TermSettings):
    """KL divergence between the two conditional distributions over neighbours, mean over B^2."""

    weight: Annotated[float, Field(ge=0), Tunable(low=300.0, high=30000.0, log=True)] = 3000.0


@TERMS.register("probabilistic")
class Probabilistic(AbstractTerm[ProbabilisticSettings]):
    """Let each sample have the neighbours it has for the teacher, by cosine similarity."""

    settings_type = ProbabilisticSettings
    source = "Passalis and Tefas 2018; RepDistiller distiller_zoo/PKT.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the divergence of each lane."""
        return TermValue(pkt(batch.student.features_KBD, frozen_teacher(batch).features_KBD))
