"""What the exact test of few pairs cannot reach, however large the effect."""

import math

from mmdistill.statistics import ALPHA, EXACT_UP_TO


def smallest_p(n: int) -> float:
    """Return the smallest p the exact sign-flip test can reach with ``n`` pairs."""
    return min(1.0, 2.0 ** (1 - n)) if n <= EXACT_UP_TO else 0.0


def too_few(n: int, family: int) -> str | None:
    """Return why a family of exact sign-flip tests on ``n`` pairs cannot reach .05; None where it can."""
    floor = smallest_p(n) * family
    if floor < ALPHA:
        return None
    enough = next(more for more in range(n + 1, 64) if smallest_p(more) * family < ALPHA)
    return (
        f"n = {n} is too small: the exact sign-flip test of {family} planned contrast(s) cannot go below "
        f"p = {min(floor, 1.0):.2g} after Holm; n = {enough} could reach {ALPHA:g}"
    )


def too_few_alone(n: int, family: int) -> str | None:
    """Return why one true effect among unplanned comparisons on ``n`` pairs cannot pass; None where it can.

    Args:
        n: pairs of each exact sign-flip test.
        family: comparisons that Benjamini-Hochberg adjusts together.
    """
    smallest = smallest_p(n)
    # The k-th smallest of them is multiplied by family / k.
    together = math.floor(smallest * family / ALPHA) + 1
    if together < 2:
        return None
    enough = next(more for more in range(n + 1, 64) if smallest_p(more) * family < ALPHA)
    needed = f"unless {together} are that clear together" if together <= family else "nor could all together"
    return (
        f"With n = {n} no p can be below {smallest:.2g}: one true effect alone among the {family} unplanned "
        f"comparison(s) cannot pass Benjamini-Hochberg, {needed}; plan the contrasts that matter, or take "
        f"n = {enough}"
    )
