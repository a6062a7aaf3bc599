"""What each teacher, or each privileged modality, contributes: alone, in company, and on average.

With v(S) the mean score of the arm with the subset S of the parts N, and i, j two parts:

==============  ===================================================================================
add-one         v({i}) - v({})
leave-one-out   v(N) - v(N - {i})
Shapley         mean of v(S + {i}) - v(S) over all orders in which the parts may come (Shapley, 1953)
interaction     mean of v(S + {i, j}) - v(S + {i}) - v(S + {j}) + v(S), in the weights of Grabisch
                and Roubens (1999)
==============  ===================================================================================

All are weighted sums of scores, taken within each pair; their intervals are those of any other contrast.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

from mmdistill.reports.claims import Claim, Question, exploratory_claims_of, numbers, turned_round
from mmdistill.reports.evidence import Paired
from mmdistill.reports.lattices import Game, Kind, Parts, games_of
from mmdistill.reports.prices import MEASURES, PriceList, price_list
from mmdistill.reports.readings import Readings
from mmdistill.statistics import Verdict

Weights = Mapping[Parts, float]
"""Weight of each subset in a sum of scores; they add up to 0."""


class Effect(NamedTuple):
    """A contribution, or why there is none.

    Attributes:
        claim: the number with its two intervals and its verdict. It names the two arms it compares; a sum
            over more arms names its parts as ``arm`` and nothing as ``against``.
        reason: what is missing; None where there is a claim.
    """

    claim: Claim | None
    reason: str | None


class Part(NamedTuple):
    """What one teacher or modality contributes; harm alone and in company are verdicts of the first two."""

    name: str
    add_one: Effect
    leave_one_out: Effect
    shapley: Effect


class Interaction(NamedTuple):
    """What two parts do beyond what each does: above 0 they give more together, below 0 less.

    Attributes:
        averaged: over which companies: ``all`` is the Shapley interaction; ``alone`` and ``in company`` are
            the second difference at the bottom and at the top of an incomplete lattice.
    """

    parts: tuple[str, str]
    averaged: Literal["all", "alone", "in company"]
    effect: Effect


class Subset(NamedTuple):
    """A subset of the parts and its arm; None where the study has none."""

    parts: tuple[str, ...]
    arm: str | None


class Lattice(NamedTuple):
    """The contributions of the parts of one arm.

    Attributes:
        kind: what the parts are: modalities in ``privileged``, or networks in ``teachers``.
        full: the arm with all parts.
        none: the arm with no part; None where the study has none.
        beside: parts that all these arms have.
        frozen: the arm whose winner's settings the others take; None where each has its own search.
        cells: every subset, smaller ones first.
        whole: all parts against none, the sum of the Shapley values.
        parts: in the order of the study file.
        interactions: one per two parts.
        prices: value per cost of acquisition; None where no price of a part is stated.
        sentences: one per part with a verdict.
    """

    kind: Kind
    full: str
    none: str | None
    beside: tuple[str, ...]
    frozen: str | None
    cells: tuple[Subset, ...]
    whole: Effect
    parts: tuple[Part, ...]
    interactions: tuple[Interaction, ...]
    prices: PriceList | None
    sentences: tuple[str, ...]


def contributions(readings: Readings, known: Sequence[Claim] = ()) -> tuple[Lattice, ...]:
    """Return the lattices of a study with their contributions.

    Args:
        readings: what the tables hold.
        known: claims that are made already, the planned ones first: an add-one or leave-one-out that is
            among them, either way round, is that claim. All other numbers are exploratory, adjusted by
            Benjamini and Hochberg among themselves, over all lattices.
    """
    games = games_of(readings.declared)
    asked = [list(_asked(game)) for game in games]
    claims = _claims(readings, games, asked, known)
    return tuple(
        _lattice(readings, game, _effects(game, sums, found))
        for game, sums, found in zip(games, asked, claims, strict=True)
    )


def shapley_weights(parts: Sequence[str], of: str) -> dict[Parts, float]:
    """Return the weight of each subset's score in the Shapley value of one part."""
    n, weights = len(parts), dict[Parts, float]()
    for rest in _subsets([part for part in parts if part != of]):
        share = 1 / (n * math.comb(n - 1, len(rest)))
        weights |= {rest | {of}: share, rest: -share}
    return weights


def interaction_weights(parts: Sequence[str], first: str, second: str) -> dict[Parts, float]:
    """Return the weight of each subset's score in the Shapley interaction of two parts."""
    n, weights = len(parts), dict[Parts, float]()
    for rest in _subsets([part for part in parts if part not in (first, second)]):
        share = 1 / ((n - 1) * math.comb(n - 2, len(rest)))
        weights |= _second_difference(rest, first, second, share)
    return weights


def _subsets(parts: Sequence[str]) -> Iterator[Parts]:
    return (frozenset(one) for size in range(len(parts) + 1) for one in combinations(parts, size))


def _second_difference(rest: Parts, first: str, second: str, share: float = 1.0) -> dict[Parts, float]:
    both = rest | {first, second}
    return {both: share, rest | {first}: -share, rest | {second}: -share, rest: share}


_Key = tuple[Any, ...]


class _Sum(NamedTuple):
    """A sum of scores that was asked for; its key begins with what it is, then names its parts."""

    key: _Key
    weights: Weights


def _asked(game: Game) -> Iterator[_Sum]:
    everything, nothing = frozenset(game.parts), frozenset[str]()
    yield _Sum(("whole",), {everything: 1, nothing: -1})
    for part in game.parts:
        yield _Sum(("add_one", part), {frozenset({part}): 1, nothing: -1})
        yield _Sum(("leave_one_out", part), {everything: 1, everything - {part}: -1})
        yield _Sum(("shapley", part), shapley_weights(game.parts, part))
    for first, second in combinations(game.parts, 2):
        options = _interactions(game, first, second)
        kind = next((kind for kind, weights in options.items() if weights.keys() <= game.arms.keys()), "all")
        yield _Sum(("interaction", first, second, kind), options[kind])


def _interactions(game: Game, first: str, second: str) -> dict[str, Weights]:
    top = frozenset(game.parts) - {first, second}
    return {
        "all": interaction_weights(game.parts, first, second),
        "alone": _second_difference(frozenset(), first, second),
        "in company": _second_difference(top, first, second),
    }


def _claims(
    readings: Readings, games: Sequence[Game], asked: Sequence[Sequence[_Sum]], known: Sequence[Claim]
) -> list[dict[_Key, Claim]]:
    """Return the claims of each lattice by their sums; a sum that lacks an arm has none."""
    made: dict[tuple[str, str], Claim] = {}
    for claim in known:
        for way in (claim, turned_round(claim)):
            made.setdefault((way.arm, way.against), way)
    found: list[dict[_Key, Claim]] = []
    rest: list[tuple[int, _Key, Question, Paired]] = []
    for number, (game, sums) in enumerate(zip(games, asked, strict=True)):
        arms = {one.key: _two_arms(game, one) for one in sums}
        found.append({key: made[pair] for key, pair in arms.items() if pair in made})
        unmade = [one for one in sums if one.key not in found[number]]
        for asked_for, evidence in _evidence(readings, game, unmade):
            name, against = arms[asked_for.key] or ("+".join(asked_for.key[1:3]), "")
            remarks = readings.remarks(name, against) if against else ()
            rest.append((number, asked_for.key, Question(name, against, remarks=remarks), evidence))
    fresh = exploratory_claims_of(
        [question for _, _, question, _ in rest],
        [evidence for *_, evidence in rest],
        margin=readings.study["margin"],
        judged=readings.basis == "test" and not readings.is_beside,
    )
    for (number, key, _, _), claim in zip(rest, fresh, strict=True):
        found[number][key] = claim
    return found


def _two_arms(game: Game, asked: _Sum) -> tuple[str, str] | None:
    """Return the arm and the one it is compared with; None for a sum of more, or of arms there are not."""
    if len(asked.weights) > 2 or not asked.weights.keys() <= game.arms.keys():
        return None
    first, second = sorted(asked.weights, key=lambda parts: -asked.weights[parts])
    return game.arms[first], game.arms[second]


def _evidence(readings: Readings, game: Game, sums: Sequence[_Sum]) -> Iterator[tuple[_Sum, Paired]]:
    """Return the evidence on every sum whose arms there are; sums of the same arms are drawn together."""
    by_arms: dict[tuple[str, ...], list[_Sum]] = {}
    for one in sums:
        if one.weights.keys() <= game.arms.keys():
            by_arms.setdefault(tuple(sorted(game.arms[parts] for parts in one.weights)), []).append(one)
    for arms, several in by_arms.items():
        weights = [{game.arms[parts]: weight for parts, weight in one.weights.items()} for one in several]
        rows_CA = [[weight[arm] for arm in arms] for weight in weights]
        yield from zip(several, readings.contrast(arms, rows_CA), strict=True)


def _effects(game: Game, sums: Sequence[_Sum], claims: Mapping[_Key, Claim]) -> dict[_Key, Effect]:
    missing = [parts for parts in _subsets(game.parts) if parts not in game.arms]
    absent = {one.key: [parts for parts in missing if parts in one.weights] for one in sums}
    return {one.key: _effect(claims.get(one.key), game, absent[one.key]) for one in sums}


def _effect(claim: Claim | None, game: Game, absent: Sequence[Parts]) -> Effect:
    if claim is None:
        shown = [game.words(parts) for parts in absent[:3]]
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        return Effect(None, f"no arm with {', '.join(shown)}{more}")
    return Effect(claim, None) if claim.seeds.n else Effect(None, "no pair yet that all its arms finished")


def _lattice(readings: Readings, game: Game, effects: Mapping[_Key, Effect]) -> Lattice:
    parts = tuple(
        Part(name, *(effects[measure, name] for measure in ("add_one", "leave_one_out", "shapley")))
        for name in game.parts
    )
    return Lattice(
        kind=game.kind,
        full=game.full,
        none=game.arms.get(frozenset()),
        beside=game.beside,
        frozen=game.frozen,
        cells=tuple(
            Subset(tuple(name for name in game.parts if name in one), game.arms.get(one))
            for one in _subsets(game.parts)
        ),
        whole=effects["whole",],
        parts=parts,
        interactions=tuple(
            Interaction((key[1], key[2]), key[3], effect)
            for key, effect in effects.items()
            if key[0] == "interaction"
        ),
        prices=_prices(readings, game.full, parts) if game.kind == "privileged" else None,
        sentences=tuple(text for text in (_sentence(part, readings) for part in parts) if text),
    )


def _prices(readings: Readings, full: str, parts: Sequence[Part]) -> PriceList | None:
    effects = {measure: {part.name: getattr(part, measure) for part in parts} for measure in MEASURES}
    claims = {
        measure: {name: effect.claim for name, effect in found.items() if effect.claim}
        for measure, found in effects.items()
    }
    (arm,) = (arm for arm in readings.declared if arm.name == full)
    return price_list(arm, [part.name for part in parts], claims)


def told(lattice: Lattice) -> list[tuple[Part, str]]:
    """Return the parts that were judged, each with its sentence."""
    return list(zip((part for part in lattice.parts if any(_verdicts(part))), lattice.sentences, strict=True))


def finding(part: Part) -> str:
    """Return what is known of a part: helps, harms, helps and harms, useless or undecided."""
    found = {verdict for verdict in _verdicts(part) if verdict in ("helps", "harms")}
    if len(found) == 2:
        return "helps and harms"
    if found:
        return str(found.pop())
    return "useless" if "equivalent" in _verdicts(part) else "undecided"


def _verdicts(part: Part) -> list[Verdict | None]:
    return [effect.claim.verdict if effect.claim else None for effect in (part.add_one, part.leave_one_out)]


_SAID: dict[Verdict, str] = {
    "helps": "helps",
    "harms": "harms",
    "equivalent": "is useless",
    "cannot tell": "is undecided",
}


def _sentence(part: Part, readings: Readings) -> str | None:
    """Return what a part does alone and in company, as far as it was judged."""
    effects = {"alone": part.add_one.claim, "in company": part.leave_one_out.claim}
    claims = {where: claim for where, claim in effects.items() if claim}
    said = {where: _SAID[claim.verdict] for where, claim in claims.items() if claim.verdict}
    if not said:
        return None
    if len(set(said.values())) == 1:
        verdict = f"{next(iter(said.values()))} {' and '.join(said)}"
    else:
        verdict = " and ".join(f"{word} {where}" for where, word in said.items())
    margin = f" (margin {readings.study['margin']:g})" if "is useless" in said.values() else ""
    told = [
        f"{where}, {claim.arm} minus {claim.against} is {claim.seeds.mean:+z.3f} ({numbers(claim)})"
        for where, claim in claims.items()
    ]
    return f"{part.name} {verdict}{margin}: {'; '.join(told)}."
