"""What a privileged modality is worth for what it costs to acquire."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from mmdistill.reports.arms import Declared
from mmdistill.reports.claims import Claim
from mmdistill.statistics import Interval

Measure = Literal["shapley", "leave_one_out", "add_one"]
MEASURES: tuple[Measure, ...] = ("shapley", "leave_one_out", "add_one")


class GainPerCost(NamedTuple):
    """A modality with its price; gains are score per one unit of cost.

    Attributes:
        cost: as stated, > 0.
        claim: its contribution, in the measure of the list.
        seeds: gain per unit with its 95 % interval over replicates.
        crossed: the same over seeds x test units.
    """

    part: str
    cost: float
    claim: Claim
    seeds: Interval
    crossed: Interval


class PriceList(NamedTuple):
    """Modalities by gain per unit of cost, the best first.

    Attributes:
        unit: what costs are counted in; may be empty.
        measure: the contribution that counts as the gain: the first of Shapley value, leave-one-out and
            add-one that every priced modality has.
        prices: empty where no measure is known for all of them.
        unpriced: modalities without a stated price.
    """

    unit: str
    measure: Measure | None
    prices: tuple[GainPerCost, ...]
    unpriced: tuple[str, ...]


def price_list(
    full: Declared, parts: Sequence[str], claims: Mapping[Measure, Mapping[str, Claim]]
) -> PriceList | None:
    """Return the price list of some modalities; None where the study states no price of any.

    Args:
        full: an arm of the study.
        parts: the modalities.
        claims: what each contributes, by measure; only those that are known.
    """
    stated = full.prices or {}
    costs = {part: stated[part] for part in parts if part in stated}
    if not costs:
        return None
    measure = next((one for one in MEASURES if claims[one].keys() >= costs.keys()), None)
    found = [_price(part, cost, claims[measure][part]) for part, cost in costs.items()] if measure else []
    found.sort(key=lambda price: -price.seeds.mean)
    return PriceList(
        full.price_unit, measure, tuple(found), tuple(part for part in parts if part not in costs)
    )


def _price(part: str, cost: float, claim: Claim) -> GainPerCost:
    return GainPerCost(part, cost, claim, _divided(claim.seeds, cost), _divided(claim.crossed, cost))


def _divided(interval: Interval, cost: float) -> Interval:
    return Interval(interval.mean / cost, interval.low / cost, interval.high / cost, interval.n)
