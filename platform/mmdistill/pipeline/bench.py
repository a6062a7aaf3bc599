"""Stages ready to use: taken from the cache, or computed together where they are missing."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mmdistill.pipeline.cache import Entry, StageCache
from mmdistill.pipeline.checkpoints import Checkpoints
from mmdistill.pipeline.costs import sizes_of, stage_key
from mmdistill.pipeline.fold import Fold
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.pipeline.stages import Pipeline, Stage, raced
from mmdistill.pipeline.studying import train_students
from mmdistill.pipeline.teaching import align_teachers, teacher_outputs, train_teachers
from mmdistill.records.rows import StageRow
from mmdistill.training.race import RaceSettings
from mmdistill.training.runtime import Runtime


@dataclass(frozen=True)
class Piece:
    """A run, and for whom it is computed."""

    run: RunSettings
    pair_id: str
    arm: str | None = None


# Computes the stages of the pieces at some positions, all at once, with snapshots while it trains.
Compute = Callable[[list[int], Checkpoints], list[Entry]]


class Bench:
    """Where the stages of one order are computed; keeps a row of every stage it was asked for.

    What a missing stage needs in its turn leaves no row: whether it is needed is the luck of the cache, and
    the rows of an order must not depend on that.
    The pieces of one call agree in everything but the seed and, for students, the fields with a range.
    """

    def __init__(self, order_id: str, cache: StageCache, fold: Fold, runtime: Runtime) -> None:
        self.order_id, self.cache, self.fold, self.runtime = order_id, cache, fold, runtime
        self.rows: list[StageRow] = []
        self._depth = 0

    def pipeline(self, piece: Piece) -> Pipeline:
        """Return the stages of a piece on this fold."""
        return Pipeline(piece.run, self.fold.arrays.fingerprint)

    def teacher(self, name: str, pieces: Sequence[Piece]) -> list[Entry]:
        """Return the trained network called ``name`` of every piece."""

        def compute(at: list[int], keeper: Checkpoints) -> list[Entry]:
            return train_teachers(_runs(pieces, at), name, self.fold, self.runtime, keeper)

        return self._ready([self.pipeline(piece).teacher(name) for piece in pieces], pieces, compute)

    def outputs(self, pieces: Sequence[Piece]) -> list[Entry] | None:
        """Return the teacher outputs of every piece; None where no network is trained before.

        The fact ``total_cpu_s`` is the price of the outputs and of everything below them.
        """
        stages = [stage for piece in pieces if (stage := self.pipeline(piece).outputs) is not None]
        if not stages:
            return None

        def compute(at: list[int], _: Checkpoints) -> list[Entry]:
            chosen = [pieces[n] for n in at]
            teachers, aligned = self._teachers(chosen), self.alignment(chosen)
            clock = time.process_time()
            entries = teacher_outputs(_runs(pieces, at), teachers, aligned, self.fold)
            own = (time.process_time() - clock) / len(entries)
            below = teachers | ({"alignment": aligned} if aligned else {})
            for n, entry in enumerate(entries):
                mine = {name: found[n] for name, found in below.items()}
                price = own + sum(stage.facts["cpu_s"] for stage in mine.values())
                entry.facts.update(cpu_s=own, total_cpu_s=price, notes=_notes(mine))
            return entries

        return self._ready(stages, pieces, compute)

    def students(
        self, pieces: Sequence[Piece], outputs: Sequence[Entry] | None, race: RaceSettings | None = None
    ) -> list[Entry]:
        """Return the trained student of every piece; with ``race`` they race each other."""

        def compute(at: list[int], keeper: Checkpoints) -> list[Entry]:
            some = None if outputs is None else [outputs[n] for n in at]
            first = self._first_networks([pieces[n] for n in at])
            return train_students(_runs(pieces, at), some, self.fold, self.runtime, race, keeper, first)

        stages = [self.pipeline(piece).student for piece in pieces]
        return self._ready(stages if race is None else raced(stages, race), pieces, compute)

    def alignment(self, pieces: Sequence[Piece]) -> list[Entry] | None:
        """Return the aligned teachers of every piece; None where the run does not align them."""
        stages = [stage for piece in pieces if (stage := self.pipeline(piece).alignment) is not None]
        if not stages:
            return None

        def compute(at: list[int], keeper: Checkpoints) -> list[Entry]:
            teachers = self._teachers([pieces[n] for n in at])
            return align_teachers(_runs(pieces, at), teachers, self.fold, self.runtime, keeper)

        return self._ready(stages, pieces, compute)

    def _teachers(self, pieces: Sequence[Piece]) -> dict[str, list[Entry]]:
        return {name: self.teacher(name, pieces) for name in pieces[0].run.frozen_networks()}

    def _first_networks(self, pieces: Sequence[Piece]) -> list[Entry] | None:
        """Return the network each student takes its encoders from; None where they begin anew."""
        found = [replace(p, run=first) for p in pieces if (first := p.run.first_network()) is not None]
        return self.teacher("student", found) if found else None

    def _ready(self, stages: Sequence[Stage], pieces: Sequence[Piece], compute: Compute) -> list[Entry]:
        """Return an entry per stage.

        Where one is missing all are computed: the last bits of a lane may depend on its cohort, and an order
        that was killed between two entries must not end with others than one that was not.
        """
        positions: dict[str, int] = {}
        for number, stage in enumerate(stages):
            positions.setdefault(stage.key, number)
        self.runtime.beat()
        reads = {key: self.cache.read(stages[number]) for key, number in positions.items()}
        self.runtime.beat()
        # One worker decides for all: they compute together or not at all.
        missing = self.runtime.first([key for key, (entry, _) in reads.items() if entry is None])
        found = {key: entry for key, (entry, _) in reads.items() if entry is not None}
        if missing:
            keeper = self.cache.checkpoints(list(positions), self.runtime)
            self._depth += 1
            computed = compute(list(positions.values()), keeper)
            self._depth -= 1
            self.runtime.beat()
            for (key, number), entry in zip(positions.items(), computed, strict=True):
                found[key] = entry.on_cpu()
                if self.runtime.rank == 0 and key in missing:
                    self.cache.write(stages[number], found[key])
            if self.runtime.rank == 0:
                keeper.clear()
        cost_key = self._cost_key(stages, pieces[0].run)
        for stage, piece in zip(stages, pieces, strict=True):
            reason = (
                "computed with its cohort" if missing and stage.key not in missing else reads[stage.key][1]
            )
            self._note(stage, piece, found[stage.key], reason, cost_key, hit=not missing)
        return [found[stage.key] for stage in stages]

    def _cost_key(self, stages: Sequence[Stage], run: RunSettings) -> str:
        """Return the key of shared stages; that of a student is in its trial's row."""
        if self._depth or stages[0].kind == "student":
            return ""
        together = len({stage.key for stage in stages})
        return stage_key(stages[0].kind, stages[0].name, run, sizes_of(self.fold, run), together)

    def _note(
        self, stage: Stage, piece: Piece, entry: Entry, reason: str, cost_key: str, *, hit: bool
    ) -> None:
        if self._depth or any(row.stage_key == stage.key and row.arm == piece.arm for row in self.rows):
            return
        row = StageRow(
            stage_key=stage.key,
            stage=stage.kind,
            name=stage.name,
            seed=piece.run.seed,
            fold=piece.run.fold,
            pair_id=piece.pair_id,
            order_id=self.order_id,
            arm=piece.arm,
            cache_hit=hit,
            reason=reason,
            cpu_s=entry.facts.get("cpu_s"),
            cost_key=cost_key,
            metrics=entry.facts.get("metrics", {}),
            upstream=[before.key for before in stage.upstream],
        )
        self.rows.append(row)


def _runs(pieces: Sequence[Piece], at: Sequence[int]) -> list[RunSettings]:
    """Return the runs as their keys see them, so that what a key leaves out cannot matter."""
    return [canonical(pieces[n].run) for n in at]


def _notes(teachers: Mapping[str, Entry]) -> list[str]:
    return [
        f"teacher {name}: {reason}" for name, entry in teachers.items() for reason in entry.facts["diverged"]
    ]
