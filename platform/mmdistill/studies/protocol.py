"""The protocol of a study as a state machine: from what is on record to what comes next.

search (generations) -> top trials again on validation seeds -> frozen selection -> confirm on fresh pairs ->
test orders. It never looks at a clock, a worker or the cache, so the table of a study depends neither on how
many workers there were nor on how often it was killed.

A study that is extended by arms or pairs makes its next selection: the winners of before stay, new arms get
theirs, and every arm is confirmed and tested on the pairs it lacks.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmdistill.pipeline.order import Order
from mmdistill.records.finals import Final
from mmdistill.studies.agenda import Agenda
from mmdistill.studies.orders import Cell, Draft, OrderBook
from mmdistill.studies.proposing import Past, ProposalRequest, Proposer, columns_of
from mmdistill.studies.study import Study
from mmdistill.studies.tuning import Decision, Tuning, frozen_winner


@dataclass(frozen=True)
class State:
    """What is on record; it only ever grows.

    Attributes:
        decisions: by name.
        finals: results by order; only those of searches are looked into.
        selections: frozen selections, oldest first.
    """

    decisions: Mapping[str, Mapping[str, Any]]
    finals: Mapping[str, Final]
    selections: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Step:
    """What comes next; decisions and the selection are committed first, then the protocol is asked again.

    Attributes:
        agenda: the orders that are open.
    """

    decisions: tuple[Decision, ...] = ()
    selection: dict[str, Any] | None = None
    agenda: Agenda | None = None
    is_finished: bool = False

    @property
    def orders(self) -> tuple[Order, ...]:
        """Return every order that can start now, most urgent first."""
        return () if self.agenda is None else tuple(self.agenda.ready())


class StudyProtocol:
    """The rules of one study.

    It remembers how far it read the records, so that a step costs what has changed; a new one that reads the
    same records gives the same step.
    """

    def __init__(self, study: Study, propose: Proposer, revisions: Mapping[str, int] | None = None) -> None:
        """Begin with nothing read.

        Args:
            study: the study.
            propose: makes proposals.
            revisions: with which revision of the study each arm came; 1 unless it says so.
        """
        self.study, self._propose, self._revisions = study, propose, dict(revisions or {})
        # Whatever stands first in the file later, pairs keep their names.
        oldest = min(study.arms, key=lambda arm: self._revisions.get(arm.name, 1))
        self.book = OrderBook(study, oldest)
        self.agenda = Agenda(self.book)
        self._tunings: dict[tuple[str, int], Tuning] | None = None
        self._due: dict[tuple[str, int], None] = {}
        self._waiting: dict[str, tuple[str, int]] = {}
        # By number of the selection, the confirmations that are open.
        self._confirming: dict[int, set[str]] = {}
        self._read = 0

    def next_step(self, state: State, ended: Collection[str] | None = None) -> Step:
        """Return what comes next.

        Args:
            state: what is on record; what was on record at the last call is still there.
            ended: orders that may have got a result since then; by default all open ones.
        """
        self._begin(state)
        for order_id in self.agenda.ids() if ended is None else ended:
            if order_id in state.finals:
                self._end(order_id, state)
        decisions = self._advance(state)
        if decisions:
            return Step(decisions=tuple(decisions))
        for number in range(self._read + 1, len(state.selections) + 1):
            self._confirm(number, state)
        if self._is_selection_due(state):
            return Step(selection=self._selection(state))
        return Step(agenda=self.agenda, is_finished=self.agenda.is_empty)

    # Search.

    def _begin(self, state: State) -> None:
        """Take up the searches that no selection has settled."""
        if self._tunings is not None:
            return
        settled = _winners(state.selections[-1]) if state.selections else {}
        self._tunings = {}
        for cell in self._chosen():
            if cell.arm.frozen or (cell.arm.name, cell.fold) in settled:
                continue
            revision = self._revisions.get(cell.arm.name, 1)
            columns = columns_of(self.study.arms, self._revisions, revision)
            tuning = Tuning(cell, self.book, self._propose, columns)
            self._tunings[cell.arm.name, cell.fold] = tuning
        self._due = dict.fromkeys(self._tunings)

    def _end(self, order_id: str, state: State) -> None:
        self.agenda.end(order_id)
        cell = self._waiting.pop(order_id, None)
        if cell is not None:
            self._due[cell] = None
        for number, confirming in list(self._confirming.items()):
            confirming.discard(order_id)
            if not confirming:
                self._test(number, state)

    def _advance(self, state: State) -> list[Decision]:
        """Let the searches move on whose orders ended; return the proposals to commit before more can."""
        assert self._tunings is not None
        decisions = []
        for cell in list(self._due):
            asked, decision = self._tunings[cell].advance(state.decisions, state.finals)
            self._waiting |= dict.fromkeys(self.agenda.add(asked, state.finals), cell)
            if decision is None:
                del self._due[cell]
            else:
                decisions.append(decision)
        return decisions

    # Selection, confirmation and test.

    def _is_selection_due(self, state: State) -> bool:
        """Return whether every search has ended, and arms or pairs are not in the last selection."""
        if any(tuning.winner is None for tuning in (self._tunings or {}).values()):
            return False
        if not state.selections:
            return True
        last, winners = state.selections[-1], _winners(state.selections[-1])
        has_new_arms = any((cell.arm.name, cell.fold) not in winners for cell in self._chosen())
        return has_new_arms or self.study.file.confirm.pairs > last["pairs"]

    def _chosen(self) -> Iterator[Cell]:
        """Return every cell that has a winner of its own, frozen arms included."""
        cells = [Cell(arm, fold) for arm in self.study.arms for fold in arm.run.data.folds.search_folds]
        return iter(sorted(cells, key=lambda cell: cell.fold))

    def _selection(self, state: State) -> dict[str, Any]:
        """Return the winner of every cell; those of earlier selections stay as they are."""
        assert self._tunings is not None
        winners: dict[tuple[str, int], Mapping[str, Any]] = {}
        if state.selections:
            winners |= _winners(state.selections[-1])
        new = {key: tuning.winner for key, tuning in self._tunings.items() if tuning.winner is not None}
        for cell in self._chosen():
            key = (cell.arm.name, cell.fold)
            if key in new:
                winners.setdefault(key, new[key])
            elif key not in winners:
                source = (cell.arm.frozen or "", cell.fold)
                winners[key] = frozen_winner(cell, new.get(source) or winners.get(source))
        return {"winners": list(winners.values()), "pairs": self.study.file.confirm.pairs}

    def _confirm(self, number: int, state: State) -> None:
        """Open the confirmations that a selection made."""
        self._read = number
        settled = _winners(state.selections[number - 1])
        for key in [key for key in self._tunings or {} if key in settled]:
            # Nothing is proposed to these any more.
            del (self._tunings or {})[key]
        self.agenda.settle({arm for arm, _ in settled} - _earlier(state, number))
        confirmations = self._of_selection(number, "confirm", state)
        self._confirming[number] = set(self.agenda.add(confirmations, state.finals))
        if not self._confirming[number]:
            self._test(number, state)

    def _test(self, number: int, state: State) -> None:
        """Open the test orders of a selection whose confirmations have ended."""
        del self._confirming[number]
        self.agenda.add(self._of_selection(number, "test", state), state.finals)

    def _of_selection(self, number: int, phase: str, state: State) -> Iterator[Draft]:
        """Return the orders of a phase that a selection made; an arm of which every finalist failed has none.

        They are cut at the pairs of every selection, so that the orders of earlier ones stay what they were.
        """
        winners, blocks = _winners(state.selections[number - 1]), _blocks(state.selections[:number])
        earlier = _earlier(state, number)
        for arm in self.study.arms:
            mine = blocks[-1:] if arm.name in earlier else blocks
            for fold in range(arm.run.data.fold_count):
                winner = winners.get((arm.name, arm.run.data.folds.tuned_in(fold)))
                if winner is not None and winner["number"] is not None:
                    for block in mine:
                        yield from self._repetitions(Cell(arm, fold), winner, block, phase, number)

    def _repetitions(
        self, cell: Cell, winner: Mapping[str, Any], block: range, phase: str, number: int
    ) -> list[Draft]:
        pairs = self.book.pairs("confirm", cell, block)
        slots = [self.book.slot(cell, pair, winner["parameters"], winner["number"], phase) for pair in pairs]
        title = f"{cell.arm.name}: {phase}"
        return self.book.drafts(title, (cell.fold, block.start), slots, pairs, number)


def _winners(selection: Mapping[str, Any]) -> dict[tuple[str, int], Mapping[str, Any]]:
    return {(winner["arm"], winner["fold"]): winner for winner in selection["winners"]}


def _earlier(state: State, number: int) -> set[str]:
    """Return the arms that a selection before some number chose for."""
    return {winner["arm"] for selection in state.selections[: number - 1] for winner in selection["winners"]}


def _blocks(selections: Sequence[Mapping[str, Any]]) -> list[range]:
    """Return the pairs that each selection added."""
    ends = [selection["pairs"] for selection in selections]
    return [range(start, end) for start, end in itertools.pairwise([0, *ends])]


__all__ = [
    "Decision",
    "Past",
    "ProposalRequest",
    "Proposer",
    "State",
    "Step",
    "StudyProtocol",
]
