"""A disk that fails beside an order, in the process that was about to run it, says nothing of the order."""

import errno

import pytest

from mmdistill.cluster import worker
from mmdistill.cluster.worker import fit_order


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failing_disk_before_an_order_is_no_result_of_it(monkeypatch, number):
    def fails(_config):
        raise OSError(number, "the disk", "study.json")

    monkeypatch.setattr(worker, "_fitted", fails)
    assert fit_order({}) == "storage"


def test_another_error_of_the_system_ends_the_trial(monkeypatch):
    def fails(_config):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(worker, "_fitted", fails)
    with pytest.raises(OSError, match="too many open files"):
        fit_order({})


@pytest.mark.parametrize(("outcome", "told"), [("storage", "storage"), ("failed", "failed")])
def test_a_group_whose_writer_met_a_failing_disk_has_not_failed(monkeypatch, tmp_path, outcome, told):
    folder = worker.StudyFolder(tmp_path, revisions=[])
    folder.end_attempt("search-1", folder.begin_attempt("search-1"), outcome, "No space left on device")
    order = worker.Order(order_id="search-1", kind="search", title="search")
    monkeypatch.setattr(worker, "_order_and_study", lambda _config: (order, folder))
    assert worker._group_failed({}, RuntimeError("a worker was lost")) == told
    assert [attempt.outcome for attempt in folder.attempts("search-1")] == [outcome]
