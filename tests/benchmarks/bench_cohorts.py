"""Cohorts against one training after another in plain torch, in CPU time of one thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_cohorts.py [--quick] [--json FILE]

Both sides train the same networks (encoders, gated fusion, head) on the same loss (cross entropy, structural
transport by the same solver with the same bound on its iterations, InfoNCE) with batches gathered from the
same tensors. The plain side is ``nn.Linear`` and ``torch.optim.AdamW``, one lane at a time; ours is
:func:`mmdistill.training.loop.fit`. Rounds of all alternate; medians over rounds. The exit code is 1 if a
goal is missed.

Axes: K lanes, B batch, N rows, D width.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mmdistill.losses.structural import structural_transport
from mmdistill.models.network import Network, NetworkSettings
from mmdistill.terms import TERMS, Shapes
from mmdistill.training.batches import BatchOrder
from mmdistill.training.loop import Plan, fit
from mmdistill.training.objectives import TensorPart, at_rows
from mmdistill.training.runtime import LocalRuntime
from mmdistill.training.student import Rows, StudentObjective
from mmdistill.training.teachers import FrozenTeachers

N, CLASSES, ITERATIONS, ANCHORS, TEMPERATURE = 2048, 7, 20, 20, 0.1
COHORTS = (1, 4, 16, 64)
# Least lanes trained per CPU-second in units of plain training, by case and K.
GOALS = {("small", 16): 5.0, ("small", 64): 6.0, ("wide", 16): 1.3}
# Most CPU milliseconds per lane and step for drawing and gathering a batch.
DATA_PATH_GOAL_MS = 0.2


@dataclass(frozen=True)
class Case:
    """A student of three modalities, and how long it is trained in a round."""

    name: str
    widths: dict[str, int]
    width: int
    batch: int
    steps: int

    @cached_property
    def part(self) -> TensorPart:
        """Return random samples."""
        generator = torch.Generator().manual_seed(0)
        inputs = {name: torch.randn(N, i, generator=generator) for name, i in self.widths.items()}
        return TensorPart(inputs, torch.randint(CLASSES, (N,), generator=generator))

    @cached_property
    def teacher(self) -> Tensor:
        """Return a teacher's features of the samples."""
        return torch.randn(N, self.width, generator=torch.Generator().manual_seed(1)).relu()


CASES = (
    Case("small", {"a": 35, "b": 74, "c": 300}, width=64, batch=32, steps=60),
    Case("wide", {"a": 100, "b": 256, "c": 512}, width=256, batch=128, steps=16),
)


class PlainStudent(nn.Module):
    """The student as anybody would write it, with InfoNCE's two projections."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        width, streams = case.width, len(case.widths)
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(i, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            for i in case.widths.values()
        )
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(streams))
        self.gate = nn.Linear(width * streams, streams)
        self.head = nn.Linear(width, CLASSES)
        self.from_student, self.from_teacher = nn.Linear(width, 64), nn.Linear(width, 64)

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features and logits of a batch."""
        streams = [
            project(encode(x))
            for encode, project, x in zip(self.encoders, self.projections, inputs, strict=True)
        ]
        gates = torch.softmax(self.gate(torch.cat(streams, dim=-1)), dim=-1)
        features = (torch.stack(streams, dim=-2) * gates[..., None]).sum(dim=-2)
        return features, self.head(features)

    def contrast(self, features: Tensor, taught: Tensor) -> Tensor:
        """Return symmetric InfoNCE."""
        similar = (
            normalize(self.from_student(features), dim=1) @ normalize(self.from_teacher(taught), dim=1).T
        )
        own = torch.arange(len(features))
        return 0.5 * (cross_entropy(similar / TEMPERATURE, own) + cross_entropy(similar.T / TEMPERATURE, own))


def train_plainly(case: Case, steps: int, lane: int, *, fused: bool) -> None:
    """Train one lane."""
    torch.manual_seed(lane)
    model = PlainStudent(case)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate(lane), fused=fused or None)
    order, rows = torch.Generator().manual_seed(lane), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(rows) < case.batch:
            rows = torch.randperm(N, generator=order)
        rows_B, rows = rows[: case.batch], rows[case.batch :]
        features, logits = model([x[rows_B] for x in case.part.inputs.values()])
        taught = case.teacher[rows_B]
        transport, _ = structural_transport(
            features, taught, eps_rel=eps_rel(lane), k=ANCHORS, iterations=ITERATIONS
        )
        loss = cross_entropy(logits, case.part.labels[rows_B])
        loss = loss + 0.2 * transport + 0.3 * model.contrast(features, taught)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def rate(lane: int) -> float:
    """Return the learning rate of a lane."""
    return 1e-3 * (1 + lane % 4)


def eps_rel(lane: int) -> float:
    """Return the regularisation of a lane's transport."""
    return 0.1 + 0.01 * lane


def cohort(case: Case, steps: int, lanes: int) -> Callable[[], object]:
    """Return the training of some lanes together, ready to go."""
    objective = cohort_objective(case, lanes)
    batches = BatchOrder([torch.arange(N)] * lanes, list(range(lanes)), case.batch)
    rates = torch.tensor([rate(lane) for lane in range(lanes)])
    plan = Plan(batches, 1, steps, rates, torch.full_like(rates, 1e-2), "constant")
    return partial(fit, objective, plan, LocalRuntime())


def cohort_objective(case: Case, lanes: int) -> StudentObjective:
    """Return what the plain side trains for, for some lanes."""
    seeds, width = list(range(lanes)), case.width
    shapes = Shapes(width, width, width, "classification", CLASSES)
    transport, information = TERMS["transport"], TERMS["mutual_information"]
    each = [
        transport.settings_type(k=ANCHORS, iterations=ITERATIONS, eps_rel=eps_rel(k), weight=0.2)
        for k in seeds
    ]
    contrast = information.settings_type(temperature=TEMPERATURE, weight=0.3)
    terms = {
        "transport": transport(each, shapes, seeds),
        "mutual_information": information([contrast] * lanes, shapes, seeds),
    }
    labelled = torch.ones(lanes, N, dtype=torch.bool)
    nothing = torch.zeros(())
    frozen = FrozenTeachers(
        ("teacher",),
        case.teacher.expand(lanes, 1, N, width),
        nothing.expand(lanes, 1, N, CLASSES),
        nothing.expand(lanes, 1, N),
        labelled,
        "sample",
    )
    # A glance at a few rows: the plain side has no validation at all.
    few = TensorPart({name: x[:8] for name, x in case.part.inputs.items()}, case.part.labels[:8])
    student = Network(case.widths, CLASSES, NetworkSettings(width=width), seeds)
    rows = Rows(case.part, few, labelled, "classification")
    return StudentObjective(student, terms, rows, torch.zeros(lanes), LocalRuntime(), frozen)


def draw_and_gather(case: Case, steps: int, lanes: int) -> None:
    """Do what a cohort does for its batches, and nothing else."""
    batches = BatchOrder([torch.arange(N)] * lanes, list(range(lanes)), case.batch)
    for rows_KB in batches.take(steps):
        at_rows(case.part.inputs, tuple(case.widths), rows_KB)
        _ = case.part.labels[rows_KB]


def cpu_ms(work: Callable[[], object]) -> float:
    """Return the CPU milliseconds of a call."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def measured(case: Case, rounds: int, steps: int) -> dict[str, float]:
    """Return the CPU milliseconds per lane and step: ``plain``, ``plain fused``, ``K``, ``data K``."""
    times: dict[str, list[float]] = {}
    for lane in range(rounds + 1):
        found = {
            "plain": cpu_ms(partial(train_plainly, case, steps, lane, fused=False)),
            "plain fused": cpu_ms(partial(train_plainly, case, steps, lane, fused=True)),
        }
        for lanes in COHORTS:
            found[str(lanes)] = cpu_ms(cohort(case, steps, lanes)) / lanes
            found[f"data {lanes}"] = cpu_ms(partial(draw_and_gather, case, steps, lanes)) / lanes
        # The first round warms up.
        for name, value in found.items() if lane else ():
            times.setdefault(name, []).append(value / steps)
    return {name: statistics.median(values) for name, values in times.items()}


def lines(case: Case, found: dict[str, float]) -> list[str]:
    """Return the rows of the table."""
    name = f"{case.name}: {'/'.join(map(str, case.widths.values()))} -> {case.width}, batch {case.batch}"
    rows = []
    for lanes in COHORTS:
        own, data = found[str(lanes)], found[f"data {lanes}"]
        gain, fused_gain = found["plain"] / own, found["plain fused"] / own
        goal = GOALS.get((case.name, lanes))
        said = "" if goal is None else f">= {goal:g}x {'met' if gain >= goal else 'MISSED'}"
        cells = f"{found['plain']:.2f} | {own:.2f} | {gain:.2f}x | {fused_gain:.2f}x | {said} | {data:.3f}"
        rows.append(f"| {name} | {lanes} | {cells} |")
    return rows


def missed(results: dict[str, dict[str, float]]) -> list[str]:
    """Return the goals that are not met."""
    slow = [
        f"{name}, K = {lanes}"
        for (name, lanes), goal in GOALS.items()
        if results[name]["plain"] / results[name][str(lanes)] < goal
    ]
    return slow + [
        f"data path of {name}, K = {lanes}"
        for name, found in results.items()
        for lanes in COHORTS
        if found[f"data {lanes}"] > DATA_PATH_GOAL_MS
    ]


def main() -> int:
    """Print a Markdown table, write the figures if asked to, and return the exit code."""
    parser = argparse.ArgumentParser(description="cohorts against plain torch, CPU time of one thread")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run?")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    columns = ("student", "K", "plain, ms", "cohort, ms", "gain", "against fused AdamW", "goal", "data, ms")
    sys.stdout.write("CPU milliseconds per lane and step.\n\n")
    sys.stdout.write(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
    for case in CASES:
        rounds, steps = (1, 2) if asked.quick else (3, case.steps)
        results[case.name] = measured(case, rounds, steps)
        sys.stdout.write("\n".join(lines(case, results[case.name])) + "\n")
        sys.stdout.flush()
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1), "utf-8")
    found = [] if asked.quick else missed(results)
    sys.stdout.write("".join(f"\nmissed: {goal}" for goal in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
