"""`resources.lanes = "auto"`."""

import pytest

from mmdistill.errors import ConfigError
from mmdistill.pipeline import cohorts
from mmdistill.pipeline.cohorts import available_bytes, best_lanes, lane_bytes
from mmdistill.pipeline.fold import opened
from mmdistill.studies import lanes
from mmdistill.studies.file import PLANNED_LANES
from mmdistill.training import cohort


@pytest.fixture
def measured(monkeypatch):
    """Record what is measured, and answer 4."""
    seen = []

    def answer(run, concurrent):
        seen.append((run, concurrent))
        return 4

    monkeypatch.setattr(lanes, "best_lanes", answer)
    return seen


def test_a_number_is_left_alone(put_together, tiny, measured):
    study = put_together(tiny, "resources.lanes=2")
    assert lanes.with_lanes(study, 8) is study
    assert study.lanes == 2
    assert measured == []


def test_a_new_study_measures_its_dearest_arm_and_freezes_the_number(put_together, tiny, measured):
    study = put_together(tiny, "resources.lanes=auto", "resources.concurrent=1")
    assert study.lanes == PLANNED_LANES
    settled = lanes.with_lanes(study, None)
    assert settled.lanes == settled.resolved()["lanes"] == 4
    ((run, concurrent),) = measured
    assert concurrent == 1
    assert len(run.active_terms()) == max(len(arm.run.active_terms()) for arm in study.arms)


def test_a_study_that_goes_on_reads_its_number_back(put_together, tiny, measured):
    study = put_together(tiny, "resources.lanes=auto")
    assert lanes.with_lanes(study, 64).lanes == 64
    assert measured == []


@pytest.mark.parametrize("value", ["0", "1025", "many", "2.5", "true", '"16"'])
def test_other_values_are_refused(put_together, tiny, value):
    with pytest.raises(ConfigError, match='give a whole number from 1 to 1024, or "auto"'):
        put_together(tiny, f"resources.lanes={value}")


def test_measuring_really(put_together, tiny, monkeypatch):
    monkeypatch.setattr(cohort, "MEASURED_S", 0.01)
    (run,) = [arm.run for arm in put_together(tiny).arms if arm.run.active_terms()][:1]
    assert best_lanes(run, 2) in cohort.SIZES
    fold = opened(run.data, run.fold, with_test=False, device="cpu")
    assert 10_000 < lane_bytes(run, fold) < available_bytes()
    monkeypatch.setattr(cohorts, "available_bytes", lambda: lane_bytes(run, fold) * 10)
    assert best_lanes(run, 1) <= 4
    assert best_lanes(run, 8) == 1


def test_memory_is_known_where_the_system_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(cohorts, "Path", lambda _: tmp_path / "nowhere")
    assert available_bytes() > 2**20
