"""The base with every subset of its privileged modalities, all or of some sizes."""

from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field

from mmdistill.studies.designs.base import DESIGNS, Base, Reduction, chosen
from mmdistill.studies.file import ArmEntry


@DESIGNS.register("teacher_subsets")
class TeacherSubsets(Reduction):
    """Rebuild the base on subsets of its privileged modalities.

    A modality that is not in the subset is gone from every network, the joint teacher included.

    Attributes:
        sizes: how many modalities a subset has; empty means every size from 1.
    """

    kind: Literal["teacher_subsets"] = "teacher_subsets"
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()

    def reduced(self, base: Base) -> list[ArmEntry]:
        """Return one arm per subset, named ``base@a+b``, smaller subsets first."""
        privileged = base.run.data.privileged
        sizes = chosen(privileged, self.sizes, "privileged modalities")
        return [
            base.arm(
                f"@{'+'.join(subset)}",
                {"data.privileged": list(subset)},
                f"privileged: {', '.join(subset)} alone",
            )
            for size in sizes
            for subset in combinations(privileged, size)
        ]
