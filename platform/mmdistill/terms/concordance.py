"""Concordance with the teacher's predictions: the counterpart of softened logits in regression."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.regression import prediction_ccc
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class ConcordanceSettings(TermSettings):
    """1 - CCC between the student's and the teacher's predictions, averaged over targets."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 1.0


@TERMS.register("concordance")
class Concordance(AbstractTerm[ConcordanceSettings]):
    """Let the student's predictions agree with the teacher's, on every row, labelled or not.

    A mean over batches: the metric is over a whole split.
    """

    settings_type = ConcordanceSettings
    tasks = frozenset({"regression"})
    source = "Lin 1989 for the coefficient; its use against a teacher is inferred"

    def forward(self, batch: Batch) -> TermValue:
        """Return 1 - CCC of each lane, in [0, 2]."""
        return TermValue(prediction_ccc(batch.student.logits_KBC, frozen_teacher(batch).logits_KBC))
