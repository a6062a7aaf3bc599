"""Multi-level logit distillation (Jin, Wang and Lin, 2023)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.softened import mlld
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class MultiLevelSettings(TermSettings):
    """Softened probabilities, their products over classes and over samples, at five temperatures."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0


@TERMS.register("multi_level")
class MultiLevel(AbstractTerm[MultiLevelSettings]):
    """Match the teacher per sample, per class and per batch, averaged over T in {2, ..., 6}."""

    settings_type = MultiLevelSettings
    tasks = frozenset({"classification"})
    source = "Jin et al. 2023; variant of MST-Distill KD_methods/MLLD.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the loss of each lane."""
        return TermValue(mlld(batch.student.logits_KBC, frozen_teacher(batch).logits_KBC))
