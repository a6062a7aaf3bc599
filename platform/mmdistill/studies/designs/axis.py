"""One setting, or several together, at several values."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from mmdistill.settings import Settings, flattened
from mmdistill.studies.designs.base import DESIGNS, Base, Design
from mmdistill.studies.designs.values import label_of, short
from mmdistill.studies.file import ArmEntry


class Point(Settings):
    """A place on an axis that takes several edits, and what it is called."""

    label: Annotated[str, Field(min_length=1)]
    edits: Annotated[dict[str, Any], Field(min_length=1)]


@DESIGNS.register("axis")
class Axis(Design):
    """Put each base at several places of one axis; the student alone belongs among the bases.

    Attributes:
        path: dotted path of the setting; not needed where every value is a labelled table.
        values: values of the setting, or ``{ label = "...", edits = { ... } }``.
        label: what the axis is called in the names of arms; by default the path, shortened.
    """

    kind: Literal["axis"] = "axis"
    path: str | None = None
    values: Annotated[
        tuple[Any, ...], Field(min_length=1, examples=[[{"label": "x", "edits": {"epochs": 4}}]])
    ]
    label: str | None = None

    def arms(self, base: Base) -> list[ArmEntry]:
        """Return one arm per value, named ``base@label=value``, or ``base@value`` for one without a path."""
        return [self._arm(base, value) for value in self.values]

    def _arm(self, base: Base, value: Any) -> ArmEntry:
        if isinstance(value, dict):
            point = _point(value)
            name, edits = point.label, flattened(point.edits)
        elif self.path is None:
            raise ValueError(f"`path` says what the value {value!r} is of, and is missing")
        else:
            name, edits = label_of(value), {self.path: value}
        label = self.label or (short(self.path) if self.path else None)
        change = ", ".join(f"{path} = {found!r}" for path, found in edits.items())
        return base.arm(f"@{label}={name}" if label else f"@{name}", edits, change)


def _point(value: dict[str, Any]) -> Point:
    try:
        return Point.model_validate(value)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ValueError(f"a table among `values` has `label` and `edits`: {key} is wrong") from error
