"""The stage cache verifies what it reads."""

import json
import math

import pytest
import torch

from mmdistill.pipeline.cache import Entry, StageCache
from mmdistill.pipeline.stages import Stage

STAGE = Stage("teacher", "joint", {"epochs": 3}, (Stage("teacher", "a", {}),))


def entry(value=1.0):
    tensors = {"w": torch.full((2, 3), value), "b": torch.arange(6).view(2, 3).T}
    facts = {"epoch": 1, "curves": {"loss": [0.5, math.nan, math.inf]}, "note": None}
    return Entry(tensors, facts)


def assert_equal(left, right):
    assert left.tensors.keys() == right.tensors.keys()
    assert all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)
    assert json.dumps(left.facts, sort_keys=True) == json.dumps(right.facts, sort_keys=True)


def files(cache, pattern):
    return sorted(cache.root.glob(pattern))


@pytest.fixture
def filled(cache):
    cache.write(STAGE, entry())
    return cache


def test_an_empty_cache_has_nothing(cache):
    assert cache.read(STAGE) == (None, "no entry")


def test_what_is_written_is_read_back(filled):
    found, reason = filled.read(STAGE)
    assert reason == "hit"
    assert_equal(found, entry())


def test_a_mark_says_what_it_stands_for(filled):
    (mark,) = files(filled, "*.json")
    said = json.loads(mark.read_text())
    assert said["key"] == STAGE.key == mark.stem
    assert (said["kind"], said["name"], said["own"]) == ("teacher", "joint", {"epochs": 3})
    assert said["upstream"] == [STAGE.upstream[0].key]
    assert (filled.root / said["tensors"]).is_file()


def test_nothing_is_pickled(filled):
    assert not any(b"\x80\x04" in file.read_bytes()[:8] for file in filled.root.iterdir())
    assert {file.suffix for file in filled.root.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("pattern", ["*.json", "*.safetensors"])
@pytest.mark.parametrize("position", [0, 0.3, 0.6, 0.9, 1])
def test_a_flipped_bit_is_noticed_and_the_entry_set_aside(filled, pattern, position):
    (file,) = files(filled, pattern)
    content = bytearray(file.read_bytes())
    # The last byte of a mark is a line end, which JSON does not look at.
    at = min(int(position * len(content)), len(content) - 2)
    content[at] ^= 1
    file.write_bytes(content)
    found, reason = filled.read(STAGE)
    assert found is None
    assert reason.startswith("entry set aside: ")
    assert len(files(filled, "*.corrupt")) == 1
    assert filled.read(STAGE) == (None, "no entry")
    filled.write(STAGE, entry())
    assert_equal(filled.read(STAGE)[0], entry())


@pytest.mark.parametrize("pattern", ["*.json", "*.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff\xfe"])
def test_a_torn_file_is_noticed(filled, pattern, content):
    files(filled, pattern)[0].write_bytes(content)
    assert filled.read(STAGE)[0] is None
    filled.write(STAGE, entry())
    assert_equal(filled.read(STAGE)[0], entry())


def test_tensors_that_are_gone_are_noticed(filled):
    files(filled, "*.safetensors")[0].unlink()
    found, reason = filled.read(STAGE)
    assert found is None
    assert "is missing" in reason


def test_the_mark_of_another_stage_is_noticed(filled):
    other = Stage("teacher", "joint", {"epochs": 4})
    files(filled, "*.json")[0].rename(filled.root / f"{other.key}.json")
    found, reason = filled.read(other)
    assert found is None
    assert f"belongs to the stage {STAGE.key}" in reason


def test_the_second_of_two_writers_loses_quietly(filled):
    filled.write(STAGE, entry(2.0))
    assert_equal(filled.read(STAGE)[0], entry(1.0))


def test_another_reader_may_set_an_entry_aside_first(filled, monkeypatch):
    (mark,) = files(filled, "*.json")
    monkeypatch.setattr("mmdistill.pipeline.cache.unseal", lambda *_: mark.unlink() or {})
    assert filled.read(STAGE)[0] is None


def test_two_stages_with_equal_tensors_share_the_file(filled):
    other = Stage("teacher", "joint", {"epochs": 4})
    filled.write(other, entry())
    assert len(files(filled, "*.safetensors")) == 1
    assert_equal(filled.read(other)[0], filled.read(STAGE)[0])


def test_a_cache_in_a_folder_that_does_not_exist_yet(tmp_path):
    cache = StageCache(tmp_path / "a" / "b")
    cache.write(STAGE, entry())
    assert cache.read(STAGE)[1] == "hit"
