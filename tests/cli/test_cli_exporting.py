"""`mmdistill export tensorboard`, and what brings a lost tree back."""

import shutil

import pytest


def event_files(root):
    return {path.parent.relative_to(root).as_posix() for path in root.rglob("*tfevents*")}


def test_the_tree_is_written_to_a_new_folder(call, finished, tmp_path):
    answer = call("export", "tensorboard", finished, tmp_path / "tree")
    assert (answer.code, answer.out) == (0, "14 runs and the means of the arms\n")
    assert f"tensorboard --logdir {tmp_path / 'tree'}" in answer.err
    assert event_files(tmp_path / "tree") == event_files(finished / "tensorboard")


def test_it_may_hold_fewer_runs(call, finished, tmp_path):
    answer = call("export", "tensorboard", finished, tmp_path / "tree", "--runs", "5", "--json")
    assert answer.json == {"folder": str(tmp_path / "tree"), "runs": 5, "left_out": 9}
    assert len(event_files(tmp_path / "tree") - {".", "means", "means/hinton", "means/student_only"}) == 5
    more = call("export", "tensorboard", finished, tmp_path / "again", "--runs", "5").out
    assert more == "5 runs and the means of the arms; 9 left out, more with --runs\n"


def test_nothing_is_overwritten(call, finished, tmp_path):
    (tmp_path / "notes.txt").touch()
    for target in (tmp_path, tmp_path / "notes.txt"):
        answer = call("export", "tensorboard", finished, target)
        assert answer.code == 2
        assert f"{target}: something is there, and nothing is overwritten; give a new folder" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_only_a_tree_leaves_runs_out(call, finished, tmp_path):
    answer = call("export", "optuna", finished, tmp_path / "new.db", "--runs", "5")
    assert answer.code == 2
    assert "--runs: only `export tensorboard` leaves runs out; leave it out: every trial is" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", ["tensorboard", "tensorboard/means", "tensorboard/hinton"])
def test_rebuild_brings_a_lost_tree_back(call, finished, tmp_path, lost):
    study = tmp_path / "study"
    shutil.copytree(finished, study)
    shutil.rmtree(study / lost)
    assert call("rebuild", study).code == 0
    assert event_files(study / "tensorboard") == event_files(finished / "tensorboard")


def test_it_loads_neither_torch_nor_ray(python, finished, tmp_path):
    code = """
import sys
from mmdistill.cli.main import main
assert main(["export", "tensorboard", *sys.argv[1:]]) == 0
assert main(["rebuild", sys.argv[1]]) == 0
assert not {"torch", "ray", "optuna", "tensorflow", "matplotlib"} & set(sys.modules)
"""
    done = python(code, finished, tmp_path / "tree")
    assert done.returncode == 0, done.stderr
