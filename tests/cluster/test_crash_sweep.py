"""A study that fails at any point of any write goes on as if nothing had happened."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from mmdistill.faults import POINTS

SWEEP = Path(__file__).with_name("crash_sweep.py")
PLATFORM = Path(__file__).parents[2] / "platform"
IN_MEMORY = Path("/dev/shm")
# On a disk that syncs, a sample; it is the order of the writes that counts, and that is the same.
SAMPLE = 97
pytestmark = pytest.mark.alone
REASONS = ("Input/output error", "No space left", "could not even be noted")


def swept(folder, every):
    result = folder / "result.json"
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SWEEP), str(folder), str(result), str(every)]
    subprocess.run(command, env=environment, check=True)
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    if not IN_MEMORY.is_dir():
        return swept(tmp_path_factory.mktemp("sweep"), 1)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        return swept(Path(folder), 1)


@pytest.mark.timeout(1800)
def test_every_point_is_passed(sweep):
    assert [name for name in POINTS if not sweep["passed"].get(name)] == []
    assert set(sweep["passed"]) <= set(POINTS)


def test_at_least_500_injections_land(sweep):
    landed = Counter(one["action"] for one in sweep["injections"] if one["landed"])
    assert landed.total() == len(sweep["injections"])
    assert landed.total() >= 500
    assert min(landed[action] for action in ("kill", "EIO", "ENOSPC")) >= 160
    assert landed["torn"] >= 30


def test_no_result_is_lost_doubled_unreadable_or_another(sweep):
    assert [one for one in sweep["injections"] if one["wrong"]] == []
    assert len(sweep["trials"]) == 12


def test_a_disk_that_fails_is_told_with_its_path(sweep):
    # That a driver has ended may stay unsaid: it is found to be gone.
    failed = [one for one in sweep["injections"] if one["action"] in {"EIO", "ENOSPC"}]
    for one in (one for one in failed if not one["point"].startswith("lease.")):
        assert any(told in one["said"] for told in REASONS), one
        assert os.sep in one["said"], one


@pytest.mark.timeout(600)
def test_so_it_is_on_a_disk_that_syncs(tmp_path):
    found = swept(tmp_path, SAMPLE)["injections"]
    assert len(found) >= 5
    assert all(one["landed"] and not one["wrong"] for one in found)
