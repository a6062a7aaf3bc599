"""A minimal form of the base, and that with one more of the base's parts at a time."""

from collections.abc import Sequence
from typing import Literal

from mmdistill.studies.designs.base import DESIGNS, Base, Design
from mmdistill.studies.designs.parts import TEACHER, checked_parts, parts_of, without
from mmdistill.studies.file import ArmEntry


@DESIGNS.register("add_one")
class AddOne(Design):
    """Take all parts out of the base but a few, and put one back at a time.

    Without ``start`` the minimal form is the student alone, and each arm has one term. Teachers are parts
    only where ``start`` keeps one of them; else every arm with a term has all.

    Attributes:
        start: parts that every arm keeps, named as in ``leave_one_out``.
        parts: parts to put back; empty means every part that does something there and needs no other.
    """

    kind: Literal["add_one"] = "add_one"
    start: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def arms(self, base: Base) -> list[ArmEntry]:
        """Return the minimal arm, ``base@none`` or ``base@part``, then those with one part more."""
        start = checked_parts(self.start, base.run)
        known = parts_of(base.run)
        if not any(part.startswith(TEACHER) for part in [*start, *self.parts]):
            known = [part for part in known if not part.startswith(TEACHER)]
        minimal = _edits(base, known, start)
        added = checked_parts(self.parts, base.run)
        if not added:
            added = [
                part for part in known if part not in start and _does_something(base, known, start, part)
            ]
        if not added:
            raise ValueError("the base has no part to add")
        names = [start, *([*start, part] for part in added)]
        edits = [minimal, *(_edits(base, known, [*start, part]) for part in added)]
        return [
            base.arm(f"@{'+'.join(kept) or 'none'}", edit, f"{', '.join(kept) or 'no part'} alone")
            for kept, edit in zip(names, edits, strict=True)
        ]


def _edits(base: Base, known: Sequence[str], kept: Sequence[str]) -> dict[str, object]:
    return without(base.run, [part for part in known if part not in kept])


def _does_something(base: Base, known: Sequence[str], start: Sequence[str], part: str) -> bool:
    minimal, more = _edits(base, known, start), _edits(base, known, [*start, part])
    return base.allows(more) and base.changed(more) != base.changed(minimal)
