"""The base without one of its parts at a time."""

from typing import Literal

from mmdistill.studies.designs.base import DESIGNS, Base, Reduction
from mmdistill.studies.designs.parts import SELECTION, TEACHER, checked_parts, parts_of, without
from mmdistill.studies.file import ArmEntry


@DESIGNS.register("leave_one_out")
class LeaveOneOut(Reduction):
    """Take one part out of the base at a time.

    Attributes:
        parts: names of terms, ``hallucinator``, ``alignment``, ``selection`` (a teacher per row, else per
            batch) or ``teacher.<network>``; empty means every part that no other part needs.
    """

    kind: Literal["leave_one_out"] = "leave_one_out"
    parts: tuple[str, ...] = ()

    def reduced(self, base: Base) -> list[ArmEntry]:
        """Return one arm per part, named ``base-part``."""
        asked = checked_parts(self.parts, base.run)
        parts = asked or [part for part in parts_of(base.run) if base.allows(without(base.run, [part]))]
        if not parts:
            raise ValueError("the base has no part that can be left out")
        return [base.arm(f"-{part}", without(base.run, [part]), _words(part)) for part in parts]


def _words(part: str) -> str:
    if part == SELECTION:
        return "one teacher per batch instead of one per row"
    return (
        f"without the teacher {part.removeprefix(TEACHER)}" if part.startswith(TEACHER) else f"without {part}"
    )
