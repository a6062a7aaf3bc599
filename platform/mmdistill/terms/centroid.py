"""Centroids of the similarity structure in the student's space (MT-PKDOT, equation 4)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.structural import centroid
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, require


class CentroidSettings(TermSettings):
    """Distance between the mean rows of the two similarity matrices, over the root of the batch size."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.03, high=3.0, log=True)] = 0.2


@TERMS.register("centroid")
class Centroid(AbstractTerm[CentroidSettings]):
    """Keep the centroid of the student's similarities at the teacher's.

    Divided by sqrt(B), so that a weight means the same at every batch size (inferred; the code does not).
    """

    settings_type = CentroidSettings
    source = "MT-PKDOT, arXiv 2408.09035v1, equation 4; commented out in the released code"

    def forward(self, batch: Batch) -> TermValue:
        """Return the distance of each lane."""
        teacher = require(batch.teacher, "teacher").features_KBD.detach()
        return TermValue(centroid(batch.student.features_KBD, teacher, scaled=True))
