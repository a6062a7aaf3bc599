"""A training that was cut off goes on as if it had not been, and every part of a snapshot is needed for it.

Axes: K lanes, B batch, D width.
"""

import hashlib
import json

import pytest
import torch
from torch import nn

from mmdistill.training.batches import BatchOrder
from mmdistill.training.loop import Losses, Plan, Race, Snapshot, Training, fit
from mmdistill.training.race import RaceSettings
from mmdistill.training.runtime import LocalRuntime

D, STEPS, EPOCHS, ROWS = 6, 3, 7, 22
RACES = {
    "alone": None,
    "halving": RaceSettings(kind="halving", first=1, factor=2),
    "median": RaceSettings(kind="median", first=2),
}
# The last lane diverges.
RATES = [0.3, 0.05, 0.8, 0.01, 0.5, 1e30]


class Weights(nn.Module):
    """A point per lane, a slow memory of where it was pulled to, and a generator that blurs that."""

    def __init__(self, lanes):
        super().__init__()
        self.w_KD = nn.Parameter(torch.randn(lanes, D, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("slow_KD", torch.zeros(lanes, D))
        self.generators = tuple(torch.Generator().manual_seed(k) for k in range(lanes))


class Pull:
    """Pull each lane's point to the mean of its batch, plus noise."""

    def __init__(self, modules, lanes):
        self.modules, self.lanes = modules, lanes
        self.x_ND = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(1))

    def only(self, lanes):
        return Pull(self.modules, [self.lanes[k] for k in lanes.tolist()])

    def losses(self, rows_KB, _epoch=0):
        noise_KD = torch.stack([torch.randn(D, generator=self.modules.generators[k]) for k in self.lanes])
        self.modules.slow_KD = 0.9 * self.modules.slow_KD + 0.1 * self.x_ND[rows_KB].mean(dim=1)
        pulled_KD = self.modules.w_KD - self.modules.slow_KD - 0.3 * noise_KD
        value_K = pulled_KD.square().square().sum(dim=1)
        return Losses(value_K, {"pull": value_K}, {})

    def validation(self):
        # Some lanes get better and better, others worse and worse.
        sign_K = torch.tensor([1.0 if k % 2 else -1.0 for k in self.lanes])
        return {"criterion": sign_K * self.modules.w_KD.detach().square().sum(dim=1)}


class Memory:
    """Snapshots in memory, as they would come back from a disk; dies after one of them if told so."""

    def __init__(self, dies_at=None):
        self.kept, self.dies_at = [], dies_at

    def load(self):
        return self.kept[-1] if self.kept else None

    def is_due(self):
        return True

    def save(self, snapshot):
        self.kept.append(copied(snapshot))
        if len(self.kept) == self.dies_at:
            raise KeyboardInterrupt


def copied(snapshot):
    tensors = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    return Snapshot(tensors, json.loads(json.dumps(snapshot.facts)))


def parts(race):
    lanes = list(range(len(RATES)))
    objective = Pull(Weights(len(lanes)), lanes)
    rate_K = torch.tensor(RATES)
    batches = BatchOrder([torch.arange(ROWS - k) for k in lanes], lanes, 4)
    plan = Plan(batches, EPOCHS, STEPS, rate_K, torch.linspace(0, 0.1, len(lanes)), "cosine")
    return objective, plan, LocalRuntime(), None if race is None else Race(race, objective.only)


def outcome(fitted):
    """Return the SHA-256 of all that a training leaves."""
    said = [fitted.epoch_A, fitted.curves, sorted(fitted.diverged.items()), sorted(fitted.stopped.items())]
    weights = fitted.parameters.value_KP.numpy().tobytes()
    return hashlib.sha256(weights + json.dumps(said).encode()).hexdigest()


@pytest.fixture(params=RACES)
def race(request):
    return RACES[request.param]


def test_going_on_from_every_epoch_gives_the_same_bits(race):
    whole = fit(*parts(race))
    assert len(whole.diverged) == 1
    assert bool(whole.stopped) == (race is not None)
    for epoch in range(1, EPOCHS):
        memory = Memory(dies_at=epoch)
        with pytest.raises(KeyboardInterrupt):
            fit(*parts(race), keeper=memory)
        assert memory.kept[-1].facts["epoch"] == epoch
        memory.dies_at = None
        assert outcome(fit(*parts(race), keeper=memory)) == outcome(whole), epoch


def test_looking_at_snapshots_changes_nothing(race):
    memory = Memory()
    assert outcome(fit(*parts(race), keeper=memory)) == outcome(fit(*parts(race)))
    assert [snapshot.facts["epoch"] for snapshot in memory.kept] == list(range(1, EPOCHS))


def snapshot_parts():
    found = Training(*parts(RACES["halving"])).snapshot()
    started = [name for name in found.tensors if not name.startswith("generator.")]
    return [*started, "generator.", "failed_first.", *(name for name in found.facts if name != "cpu_s")]


def without(snapshot, part, fresh):
    """Return a snapshot with a part as it was in the beginning."""
    tensors, facts = copied(snapshot)
    if part in facts:
        facts[part] = fresh.facts[part]
    for name in [name for name in tensors if name == part or (part[-1] == "." and name.startswith(part))]:
        del tensors[name]
        if name in fresh.tensors:
            tensors[name] = fresh.tensors[name]
    return Snapshot(tensors, facts)


@pytest.mark.parametrize("part", snapshot_parts())
def test_without_any_part_of_a_snapshot_the_bits_differ(part):
    noticed = []
    for race in RACES.values():
        expected = outcome(fit(*parts(race)))
        for epoch in (1, 2, 3):
            memory = Memory(dies_at=epoch)
            with pytest.raises(KeyboardInterrupt):
                fit(*parts(race), keeper=memory)
            fresh = copied(Training(*parts(race)).snapshot())
            spoiled = Memory()
            spoiled.kept.append(without(memory.kept[-1], part, fresh))
            try:
                noticed.append(outcome(fit(*parts(race), keeper=spoiled)) != expected)
            except (ArithmeticError, IndexError, KeyError, RuntimeError, ValueError):
                noticed.append(True)
    assert any(noticed)


def test_cpu_seconds_add_up_over_attempts():
    memory = Memory(dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        fit(*parts(None), keeper=memory)
    spent = memory.kept[-1].facts["cpu_s"]
    assert 0 < memory.kept[0].facts["cpu_s"] <= spent
    memory.kept[-1].facts["cpu_s"], memory.dies_at = 100.0, None
    assert 100 < fit(*parts(None), keeper=memory).cpu_s < 110


def test_the_first_worker_writes_and_all_go_on_from_what_it_read():
    memory = Memory(dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        fit(*parts(None), keeper=memory)
    memory.dies_at = None

    class Second(LocalRuntime):
        rank = 1

        def first(self, value):
            assert value is None
            return memory.load()

    objective, plan, _, race = parts(None)
    before = list(memory.kept)
    assert outcome(fit(objective, plan, Second(), race, memory)) == outcome(fit(*parts(None)))
    assert memory.kept == before


def test_every_step_is_a_sign_of_life():
    beats = []

    class Watched(LocalRuntime):
        def beat(self):
            beats.append(1)

    objective, plan, _, race = parts(None)
    fit(objective, plan, Watched(), race)
    assert len(beats) == EPOCHS * (STEPS + 1)
