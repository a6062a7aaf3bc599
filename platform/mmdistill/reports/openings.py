"""When the test split was opened, for whom, and what was planned only afterwards."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from mmdistill.reports.arms import Declared


class Openings(NamedTuple):
    """The ledger of test openings.

    Attributes:
        pairs: by opening, in order, how many runs of each arm it read.
    """

    pairs: Mapping[int, Mapping[str, int]]

    @property
    def times(self) -> int:
        """Return how often the test split was opened."""
        return len(self.pairs)

    def first_of(self, arm: str) -> int:
        """Return the first opening that read an arm; the next one if none did."""
        return next((number for number, arms in self.pairs.items() if arm in arms), self.times + 1)

    def before(self, contrast: Mapping[str, Any], arms: Sequence[Declared]) -> int:
        """Return the last opening before a contrast was planned; 0 if it was planned before all of them.

        A contrast that a later revision plans after an opening has a side that this opening has not read: so
        it was planned after the opening before the first that read both sides.
        """
        if contrast.get("revision", 1) == 1:
            return 0
        added = [arm.name for arm in arms if arm.revision > 1]
        sides = [self.first_of(contrast[side]) for side in ("arm", "against") if contrast[side] in added]
        return max(sides, default=1) - 1

    def stamp(self) -> str | None:
        """Return what every table must say where the split was opened several times."""
        if self.times < 2:
            return None
        parts = [f"opening {number} read {self._read(number)}" for number in list(self.pairs)[1:]]
        return (
            f"the test split was opened {self.times} times: {'; '.join(parts)}. No p-value accounts for what "
            "was seen at an earlier opening"
        )

    def _read(self, number: int) -> str:
        words: dict[str, list[str]] = {}
        for arm, pairs in self.pairs[number].items():
            kind = "for the first time" if self.first_of(arm) == number else "again"
            words.setdefault(f"{kind} ({pairs} pairs each)", []).append(arm)
        return ", ".join(f"{', '.join(arms)} {kind}" for kind, arms in words.items())


def openings_of(ledger: pa.Table) -> Openings:
    """Return the openings in the table ``test_openings``."""
    pairs: dict[int, dict[str, int]] = {}
    rows = ledger.select(["opening", "arm"]).to_pylist()
    for row in sorted(rows, key=lambda row: row["opening"]):
        arms = pairs.setdefault(row["opening"], {})
        arms[row["arm"]] = arms.get(row["arm"], 0) + 1
    return Openings(pairs)
