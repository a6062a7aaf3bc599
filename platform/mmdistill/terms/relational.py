"""Relational knowledge distillation: distances and angles (Park et al., 2019)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.relational import rkd
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class RelationalSettings(TermSettings):
    """Huber losses between distances of pairs and between angles of triples."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 1.0
    distance: Annotated[float, Field(ge=0), Tunable(low=5.0, high=100.0, log=True)] = 25.0
    angle: Annotated[float, Field(ge=0), Tunable(low=10.0, high=200.0, log=True)] = 50.0


@TERMS.register("relational")
class Relational(AbstractTerm[RelationalSettings]):
    """Let pairs of samples be as far apart, and triples at the same angles, as for the teacher."""

    settings_type = RelationalSettings
    source = "Park et al. 2019, equations 5 to 8; RepDistiller distiller_zoo/RKD.py"

    def forward(self, batch: Batch) -> TermValue:
        """Return the loss of each lane."""
        student = batch.student.features_KBD
        distance, angle = (self.per_lane(name, student) for name in ("distance", "angle"))
        return TermValue(
            rkd(student, frozen_teacher(batch).features_KBD, distance_weight=distance, angle_weight=angle)
        )
