"""Rank agreement of the leading classes (RLKD, 2025)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.ranking import rlkd, rlkd_batch
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class RankAgreementSettings(TermSettings):
    """1 - Spearman's correlation among the classes that either network has among its first ``top``."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    top: Annotated[int, Field(ge=2), Tunable(low=2, high=10, integer=True)] = 3
    temperature: Annotated[float, Field(gt=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0


@TERMS.register("rank_agreement")
class RankAgreement(AbstractTerm[RankAgreementSettings]):
    """Put the classes into the teacher's order, whatever their margins.

    In regression the samples of a batch are put into the order of the teacher's predictions (inferred); the
    temperature of the soft ranks is then in the units of the targets.
    """

    settings_type = RankAgreementSettings
    classification_only = frozenset({"top"})
    # Two ranks agree or not, whatever the student's margin.
    least_classes = 3
    source = "RLKD (COLING 2025), first page; soft rank inferred"

    def forward(self, batch: Batch) -> TermValue:
        """Return the disagreement of each lane, in [0, 2]."""
        student, teacher = batch.student.logits_KBC, frozen_teacher(batch).logits_KBC
        temperature = self.per_lane("temperature", student)
        if self.task == "regression":
            return TermValue(rlkd_batch(student, teacher, temperature=temperature))
        top_K = self.per_lane("top", student).long()
        return TermValue(rlkd(student, teacher, k=top_K, temperature=temperature))
