"""What a search is asked for: proposals in generations, equally many for every arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mmdistill.records.criterion import CRITERIA
from mmdistill.records.rows import TrialRow
from mmdistill.settings import Dimension
from mmdistill.studies.file import SearchSettings
from mmdistill.studies.study import Arm
from mmdistill.terms.base import Task

# Samplers that learn from results; before them the first generation is a start shared by all arms.
ADAPTIVE = frozenset({"tpe", "cmaes"})
_SEQUENCES = {"qmc": "sobol"}


class Past(NamedTuple):
    """One earlier trial of an arm.

    Attributes:
        number: of the proposal.
        parameters: what was proposed, by dotted path.
        value: what trials are ranked by, lower is better; None if it failed, diverged or was stopped.
        stopped: for a trial that lost a race, the epochs it trained and its best value until then.
    """

    number: int
    parameters: Mapping[str, Any]
    value: float | None
    stopped: tuple[int, float] | None = None


@dataclass(frozen=True)
class ProposalRequest:
    """What a proposer may know.

    Attributes:
        space: what this arm searches.
        columns: every searched path of the study, so that arms share their points; one group per revision
            that brought new paths, so that a later revision changes no point of an earlier one.
        past: trials of earlier generations, in order of their numbers.
        first: number of the first trial asked for.
        count: how many trials are asked for.
        startup: trials of the start, which no sampler that learns has proposed.
        seed: of this generation of this arm.
        shared_seed: of the points that all arms share.
        sampler: ``sobol``, ``halton``, ``random``, ``grid``, ``tpe`` or ``cmaes``.
    """

    space: Mapping[str, Dimension]
    columns: tuple[tuple[str, ...], ...]
    past: Sequence[Past]
    first: int
    count: int
    startup: int
    seed: int
    shared_seed: int
    sampler: str


class Proposer(Protocol):
    """Makes proposals; the same request always gives the same proposals."""

    def __call__(self, request: ProposalRequest) -> list[dict[str, Any]]:
        """Return ``request.count`` sets of parameters by dotted path."""


def sampler_of(search: SearchSettings, generation: int) -> str:
    """Return what proposes a generation: shared points before a sampler that learns."""
    if search.sampler in ADAPTIVE:
        return search.sampler if generation else "sobol"
    return _SEQUENCES.get(search.sampler, search.sampler)


def columns_of(arms: Sequence[Arm], revisions: Mapping[str, int], latest: int) -> tuple[tuple[str, ...], ...]:
    """Return the searched paths of all arms up to a revision, in groups by the one that brought them."""
    first: dict[str, int] = {}
    for arm in sorted(arms, key=lambda arm: revisions.get(arm.name, 1)):
        for path in arm.space:
            first.setdefault(path, revisions.get(arm.name, 1))
    found = sorted({revision for revision in first.values() if revision <= latest})
    return tuple(tuple(sorted(path for path in first if first[path] == revision)) for revision in found)


def criterion(row: TrialRow, task: Task) -> float | None:
    """Return what trials are ranked by, lower is better, of the epoch whose weights were kept.

    None where there is no finite value: a run that failed or diverged.
    """
    return CRITERIA[task].in_metrics(row.metrics) if row.status in {"complete", "pruned"} else None


def past_of(row: TrialRow, parameters: Mapping[str, Any], task: Task) -> Past:
    """Return what a sampler learns from a row."""
    value = criterion(row, task)
    if row.status != "pruned" or value is None:
        return Past(row.number or 0, parameters, value if row.status == "complete" else None)
    return Past(row.number or 0, parameters, None, (row.stopped_epoch or 0, value))
