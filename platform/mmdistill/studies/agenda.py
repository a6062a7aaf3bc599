"""What can start now: open orders, the shared stages they wait for, and whose turn it is."""

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator

from mmdistill.pipeline.order import Order
from mmdistill.records.rows import PHASES
from mmdistill.studies.orders import Draft, OrderBook

_RANKS = {phase: rank for rank, phase in enumerate(PHASES)}
_Key = tuple[int, tuple[int, ...], str]


class Agenda:
    """The open orders of a study.

    An order waits while a stage it reads has no result, so two orders that need the same stage never compute
    it twice. Of what can start, stages go first, those that most orders wait for before the others; then the
    arms take turns: the one with the fewest runs done or in flight is next.
    """

    def __init__(self, book: OrderBook) -> None:
        self._book = book
        self._places = {arm.name: place for place, arm in enumerate(book.study.arms)}
        self._drafts: dict[str, Draft] = {}
        self._stages: dict[str, Order] = {}
        self._missing: dict[str, set[str]] = {}
        self._waiting: dict[str, set[str]] = {}
        # What waits for nothing: stages, and the orders of each arm in the order of their ranks.
        self._free_stages: dict[str, None] = {}
        self._free: dict[str, list[_Key]] = {}
        self._done: Counter[str] = Counter()
        # Putting an order together is what costs.
        self._built: dict[str, Order] = {}

    @property
    def is_empty(self) -> bool:
        """Return whether no order is open."""
        return not self._drafts

    def draft(self, order_id: str) -> Draft:
        """Return an open order with runs."""
        return self._drafts[order_id]

    def ids(self) -> list[str]:
        """Return the open orders, stages included."""
        return [*self._drafts, *self._stages]

    def add(self, drafts: Iterable[Draft], finals: Container[str]) -> list[str]:
        """Open the orders that have no result yet, and the stages they read; return which these are."""
        opened = []
        for draft in drafts:
            if draft.order_id in finals:
                self._done[draft.arm] += len(draft.slots)
                continue
            opened.append(draft.order_id)
            self._drafts[draft.order_id] = draft
            needs = set()
            for shared in self._book.shared_stages(draft):
                if shared.outputs.order_id not in finals:
                    needs.add(shared.outputs.order_id)
                    teachers = [order for order in shared.teachers if order.order_id not in finals]
                    self._add_stage(shared.outputs, {order.order_id for order in teachers})
                    for order in teachers:
                        self._add_stage(order, set())
            self._wait(draft.order_id, needs)
        return opened

    def end(self, order_id: str) -> None:
        """Take an order away that has a result now, and free what waited for it."""
        draft = self._drafts.pop(order_id, None)
        self._built.pop(order_id, None)
        if draft is not None:
            self._done[draft.arm] += len(draft.slots)
            self._bind(draft)
        elif self._stages.pop(order_id, None) is not None:
            self._free_stages.pop(order_id, None)
        else:
            return
        self._missing.pop(order_id, None)
        for waiting in self._waiting.pop(order_id, ()):
            self._missing[waiting].discard(order_id)
            if not self._missing[waiting]:
                self._release(waiting)

    def settle(self, arms: Collection[str]) -> None:
        """Let arms whose search is over start level with all others."""
        for arm in arms:
            del self._done[arm]

    def ready(self, in_flight: Collection[str] = ()) -> Iterator[Order]:
        """Return the orders that can start now and are not in flight, most urgent first."""
        for order_id in sorted(self._free_stages, key=lambda name: (-self._dependants(name), name)):
            if order_id not in in_flight:
                yield self._stages[order_id]
        turns = Counter(self._done)
        for name in in_flight:
            draft = self._drafts.get(name)
            if draft is not None:
                turns[draft.arm] += len(draft.slots)
        yield from self._by_turns(turns, in_flight)

    def _by_turns(self, turns: Counter[str], in_flight: Collection[str]) -> Iterator[Order]:
        queues = {arm: (key for key in keys if key[2] not in in_flight) for arm, keys in self._free.items()}
        # Of arms that are level, the one that the study names first.
        heap = [(turns[arm], self._places[arm], arm) for arm in queues]
        heapq.heapify(heap)
        while heap:
            done, place, arm = heapq.heappop(heap)
            key = next(queues[arm], None)
            if key is not None:
                draft = self._drafts[key[2]]
                yield self._order(draft)
                heapq.heappush(heap, (done + len(draft.slots), place, arm))

    def _order(self, draft: Draft) -> Order:
        if draft.order_id not in self._built:
            self._built[draft.order_id] = self._book.order(draft)
        return self._built[draft.order_id]

    def _dependants(self, order_id: str) -> int:
        """Return how many orders wait for a stage, or for the stages that wait for it."""
        waiting = self._waiting.get(order_id, ())
        return sum(1 if name in self._drafts else self._dependants(name) for name in waiting)

    def _add_stage(self, order: Order, needs: set[str]) -> None:
        if order.order_id not in self._stages:
            self._stages[order.order_id] = order
            self._wait(order.order_id, needs)

    def _wait(self, order_id: str, needs: set[str]) -> None:
        self._missing[order_id] = needs
        for stage in needs:
            self._waiting.setdefault(stage, set()).add(order_id)
        if not needs:
            self._release(order_id)

    def _release(self, order_id: str) -> None:
        if order_id in self._stages:
            self._free_stages[order_id] = None
        else:
            draft = self._drafts[order_id]
            insort(self._free.setdefault(draft.arm, []), _key(draft))

    def _bind(self, draft: Draft) -> None:
        """Take an order out of the queue of its arm; one given up while it waited is in none."""
        keys, key = self._free.get(draft.arm, []), _key(draft)
        place = bisect_left(keys, key)
        if keys[place : place + 1] == [key]:
            del keys[place]


def _key(draft: Draft) -> _Key:
    return (_RANKS[draft.kind], draft.rank, draft.order_id)
