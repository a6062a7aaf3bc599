"""DarkRank: the order of the nearest neighbours (Chen, Wang and Zhang, 2018)."""

from typing import Annotated

from pydantic import Field

from mmdistill.losses.base import unit_rows
from mmdistill.losses.relational import darkrank
from mmdistill.settings import Tunable
from mmdistill.terms.base import TERMS, AbstractTerm, Batch, TermSettings, TermValue, frozen_teacher


class RankingSettings(TermSettings):
    """Plackett-Luce likelihood of the teacher's order of the nearest, scores -alpha d^beta."""

    weight: Annotated[float, Field(ge=0), Tunable(low=0.1, high=10.0, log=True)] = 1.0
    alpha: Annotated[float, Field(gt=0), Tunable(low=0.3, high=10.0, log=True)] = 3.0
    beta: Annotated[float, Field(gt=0), Tunable(low=1.0, high=3.0)] = 3.0
    length: Annotated[int, Field(ge=1)] = 4

    def most(self, batch_size: int) -> dict[str, int]:
        """Return the greatest length: the neighbours a sample has."""
        return {"length": batch_size - 1}


@TERMS.register("ranking")
class Ranking(AbstractTerm[RankingSettings]):
    """Let the samples nearest for the teacher be nearest for the student, in the same order.

    Features are normalised to length 1, as in the reference code.
    """

    settings_type = RankingSettings
    source = "Chen et al. 2018, equation 9; lenscloth/RKD metric/loss.py HardDarkRank"

    def forward(self, batch: Batch) -> TermValue:
        """Return the negative log likelihood of each lane."""
        student, teacher = (unit_rows(found.features_KBD) for found in (batch.student, frozen_teacher(batch)))
        return TermValue(
            darkrank(
                student,
                teacher,
                alpha=self.per_lane("alpha", student),
                beta=self.per_lane("beta", student),
                length=self.shared.length,
            )
        )
