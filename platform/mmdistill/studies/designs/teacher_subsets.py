"""The base with every subset of its privileged modalities, all or of some sizes."""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from mmdistill.studies.designs.base import DESIGNS, Design
from mmdistill.studies.file import ArmEntry


@DESIGNS.register("teacher_subsets")
class TeacherSubsets(Design):
    """Rebuild the base on subsets of its privileged modalities.

    A modality that is not in the subset is gone from every network, the joint teacher included.

    Attributes:
        sizes: how many modalities a subset has; empty means every size from 1.
    """

    kind: Literal["teacher_subsets"] = "teacher_subsets"
    sizes: tuple[int, ...] = ()

    def arms(self, base: ArmEntry, privileged: Sequence[str]) -> list[ArmEntry]:
        """Return one arm per subset, named ``base@a+b``, smaller subsets first."""
        sizes = self.sizes or range(1, len(privileged) + 1)
        subsets = [subset for size in sorted(sizes) for subset in combinations(privileged, size)]
        return [
            base.model_copy(
                update={
                    "name": f"{base.name}@{'+'.join(subset)}",
                    "edits": base.edits | {"data.privileged": list(subset)},
                }
            )
            for subset in subsets
        ]
