"""From paired evidence to claims: adjusted for their number, judged, and said in one sentence."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mmdistill import few_pairs
from mmdistill.reports.evidence import Paired, Scheme
from mmdistill.statistics import Interval, Verdict, false_discovery, holm, verdict


class Question(NamedTuple):
    """A pair of arms to compare.

    Attributes:
        arm: the first arm.
        against: the arm it is compared with.
        text: the planned question; None for an exploratory comparison.
        after_opening: number of the last opening of the test split before it was planned; 0 for none.
        remarks: what else to say with the answer.
    """

    arm: str
    against: str
    text: str | None = None
    after_opening: int = 0
    remarks: tuple[str, ...] = ()


class Claim(NamedTuple):
    """The difference ``arm`` minus ``against`` in the score (higher is better), and what it allows to say.

    Attributes:
        arm: the first arm.
        against: the arm it is compared with.
        question: the planned question; None for an exploratory comparison.
        seeds: difference with its 95 % interval over replicates.
        crossed: difference with its 95 % interval over seeds x test units.
        p: unadjusted, two-sided.
        adjusted_p: Holm within the planned family, Benjamini-Hochberg within the exploratory one.
        verdict: None before the test split was opened, and where the arms share no pair.
        missing: pairs that only one of the two arms finished.
        scheme: what counts as one replicate.
        after_opening: number of the last opening of the test split before it was planned; 0 for none.
        remarks: what else to say with the answer.
    """

    arm: str
    against: str
    question: str | None
    seeds: Interval
    crossed: Interval
    p: float
    adjusted_p: float
    verdict: Verdict | None
    missing: tuple[str, ...]
    scheme: Scheme
    after_opening: int
    remarks: tuple[str, ...]


Compare = Callable[[str, str], Paired]


def planned_claims(
    questions: Sequence[Question], compare: Compare, *, margin: float, judged: bool
) -> list[Claim]:
    """Return one claim per planned contrast, Holm-adjusted within them."""
    return _claims(questions, _evidence(questions, compare), holm, margin=margin, judged=judged)


def exploratory_claims(
    questions: Sequence[Question], compare: Compare, *, margin: float, judged: bool
) -> list[Claim]:
    """Return one claim per comparison that nobody planned, Benjamini-Hochberg-adjusted within them."""
    return exploratory_claims_of(questions, _evidence(questions, compare), margin=margin, judged=judged)


def exploratory_claims_of(
    questions: Sequence[Question], evidence: Sequence[Paired], *, margin: float, judged: bool
) -> list[Claim]:
    """Return one claim per piece of evidence that nobody planned, Benjamini-Hochberg-adjusted within them."""
    return _claims(questions, evidence, false_discovery, margin=margin, judged=judged)


def _evidence(questions: Sequence[Question], compare: Compare) -> list[Paired]:
    return [compare(question.arm, question.against) for question in questions]


def _claims(
    questions: Sequence[Question],
    evidence: Sequence[Paired],
    adjust: Callable[[Sequence[float]], list[float]],
    *,
    margin: float,
    judged: bool,
) -> list[Claim]:
    adjusted = adjust([found.p for found in evidence])
    return [
        Claim(
            arm=question.arm,
            against=question.against,
            question=question.text,
            seeds=found.seeds,
            crossed=found.crossed,
            p=found.p,
            adjusted_p=p,
            verdict=_judged(found, margin, p) if judged and found.seeds.n else None,
            missing=found.missing,
            scheme=found.scheme,
            after_opening=question.after_opening,
            remarks=question.remarks,
        )
        for question, found, p in zip(questions, evidence, adjusted, strict=True)
    ]


def _judged(found: Paired, margin: float, p: float) -> Verdict:
    wide, narrow = (found.seeds, found.crossed), (found.seeds_90, found.crossed_90)
    return verdict(wide, narrow, margin=margin, p=p)


_OPPOSITE: dict[Verdict | None, Verdict] = {"helps": "harms", "harms": "helps"}


def turned_round(claim: Claim) -> Claim:
    """Return the same claim on ``against`` minus ``arm``."""
    return claim._replace(
        arm=claim.against,
        against=claim.arm,
        seeds=_negative(claim.seeds),
        crossed=_negative(claim.crossed),
        verdict=_OPPOSITE.get(claim.verdict, claim.verdict),
    )


def _negative(interval: Interval) -> Interval:
    return Interval(-interval.mean, -interval.high, -interval.low, interval.n)


def sentence(claim: Claim, *, margin: float) -> str:
    """Return the claim as a question and its answer with the numbers."""
    question = claim.question or f"{claim.arm} against {claim.against}?"
    remarks = [f"planned after opening {claim.after_opening}"] if claim.after_opening else []
    remarks += claim.remarks
    if claim.seeds.n:
        # A harm is told as the size of the loss.
        sign = -1 if claim.verdict == "harms" else 1
        answer = f"{_answer(claim, margin)} ({numbers(claim, sign)})"
    else:
        answer = f"Not known yet: {claim.arm} and {claim.against} share no finished pair"
    return " ".join([question, "; ".join([answer, *remarks]) + "."])


def _answer(claim: Claim, margin: float) -> str:
    difference = claim.seeds.mean
    ours, theirs, size = claim.arm, claim.against, f"{abs(difference):.3f}"
    answers = {
        "helps": f"Yes: {ours} beats {theirs} by {size}",
        "harms": f"No, it harms: {ours} falls behind {theirs} by {size}",
        "equivalent": f"No: {ours} equals {theirs} within {margin:g}, difference {difference:+z.3f}",
        "cannot tell": f"Cannot tell: {ours} minus {theirs} is {difference:+z.3f}",
        None: f"Not tested yet: on validation {ours} minus {theirs} is {difference:+z.3f}",
    }
    return answers[claim.verdict]


def numbers(claim: Claim, sign: int = 1) -> str:
    """Return the intervals of a claim, n and p in words; ``sign`` -1 turns the intervals round."""
    scheme = claim.scheme
    parts = [
        _range(scheme.replicate, claim.seeds, sign),
        _range(f"seeds x {scheme.unit}", claim.crossed, sign),
        f"n = {claim.seeds.n}",
    ]
    if claim.verdict is not None and not math.isnan(claim.p):
        kind = "Holm p" if claim.question else "adjusted p"
        parts.append(f"{kind} = {claim.adjusted_p:.2g}")
    return ", ".join(parts)


def _range(name: str, interval: Interval, sign: int) -> str:
    """Return an interval in words, turned round where ``sign`` is -1."""
    if math.isnan(interval.low):
        return f"{name}: no interval"
    low, high = sorted((sign * interval.low, sign * interval.high))
    return f"{name} {low:z.3f} to {high:z.3f}"


def too_few(claims: Sequence[Claim]) -> str | None:
    """Return a warning if the exact test of few replicates cannot reach .05 with the smallest n planned."""
    exact = [claim.seeds.n for claim in claims if claim.seeds.n and claim.scheme.replicate != "folds"]
    return few_pairs.too_few(min(exact), len(claims)) if exact else None


def too_few_alone(claims: Sequence[Claim]) -> str | None:
    """Return a warning if one unplanned claim alone cannot pass its adjustment, with the smallest n."""
    unplanned = {frozenset({claim.arm, claim.against}): claim for claim in claims if claim.question is None}
    exact = [c.seeds.n for c in unplanned.values() if c.seeds.n and c.scheme.replicate != "folds"]
    return few_pairs.too_few_alone(min(exact), len(unplanned)) if exact else None
