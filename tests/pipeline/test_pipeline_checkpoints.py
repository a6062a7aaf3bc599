"""Orders whose process died, and the files that let them go on."""

import json
import math

import pytest
import torch

from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.checkpoints import Checkpoints, training_name
from mmdistill.pipeline.execute import execute
from mmdistill.records.rows import arrow_table
from mmdistill.records.tables import content_hash
from mmdistill.training.loop import Snapshot
from mmdistill.training.race import RaceSettings
from mmdistill.training.runtime import LocalRuntime

RECIPES = ["student_only", "hinton", "mt_pkdot", "complete", "amid"]
EDITS = {"epochs": 4, "teachers__epochs": 3}


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints" / "one"


def snapshot(epoch, value=1.0):
    tensors = {"w": torch.full((2, 3), value), "alive": torch.tensor([True, False])}
    return Snapshot(tensors, {"epoch": epoch, "curves": {"loss": [[0.1, math.nan, math.inf]]}})


def same(left, right):
    return all(torch.equal(left.tensors[name], right.tensors[name]) for name in right.tensors) and (
        json.dumps(left.facts, sort_keys=True) == json.dumps(right.facts, sort_keys=True)
    )


def test_the_newest_snapshot_is_read_back(folder):
    kept = Checkpoints(folder, 0)
    assert kept.load() is None
    for epoch in (1, 2, 11):
        kept.save(snapshot(epoch, float(epoch)))
    assert same(Checkpoints(folder, 0).load(), snapshot(11, 11.0))


def test_two_are_kept_and_nothing_is_pickled(folder):
    kept = Checkpoints(folder, 0)
    for epoch in (9, 10, 11):
        kept.save(snapshot(epoch, float(epoch)))
    assert [path.stem[:6] for path in sorted(folder.iterdir())] == ["000010"] * 2 + ["000011"] * 2
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert not any(b"\x80\x04" in path.read_bytes()[:8] for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_one_that_does_not_verify_does_not_exist(folder, suffix, position):
    kept = Checkpoints(folder, 0)
    for epoch in (1, 2):
        kept.save(snapshot(epoch, float(epoch)))
    (newest,) = [
        path for path in folder.iterdir() if path.name.startswith("000002") and path.suffix == suffix
    ]
    content = bytearray(newest.read_bytes())
    # The last byte of a mark is a line end, which JSON does not look at.
    content[min(int(position * len(content)), len(content) - 2)] ^= 1
    newest.write_bytes(content)
    assert same(kept.load(), snapshot(1))
    assert (folder / "000002.corrupt").exists()
    kept.save(snapshot(2, 2.0))
    assert same(kept.load(), snapshot(2, 2.0))


def test_where_none_verifies_there_is_none(folder):
    kept = Checkpoints(folder, 0)
    kept.save(snapshot(1))
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"")
    assert kept.load() is None


def test_snapshots_are_due_after_some_time_only(folder, monkeypatch):
    now = iter([0.0, 59.0, 60.0, 61.0, 100.0])
    monkeypatch.setattr("mmdistill.pipeline.checkpoints.time.monotonic", lambda: next(now))
    kept = Checkpoints(folder, 60)
    assert [kept.is_due(), kept.is_due()] == [False, True]
    kept.save(snapshot(1))
    assert not kept.is_due()


def test_clearing_leaves_nothing(folder):
    kept = Checkpoints(folder, 0)
    kept.clear()
    kept.save(snapshot(1))
    kept.clear()
    assert not folder.exists()


def test_only_the_same_training_may_go_on():
    name = training_name(["a", "b"], "cpu", 1)
    assert name == training_name(["a", "b"], "cpu", 1)
    assert training_name(["a"], "cuda:0", 1) == training_name(["a"], "cuda:1", 1)
    others = [(["b", "a"], "cpu", 1), (["a"], "cpu", 1), (["a", "b"], "cuda:0", 1), (["a", "b"], "cpu", 2)]
    assert len({name, *(training_name(*other) for other in others)}) == 5


def science(final):
    tables = {
        name: arrow_table(type(rows[0]), rows)
        for name in ("trials", "stages", "epochs")
        if (rows := list(getattr(final, name)))
    }
    return content_hash(tables)


def weights(cache):
    """Return the names of all tensors, which hold their SHA-256."""
    return {path.name for path in cache.root.glob("*.safetensors")}


def until_done(orders, cache, runtime=None):
    """Execute the same order again and again; return the result and how often the process died."""
    for deaths in range(100):
        try:
            return execute(orders, cache, runtime or LocalRuntime()), deaths
        except Killed:
            continue
    raise AssertionError("it never got to an end")


@pytest.fixture
def _dies_after_every_snapshot(monkeypatch):
    original = Checkpoints.save

    def save(self, snapshot):
        original(self, snapshot)
        raise Killed

    monkeypatch.setattr(Checkpoints, "save", save)


@pytest.mark.parametrize("recipe", [*RECIPES, "a race"])
@pytest.mark.usefixtures("_dies_after_every_snapshot")
def test_an_order_killed_after_every_epoch_leaves_the_same_bits(run, order, tmp_path, recipe):
    race = RaceSettings(kind="halving", first=1, factor=2) if recipe == "a race" else None
    recipe = "hinton" if race else recipe
    runs = [run(recipe, seed=5 + k, optimiser__learning_rate=0.01 / (k + 1), **EDITS) for k in range(3)]
    asked = order("search", *runs).model_copy(update={"race": race})
    whole, cut = StageCache(tmp_path / "whole"), StageCache(tmp_path / "cut", checkpoint_seconds=0)
    expected = execute(asked, whole, LocalRuntime())
    found, deaths = until_done(asked, cut)
    trained = {"student_only": 3, "amid": 3, "hinton": 2 + 3, "mt_pkdot": 3 * 2 + 1 + 3}
    trained["complete"] = trained["mt_pkdot"] + 2
    assert deaths == trained[recipe]
    assert weights(cut) == weights(whole)
    assert science(found) == science(expected)
    assert list((cut.root / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("steps", [1, 6, 13])
def test_an_order_killed_between_snapshots_leaves_the_same_bits(run, order, tmp_path, steps):
    class Mortal(LocalRuntime):
        """Dies at every so many steps of its life."""

        beats = 0

        def beat(self):
            self.beats += 1
            if self.beats in {steps, 2 * steps + 7}:
                raise Killed

    asked = order("search", run("hinton", **EDITS))
    whole, cut = StageCache(tmp_path / "whole"), StageCache(tmp_path / "cut", checkpoint_seconds=0)
    expected = execute(asked, whole, LocalRuntime())
    found, deaths = until_done(asked, cut, Mortal())
    assert deaths == 2
    assert weights(cut) == weights(whole)
    assert science(found) == science(expected)


def test_a_short_order_leaves_no_snapshots(run, order, cache):
    execute(order("search", run("hinton")), cache, LocalRuntime())
    assert not (cache.root / "checkpoints").exists()
