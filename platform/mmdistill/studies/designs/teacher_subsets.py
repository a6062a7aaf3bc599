"""The base with every subset of its privileged modalities, all or of some sizes."""

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field

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
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()

    def arms(self, base: ArmEntry, privileged: Sequence[str]) -> list[ArmEntry]:
        """Return one arm per subset, named ``base@a+b``, smaller subsets first."""
        count = len(privileged)
        too_large = [size for size in self.sizes if size > count]
        if too_large or not count:
            asked = f"subsets of {too_large[0]}" if too_large else "subsets"
            raise ValueError(f"there are no {asked}: the base has {count} privileged modalities")
        sizes = sorted(set(self.sizes)) or range(1, count + 1)
        return [_without_others(base, subset) for size in sizes for subset in combinations(privileged, size)]


def _without_others(base: ArmEntry, subset: Sequence[str]) -> ArmEntry:
    edits = base.edits | {"data.privileged": list(subset)}
    return base.model_copy(update={"name": f"{base.name}@{'+'.join(subset)}", "edits": edits})
