"""Cohorts against one training after another in plain torch, in CPU time of one thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_cohorts.py [--json FILE] [--quick]

Both sides train the same networks (encoders, gated fusion, head) on the same loss: cross entropy, structural
transport and InfoNCE, the transport with the same bound on its iterations, on batches gathered from the same
tensors. The plain side is ``nn.Linear`` and ``torch.optim.AdamW``, one lane at a time; ours is
:func:`mmdistill.training.loop.fit`. Rounds of the two sides alternate; medians over rounds.

Axes: K lanes, B batch, N rows, D width.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from mmdistill.training.student import FrozenTeachers, Rows, StudentObjective

N, CLASSES, ITERATIONS, ANCHORS = 2048, 7, 20, 20
COHORTS = (1, 4, 16, 64)
# Least trials per CPU-second against plain training, by case and K.
GOALS = {("small", 16): 5.0, ("small", 64): 6.0, ("wide", 16): 1.3}
DATA_PATH_GOAL_MS = 0.2


@dataclass(frozen=True)
class Case:
    """A student of three modalities."""

    name: str
    widths: dict[str, int]
    width: int
    batch: int
    steps: int

    def part(self) -> TensorPart:
        """Return random samples."""
        generator = torch.Generator().manual_seed(0)
        inputs = {m: torch.randn(N, i, generator=generator) for m, i in self.widths.items()}
        return TensorPart(inputs, torch.randint(CLASSES, (N,), generator=generator))

    def teacher(self) -> Tensor:
        """Return a teacher's features of the samples."""
        return torch.randn(N, self.width, generator=torch.Generator().manual_seed(1)).relu()


CASES = (
    Case("small", {"a": 35, "b": 74, "c": 300}, width=64, batch=32, steps=60),
    Case("wide", {"a": 100, "b": 256, "c": 512}, width=256, batch=128, steps=16),
)


class PlainStudent(nn.Module):
    """The student of a case as anybody would write it, with InfoNCE's two projections."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        width = case.width
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(i, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            for i in case.widths.values()
        )
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in case.widths)
        self.gate = nn.Linear(width * len(case.widths), len(case.widths))
        self.head = nn.Linear(width, CLASSES)
        self.from_student, self.from_teacher = nn.Linear(width, 64), nn.Linear(width, 64)

    def forward(self, streams: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features and logits."""
        encoded = [encode(x) for encode, x in zip(self.encoders, streams, strict=True)]
        projected = [project(h) for project, h in zip(self.projections, encoded, strict=True)]
        gates = torch.softmax(self.gate(torch.cat(projected, dim=-1)), dim=-1)
        features = (torch.stack(projected, dim=-2) * gates[..., None]).sum(dim=-2)
        return features, self.head(features)


def plain(case: Case, part: TensorPart, teacher: Tensor, steps: int, lane: int) -> None:
    """Train one lane."""
    torch.manual_seed(lane)
    model = PlainStudent(case)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3 * (1 + lane % 4), fused=FUSED)
    order, eps_rel = torch.Generator().manual_seed(lane), 0.1 + 0.01 * lane
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(rows) < case.batch:
            rows = torch.randperm(N, generator=order)
        rows_B, rows = rows[: case.batch], rows[case.batch :]
        features, logits = model([x[rows_B] for x in part.inputs.values()])
        loss = cross_entropy(logits, part.labels[rows_B])
        taught = teacher[rows_B]
        transport, _ = structural_transport(
            features, taught, eps_rel=eps_rel, k=ANCHORS, iterations=ITERATIONS
        )
        similar = (
            normalize(model.from_student(features), dim=1) @ normalize(model.from_teacher(taught), dim=1).T
        )
        own = torch.arange(case.batch)
        contrast = 0.5 * (cross_entropy(similar / 0.1, own) + cross_entropy(similar.T / 0.1, own))
        optimiser.zero_grad()
        (loss + 0.2 * transport + 0.3 * contrast).backward()
        optimiser.step()


FUSED = None


def objective(case: Case, part: TensorPart, teacher: Tensor, lanes: int) -> StudentObjective:
    """Return the same for some lanes."""
    seeds = list(range(lanes))
    shapes = Shapes(case.width, case.width, case.width, "classification")
    transport, information = TERMS["transport"], TERMS["mutual_information"]
    each = [transport.settings_type(k=ANCHORS, iterations=ITERATIONS, eps_rel=0.1 + 0.01 * k) for k in seeds]
    terms = {
        "transport": transport(each, shapes, seeds),
        "mutual_information": information([information.settings_type()] * lanes, shapes, seeds),
    }
    labelled = torch.ones(lanes, N, dtype=torch.bool)
    few = TensorPart({name: x[:32] for name, x in part.inputs.items()}, part.labels[:32])
    frozen = FrozenTeachers(
        ("t",),
        teacher.expand(lanes, 1, N, -1),
        torch.zeros(1, 1, 1, CLASSES).expand(lanes, 1, N, CLASSES),
        torch.zeros(1, 1, 1).expand(lanes, 1, N),
        labelled,
        "sample",
    )
    network = Network(case.widths, CLASSES, NetworkSettings(width=case.width), seeds)
    rows = Rows(part, few, labelled, "classification")
    return StudentObjective(network, terms, rows, torch.zeros(lanes), LocalRuntime(), frozen)


def cohort(case: Case, part: TensorPart, teacher: Tensor, steps: int, lanes: int) -> Callable[[], None]:
    """Return the training of some lanes together, ready to go."""
    built = objective(case, part, teacher, lanes)
    rate = 1e-3 * (1 + torch.arange(lanes) % 4)
    batches = BatchOrder([torch.arange(N)] * lanes, list(range(lanes)), case.batch)
    plan = Plan(batches, 1, steps, rate, torch.full_like(rate, 1e-2), "constant")
    return lambda: void(fit(built, plan, LocalRuntime()))


def void(_: object) -> None:
    """Forget a value."""


def data_path(case: Case, part: TensorPart, lanes: int, steps: int) -> Callable[[], None]:
    """Return what a step of each lane spends on its batch: the order of rows and their gathering."""
    batches = BatchOrder([torch.arange(N)] * lanes, list(range(lanes)), case.batch)

    def gather() -> None:
        for rows_KB in batches.take(steps):
            at_rows(part.inputs, tuple(part.inputs), rows_KB)
            _ = part.labels[rows_KB]

    return gather


def cpu_ms(work: Callable[[], None]) -> float:
    """Return the CPU milliseconds of a call."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def measured(case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """Return the CPU milliseconds per lane and step of both sides."""
    part, teacher = case.part(), case.teacher()
    times: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], None], lanes: int) -> None:
        times.setdefault(name, []).append(cpu_ms(work) / steps / lanes)

    plain(case, part, teacher, 3, 0)
    for lanes in COHORTS:
        cohort(case, part, teacher, 2, lanes)()
    for round_ in range(rounds):
        note("plain", lambda: plain(case, part, teacher, steps, round_), 1)
        for lanes in COHORTS:
            note(f"{lanes}", cohort(case, part, teacher, steps, lanes), lanes)
            note(f"data {lanes}", data_path(case, part, lanes, steps), lanes)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Print a table; with ``--json`` also write the figures."""
    global FUSED
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one short round: does it run?")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--case")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    FUSED = asked.fused or None
    for case in CASES:
        if asked.case and asked.case != case.name:
            continue
        found = measured(case, 1 if asked.quick else 5, 2 if asked.quick else case.steps)
        print(case.name, f"plain {found['plain']:.2f} ms")
        for lanes in COHORTS:
            print(
                f"  K={lanes}: {found[str(lanes)]:.3f} ms/lane-step = {found['plain'] / found[str(lanes)]:.2f}x, data {found[f'data {lanes}']:.3f}"
            )


if __name__ == "__main__":
    main()
