"""What the records cost does not grow faster than the study."""

import sys
import time
from dataclasses import replace

import pytest

from mmdistill.records import store
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact


@pytest.fixture
def written(tmp_path, final, study_row, monkeypatch):
    """Return a function that writes a study of so many orders, as a driver does, and returns its folder."""
    monkeypatch.setattr(store.os, "fsync", lambda _: None)

    def write(count):
        folder = StudyFolder.create(tmp_path / str(count), study_row(), "", {})
        for number in range(count):
            order_id = f"search-{number:016x}"
            attempt = folder.begin_attempt(order_id)
            result = final(order_id, lanes=1, epochs=0, rows=0)
            long = [replace(trial, config_json="x" * 2500) for trial in result.trials]
            folder.put_final(replace(result, trials=long))
            folder.end_attempt(order_id, attempt, "complete")
            assert folder.has_final(order_id)
            assert folder.final(order_id).trials
        return folder

    return write


def calls_of(work, *arguments):
    """Return how many Python functions were called: what CPU seconds would say, without the noise."""
    called = [0]

    def count(_frame, event, _argument):
        called[0] += event == "call"

    sys.setprofile(count)
    try:
        work(*arguments)
    finally:
        sys.setprofile(None)
    return called[0]


def test_a_study_of_1000_results_is_open_in_less_than_a_second(written):
    root = written(1000).root
    spent = time.process_time()
    assert len(list(StudyFolder.open(root).finals())) == 1000
    assert time.process_time() - spent < 1


def test_ten_times_the_results_cost_at_most_eleven_times_as_much(written):
    written(2)
    small, large = calls_of(written, 30), calls_of(written, 300)
    assert large <= 11 * small


def test_so_do_the_tables(written):
    small, large = written(31), written(310)
    compact(written(1))
    assert calls_of(compact, large) <= 11 * calls_of(compact, small)
