"""The base with every subset of its teacher networks, all or of some sizes."""

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field

from mmdistill.studies.designs.base import DESIGNS, Base, Reduction, chosen
from mmdistill.studies.designs.parts import teachers_left
from mmdistill.studies.file import ArmEntry


@DESIGNS.register("network_subsets")
class NetworkSubsets(Reduction):
    """Keep subsets of the networks in the base's pool; every network stays as it is.

    Unlike in ``teacher_subsets``, a modality may still be seen by another network that is kept.

    Attributes:
        keep: networks in every subset; alignment, for one, needs ``joint``.
        sizes: how many of the other networks a subset has; empty means every size from 1.
    """

    kind: Literal["network_subsets"] = "network_subsets"
    keep: tuple[str, ...] = ()
    sizes: tuple[Annotated[int, Field(ge=0)], ...] = ()

    def reduced(self, base: Base) -> list[ArmEntry]:
        """Return one arm per subset, named ``base@networks=a+b``, smaller subsets first."""
        pool = list(base.run.networks())
        unknown = [name for name in self.keep if name not in pool]
        if unknown:
            raise ValueError(f"`keep` names {unknown[0]!r}, but the networks of the base are {pool}")
        free = [name for name in pool if name not in self.keep]
        sizes = chosen(free, self.sizes, "networks to choose from")
        return [
            _with(base, [name for name in pool if name in self.keep or name in subset])
            for size in sizes
            for subset in combinations(free, size)
        ]


def _with(base: Base, kept: Sequence[str]) -> ArmEntry:
    return base.arm(
        f"@networks={'+'.join(kept)}", teachers_left(base.run, kept), f"taught by {', '.join(kept)}"
    )
