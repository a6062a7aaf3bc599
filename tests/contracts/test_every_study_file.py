"""Every study file that ships is a valid study; a new one is found by being there."""

import tomllib
from pathlib import Path

import pytest

from mmdistill.studies.study import open_study

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "search_spaces").glob("*.toml"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def file(request, monkeypatch):
    # Paths of data in a study file are relative to where the command is given.
    monkeypatch.chdir(ROOT)
    dataset = tomllib.loads(request.param.read_text("utf-8"))["run"]["data"]["dataset"]
    if "/" in dataset and not Path(dataset).exists():
        pytest.skip(f"{dataset} is not on this machine")
    return request.param


def test_it_is_a_valid_study_that_is_called_like_its_file(file):
    study = open_study(file)
    assert study.file.name == file.stem
    assert len(study.arms) >= 2
    assert study.file.contrasts


def test_every_arm_has_something_to_be_compared_with(file):
    arms = {arm.name: arm for arm in open_study(file).arms}
    for arm in arms.values():
        assert not arms[arm.baseline].run.active_terms()
        assert arm.frozen is None or arms[arm.frozen].space


def test_it_begins_with_what_it_asks(file):
    assert file.read_text("utf-8").startswith("# ")


def test_its_arms_are_searched_alike(file):
    study = open_study(file)
    shared = set.intersection(*(set(arm.space) for arm in study.arms if arm.frozen is None))
    assert {"optimiser.learning_rate", "optimiser.weight_decay"} <= shared


def test_the_default_study_is_there():
    assert "quickstart" in [path.stem for path in FILES]
