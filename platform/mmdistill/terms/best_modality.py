"""Cross-modal relations and the best modality as target (SAMM, Sarfraz et al., 2024).

Axes: K lanes, B batch, C classes, M teachers.
"""

from typing import Annotated, Literal

from pydantic import Field

from mmdistill.losses.base import known_labels
from mmdistill.losses.experts import surest_logits
from mmdistill.losses.relational import samm
from mmdistill.losses.softened import kd, prediction_mse
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_pool, require


class BestModalitySettings(TermSettings):
    """Squared error or KL to the surest teacher's logits, and ``relational`` times the relations' error."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.01, high=1.0, log=True)] = 0.1
    relational: Annotated[float, Field(ge=0), Tunable(low=2.5, high=250.0, log=True)] = 25.0
    target: Literal["mse", "kl"] = "mse"
    temperature: Annotated[float, Field(gt=0), Tunable(low=1.0, high=8.0, log=True)] = 1.0

    def dead(self) -> frozenset[str]:
        """Squared errors of logits have no temperature."""
        return frozenset({"temperature"} if self.target == "mse" else ())


@TERMS.register("best_modality")
class BestModality(AbstractTerm[BestModalitySettings]):
    """Follow on every labelled row the teacher surest of its label, and the relations of all teachers.

    Relations are the distances between outputs of length 1 within the batch, averaged over teachers. Rows
    without a label have relations and no target.
    """

    settings_type = BestModalitySettings
    needs = frozenset({"pool"})
    tasks = frozenset({"classification"})
    source = "Sarfraz et al. 2024; MultiModal-CL models/mmcl.py, models/utils/relational_distillation.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the two parts of each lane added."""
        student = batch.student.logits_KBC
        teachers_KMBC = frozen_pool(batch).logits_KBMC.transpose(1, 2)
        labels = require(batch.labels, "label")
        chosen_KBC = surest_logits(teachers_KMBC, known_labels(labels.value, labels.known_KB))
        relations_KM = samm(student[:, None].expand_as(teachers_KMBC), teachers_KMBC)
        relational_K = self.per_lane("relational", student) * relations_KM.mean(dim=1)
        if self.shared.target == "mse":
            return TermValue(
                relational_K + prediction_mse(student, chosen_KBC, row_weights_LB=labels.known_KB)
            )
        temperature = self.per_lane("temperature", student)
        target_K = kd(student, chosen_KBC, temperature=temperature, row_weights_LB=labels.known_KB)
        return TermValue(relational_K + target_K)
