"""Every combination of the values of some settings."""

from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mmdistill.settings import flattened
from mmdistill.studies.designs.base import DESIGNS, Base, Design
from mmdistill.studies.designs.values import label_of, short
from mmdistill.studies.file import ArmEntry


@DESIGNS.register("factorial")
class Factorial(Design):
    """Give the base every combination of the values of its factors; the combination is not searched.

    Attributes:
        factors: values by dotted path.
        labels: what a factor is called in the names of arms, by its path; by default its path, shortened.
    """

    kind: Literal["factorial"] = "factorial"
    factors: Annotated[dict[str, tuple[Any, ...]], Field(min_length=1, examples=[{"epochs": [3, 4]}])]
    labels: dict[str, str] = Field(default_factory=dict)

    @field_validator("factors", "labels", mode="before")
    @classmethod
    def _by_dotted_path(cls, value: Any) -> Any:
        return flattened(value) if isinstance(value, dict) else value

    @field_validator("factors")
    @classmethod
    def _has_values(cls, value: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        bare = [path for path, values in value.items() if not values]
        if bare:
            raise ValueError(f"a factor has at least one value, but {bare[0]} has none")
        return value

    def arms(self, base: Base) -> list[ArmEntry]:
        """Return one arm per combination, named ``base@a=1+b=2``; the last factor changes fastest."""
        unknown = [path for path in self.labels if path not in self.factors]
        if unknown:
            raise ValueError(f"`labels` names {unknown[0]!r}, which is no factor")
        return [
            self._arm(base, dict(zip(self.factors, values, strict=True)))
            for values in product(*self.factors.values())
        ]

    def _arm(self, base: Base, edits: dict[str, Any]) -> ArmEntry:
        named = [f"{self.labels.get(path, short(path))}={label_of(value)}" for path, value in edits.items()]
        return base.arm(f"@{'+'.join(named)}", edits, ", ".join(f"{p} = {v!r}" for p, v in edits.items()))
