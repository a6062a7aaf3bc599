"""Arms that differ in their teachers alone, as a lattice of subsets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from mmdistill.reports.arms import Declared

Kind = Literal["privileged", "teachers"]
KINDS: tuple[Kind, ...] = ("privileged", "teachers")
Parts = frozenset[str]


class Game(NamedTuple):
    """A largest arm and the arms with fewer of its parts; what else they are is the same.

    Attributes:
        kind: what the parts are: modalities in ``privileged``, or networks in ``teachers``.
        full: the arm with all parts.
        parts: what the arms differ in, at least two, in the order of the study file.
        beside: parts that all these arms have, the smallest one included.
        frozen: the arm whose winner's settings the others take; None where each has its own search.
        arms: name of the arm of each subset there is; the empty one is the arm with ``beside`` alone, or
            without a teacher where nothing is beside.
    """

    kind: Kind
    full: str
    parts: tuple[str, ...]
    beside: tuple[str, ...]
    frozen: str | None
    arms: Mapping[Parts, str]

    def words(self, parts: Parts) -> str:
        """Return a subset in words."""
        return "+".join(name for name in self.parts if name in parts) or "none of them"


def games_of(declared: Sequence[Declared]) -> list[Game]:
    """Return the lattices among the arms of a study, in the order of their largest arms."""
    place = {arm.name: number for number, arm in enumerate(declared)}
    found = [game for kind in KINDS for group in _alike(declared, kind) for game in _games(group, kind)]
    return sorted(found, key=lambda game: (place[game.full], game.frozen is not None))


def _alike(declared: Sequence[Declared], kind: Kind) -> Iterator[list[Declared]]:
    """Return the arms that agree in all but one thing: those with a search, then those frozen from one."""
    groups: dict[tuple[str, str | None], list[Declared]] = {}
    for arm in declared:
        if arm.alike and getattr(arm, kind):
            groups.setdefault((arm.alike[kind], arm.frozen), []).append(arm)
    for (alike, frozen), arms in groups.items():
        # The arm they take their settings from is the largest of its frozen readings too.
        yield [*(arm for arm in groups.get((alike, None), ()) if arm.name == frozen), *arms]


def _games(group: Sequence[Declared], kind: Kind) -> Iterator[Game]:
    """Return one lattice for each arm of which no other has more, if there are arms with less."""
    sets = {frozenset(getattr(arm, kind)): arm for arm in reversed(group)}
    for full, arm in sets.items():
        below = {parts: one.name for parts, one in sets.items() if parts <= full}
        if len(below) > 1 and not any(full < parts for parts in sets):
            yield _game(arm, kind, below, next((one.frozen for one in group if one.frozen), None))


def _game(full: Declared, kind: Kind, arms: Mapping[Parts, str], frozen: str | None) -> Game:
    common = frozenset.intersection(*arms)
    # What every arm has is no part of the question, if there is an arm with nothing else.
    if common not in arms or len(getattr(full, kind)) - len(common) < 2:
        common = frozenset()
    cells = {parts - common: name for parts, name in arms.items()}
    if not common and full.baseline:
        cells[common] = full.baseline
    names = getattr(full, kind)
    return Game(
        kind=kind,
        full=full.name,
        parts=tuple(name for name in names if name not in common),
        beside=tuple(name for name in names if name in common),
        frozen=frozen,
        arms=cells,
    )
