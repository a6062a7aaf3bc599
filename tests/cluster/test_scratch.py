"""What a killed driver leaves behind is removed by the next one, and nothing else is."""

import json
import os
import subprocess
import sys

import pytest

from mmdistill.cluster.environment import claim, remove_abandoned

DIES = """
import os, signal, sys
from pathlib import Path
from mmdistill.cluster.environment import claim

claim(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def abandoned(tmp_path):
    """Return a scratch folder, not empty, whose owner was killed."""
    folder = tmp_path / "mmabandon"
    (folder / "r").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", DIES, str(folder)], env=environment, check=False, timeout=60)
    return folder


def altered(folder, **changes):
    owner = json.loads((folder / "scratch-owner.json").read_text())
    (folder / "scratch-owner.json").write_text(json.dumps(owner | changes))


def test_the_folder_of_a_killed_process_is_removed(abandoned, tmp_path):
    (tmp_path / "mmlink").symlink_to(abandoned)
    remove_abandoned(tmp_path)
    assert not abandoned.exists()
    assert (tmp_path / "mmlink").is_symlink()


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"pid_namespace": "pid:[1]"}, {"colour": "red"}],
)
def test_a_folder_whose_owner_may_live_stays(abandoned, tmp_path, changes):
    altered(abandoned, **changes)
    remove_abandoned(tmp_path)
    assert abandoned.exists()


def test_the_folder_of_a_live_process_stays_unless_the_process_is_another(tmp_path):
    ours = tmp_path / "mmours"
    ours.mkdir()
    claim(ours)
    remove_abandoned(tmp_path)
    assert ours.exists()
    altered(ours, process_start=1)
    remove_abandoned(tmp_path)
    assert not ours.exists()


def test_folders_that_do_not_say_they_are_ours_stay(abandoned, tmp_path):
    owner = (abandoned / "scratch-owner.json").read_bytes()
    for name in ("mmnothing", "mmtorn", "study"):
        (tmp_path / name).mkdir()
    (tmp_path / "mmtorn" / "scratch-owner.json").write_bytes(owner[:-9])
    (tmp_path / "study" / "scratch-owner.json").write_bytes(owner)
    (tmp_path / "mmfile").write_text("")
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mmfile", "mmnothing", "mmtorn", "study"]


def test_the_folder_of_another_user_stays(abandoned, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: -1)
    remove_abandoned(tmp_path)
    assert abandoned.exists()
