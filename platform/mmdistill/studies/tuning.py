"""The search of one arm in one fold: generations, then the best again on validation seeds, then a winner."""

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from mmdistill.randomness import derive_seed
from mmdistill.records.finals import Final
from mmdistill.settings import digest
from mmdistill.studies.orders import Cell, Draft, OrderBook
from mmdistill.studies.proposing import (
    Past,
    ProposalRequest,
    Proposer,
    criterion,
    past_of,
    sampler_of,
)
from mmdistill.studies.search import generations_of


class Decision(NamedTuple):
    """Proposals to be committed before anything of them starts."""

    name: str
    value: dict[str, Any]


class Tuning:
    """One search; it moves on when all orders of what it waits for have a result.

    Attributes:
        cell: the arm and the fold.
        past: the trials of the generations that ended, in order of their numbers.
        winner: its entry in the selection, once it is tuned.
    """

    def __init__(
        self, cell: Cell, book: OrderBook, propose: Proposer, columns: tuple[tuple[str, ...], ...]
    ) -> None:
        self.cell, self._book, self._propose, self._columns = cell, book, propose, columns
        self._study = book.study
        self._generations = generations_of(self._study.file.search)
        self.past: list[Past] = []
        self.winner: dict[str, Any] | None = None
        self._done = 0
        self._drafts: list[Draft] | None = None

    @property
    def decision_name(self) -> str:
        """Return the name of the decision of the generation under way."""
        return f"{self.cell.label}~generation{self._done}"

    def advance(
        self, decisions: Mapping[str, Mapping[str, Any]], finals: Mapping[str, Final]
    ) -> tuple[list[Draft], Decision | None]:
        """Move on as far as the records go.

        Returns:
            The orders that are asked for from now on, and the decision that has to be on record before more.
        """
        asked: list[Draft] = []
        while self.winner is None:
            if self._drafts is None:
                drafts = self._next(decisions)
                if isinstance(drafts, Decision):
                    return asked, drafts
                self._drafts = drafts
                asked += drafts
            if _is_open(self._drafts, finals):
                break
            self._take(finals, decisions)
        return asked, None

    def _next(self, decisions: Mapping[str, Mapping[str, Any]]) -> list[Draft] | Decision:
        if self._done == len(self._generations):
            return self._validation()
        name = self.decision_name
        return self._generation(decisions[name]) if name in decisions else self._proposals(name)

    def _take(self, finals: Mapping[str, Final], decisions: Mapping[str, Mapping[str, Any]]) -> None:
        drafts, self._drafts = self._drafts or [], None
        if self._done == len(self._generations):
            self.winner = self._selected(drafts, finals)
            return
        # Not the rows' own copies: a study remembers every proposal once.
        proposed = {trial["number"]: trial["parameters"] for trial in decisions[self.decision_name]["trials"]}
        for draft in drafts:
            rows = finals[draft.order_id].trials
            self.past += [past_of(row, proposed[row.number], self._study.task) for row in rows]
        self._done += 1

    def _proposals(self, name: str) -> Decision:
        search, cell, seed = self._study.file.search, self.cell, self._study.file.seed
        numbers = self._generations[self._done]
        request = ProposalRequest(
            space=cell.arm.space,
            columns=self._columns,
            past=tuple(self.past),
            first=numbers.start,
            count=len(numbers),
            startup=len(self._generations[0]),
            seed=derive_seed(seed, "proposals", cell.arm.name, cell.fold, self._done),
            shared_seed=derive_seed(seed, "shared points", cell.fold),
            sampler=sampler_of(search, self._done),
        )
        proposals = self._propose(request)
        trials = [{"number": n, "parameters": p} for n, p in zip(numbers, proposals, strict=True)]
        value = {"arm": cell.arm.name, "fold": cell.fold, "generation": self._done, "trials": trials}
        return Decision(name, value)

    def _generation(self, decision: Mapping[str, Any]) -> list[Draft]:
        pairs = self._book.pairs("search", self.cell, range(1))
        trials = decision["trials"]
        slots = [self._book.slot(self.cell, pairs[0], t["parameters"], t["number"]) for t in trials]
        title = f"{self.cell.arm.name}: search, generation {self._done}"
        return self._book.drafts(title, (self.cell.fold, self._done), slots, pairs)

    def _validation(self) -> list[Draft]:
        pairs = self._book.pairs("validate", self.cell, range(self._study.file.search.seeds))
        slots = [
            self._book.slot(self.cell, pair, trial.parameters, trial.number)
            for trial in self._finalists()
            for pair in pairs
        ]
        title = f"{self.cell.arm.name}: best trials on validation seeds"
        return self._book.drafts(title, (self.cell.fold, 0), slots, pairs)

    def _finalists(self) -> list[Past]:
        """Return the best trials; of equal ones, which a grid or a small space has, the first."""
        complete = [(trial.value, trial.number, trial) for trial in self.past if trial.value is not None]
        found: dict[str, Past] = {}
        for _, _, trial in sorted(complete, key=lambda entry: entry[:2]):
            found.setdefault(digest(trial.parameters), trial)
        return list(found.values())[: self._study.file.search.top]

    def _selected(self, drafts: Sequence[Draft], finals: Mapping[str, Final]) -> dict[str, Any]:
        """Return the winner: the lowest mean criterion over the validation seeds."""
        values: dict[int, list[float | None]] = {}
        for draft in drafts:
            for row in finals[draft.order_id].trials:
                values.setdefault(row.number or 0, []).append(criterion(row, self._study.task))
        known = {n: [v for v in found if v is not None] for n, found in values.items()}
        # A finalist that failed on any seed cannot win.
        means = {n: sum(v) / len(v) for n, v in known.items() if len(v) == len(values[n])}
        winner = {"arm": self.cell.arm.name, "fold": self.cell.fold}
        if not means:
            return winner | {"number": None, "parameters": {}}
        number = min(means, key=lambda n: (means[n], n))
        parameters = next(dict(trial.parameters) for trial in self.past if trial.number == number)
        candidates = {str(n): mean for n, mean in means.items()}
        return winner | {
            "number": number,
            "parameters": parameters,
            "criterion": means[number],
            "candidates": candidates,
        }


def frozen_winner(cell: Cell, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the entry of a frozen arm: what it takes over of another arm's winner in the same fold."""
    entry = {"arm": cell.arm.name, "fold": cell.fold, "frozen": cell.arm.frozen}
    if source is None or source["number"] is None:
        return entry | {"number": None, "parameters": {}}
    taken = {path: source["parameters"][path] for path in cell.arm.inherits}
    return entry | {"number": source["number"], "parameters": taken}


def _is_open(drafts: Sequence[Draft], finals: Container[str]) -> bool:
    return any(draft.order_id not in finals for draft in drafts)
