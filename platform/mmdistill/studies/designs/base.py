"""What every design is."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmdistill.pipeline.run import RunSettings
from mmdistill.registry import Registry
from mmdistill.settings import Settings, edited
from mmdistill.studies.arm import identity
from mmdistill.studies.file import ArmEntry
from mmdistill.studies.space import refusal


@dataclass(frozen=True)
class Base:
    """An arm that a design starts from, and its run."""

    entry: ArmEntry
    run: RunSettings

    def arm(self, suffix: str, edits: Mapping[str, Any], change: str) -> ArmEntry:
        """Return the base with some edits laid on top, which no search undoes.

        Args:
            suffix: put behind the base's name.
            edits: by dotted path.
            change: in words, how the arm differs from the base.
        """
        entry = self.entry
        before = {path: value for path, value in entry.edits.items() if path not in edits}
        space = {path: found for path, found in entry.space.items() if not _is_below(path, edits)}
        changes = {
            "name": f"{entry.name}{suffix}",
            "edits": before | dict(edits),
            "space": space | dict.fromkeys(edits, False),
            "controls": (),
            "base": entry.name,
            "change": change,
        }
        return entry.model_copy(update=changes)

    def allows(self, edits: Mapping[str, Any]) -> bool:
        """Return whether the run holds together with some edits."""
        return refusal(self.run, edits) is None

    def changed(self, edits: Mapping[str, Any]) -> dict[str, Any]:
        """Return the identity of the run with some edits, see :func:`mmdistill.studies.arm.identity`."""
        return identity(RunSettings.model_validate(edited(self.run.as_json(), edits)))


def _is_below(path: str, edits: Mapping[str, Any]) -> bool:
    return any(path == edit or path.startswith(f"{edit}.") for edit in edits)


class Design(Settings, abc.ABC):
    """Generates arms from each of its bases; ``base`` names a single one.

    Attributes:
        kind: name of the design.
        bases: names of the arms it starts from.
    """

    kind: str
    bases: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _takes_a_single_base(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "base" in value and "bases" not in value:
            return {key: value[key] for key in value if key != "base"} | {"bases": [value["base"]]}
        return value

    @abc.abstractmethod
    def arms(self, base: Base) -> list[ArmEntry]:
        """Return the arms generated from one base.

        Raises:
            ValueError: if the design asks for what the base does not have.
        """


class Reduction(Design):
    """A design whose arms have less than their base.

    Attributes:
        readings: ``retuned`` searches the arm; ``frozen`` gives it the settings of the base's winner, as an
            arm ``<name>.frozen``.
    """

    readings: Annotated[tuple[Literal["retuned", "frozen"], ...], Field(min_length=1)] = ("retuned",)

    @abc.abstractmethod
    def reduced(self, base: Base) -> list[ArmEntry]:
        """Return the arms of one base, to be searched."""

    def arms(self, base: Base) -> list[ArmEntry]:
        """Return the arms of one base in the readings asked for, the readings of an arm side by side."""
        found = []
        for arm in self.reduced(base):
            if "retuned" in self.readings:
                found.append(arm)
            # The whole base is in a lattice too; its own winner is no reading of it.
            if "frozen" in self.readings and not _is_base(arm, base):
                found.append(frozen_reading(arm))
        return found


def frozen_reading(arm: ArmEntry) -> ArmEntry:
    """Return a generated arm that takes the settings of its base's winner."""
    changes = {"name": f"{arm.name}.frozen", "frozen": arm.base, "change": f"{arm.change}, not re-tuned"}
    space = {path: False for path, asked in arm.space.items() if asked is False}
    return arm.model_copy(update=changes | {"space": space})


def _is_base(arm: ArmEntry, base: Base) -> bool:
    own = {path: value for path, value in arm.edits.items() if base.entry.edits.get(path) != value}
    return base.allows(own) and base.changed(own) == identity(base.run)


def chosen(names: Sequence[str], sizes: Sequence[int], what: str) -> list[int]:
    """Return the sizes of subsets, ascending: those asked for, or all from 1.

    Raises:
        ValueError: if there are no subsets of a size.
    """
    count = len(names)
    too_large = [size for size in sizes if size > count]
    if too_large or not count:
        asked = f"subsets of {too_large[0]}" if too_large else "subsets"
        raise ValueError(f"there are no {asked}: the base has {count} {what}")
    return sorted(set(sizes)) or list(range(1, count + 1))


DESIGNS: Registry[type[Design]] = Registry("design")
