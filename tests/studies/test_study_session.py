"""When a session gives an order up, and when it must not."""

import errno
import os
from pathlib import Path

import pytest

from mmdistill import faults
from mmdistill.cluster.proposals import propose
from mmdistill.errors import LockedError, StudyError
from mmdistill.pipeline import execute as execution
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import run_order
from mmdistill.records.lease import Lease
from mmdistill.records.study import StudyFolder
from mmdistill.studies.provenance import study_row
from mmdistill.studies.session import DIED, GIVEN_UP, RETRIES, Session
from mmdistill.studies.study import open_study
from mmdistill.training.runtime import LocalRuntime

STUDY = Path(__file__).parents[2] / "search_spaces" / "planted_nothing.toml"


@pytest.fixture
def session(begin, tmp_path):
    return begin(open_study(STUDY), tmp_path)


def test_an_order_is_given_up_after_its_retries_even_if_no_attempt_of_it_ever_began(session):
    order = next(order for order in session.ready(()) if order.lanes)
    for _ in range(RETRIES):
        assert session.ended(order, "failed") == "failed"
        assert order.order_id in {found.order_id for found in session.ready(())}
    assert session.ended(order, "failed") == GIVEN_UP
    assert {trial.status for trial in session.folder.final(order.order_id).trials} == {"failed"}
    assert session.failed == [order.title]


def test_an_order_whose_process_was_lost_is_given_up_at_once(session):
    order = next(order for order in session.ready(()) if order.lanes)
    assert session.ended(order, "lost") == GIVEN_UP
    assert {trial.error for trial in session.folder.final(order.order_id).trials} == {DIED}


def run_failing(session, order, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number), "curves/x.parquet")

    monkeypatch.setattr(execution, "execute", fail)
    return run_order(order, session.folder, StageCache(session.folder.root / "cache"), LocalRuntime())


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EROFS", "EDQUOT", "EACCES"])
def test_a_disk_that_fails_says_nothing_about_the_order_and_ends_the_run(session, monkeypatch, name):
    order = session.ready(())[0]
    outcome = run_failing(session, order, monkeypatch, getattr(errno, name))
    assert outcome == "storage"
    message = r"the disk failed '.*' \(.*curves/x\.parquet'\); nothing finished is lost, .* the same command"
    with pytest.raises(StudyError, match=message) as caught:
        session.ended(order, outcome)
    assert str(session.folder.root) in str(caught.value)
    assert os.strerror(getattr(errno, name)) in str(caught.value)
    assert [attempt.outcome for attempt in session.folder.attempts(order.order_id)] == ["storage"]
    assert not session.folder.has_final(order.order_id)
    assert order.order_id in {found.order_id for found in session.ready(())}


def test_an_attempt_that_cannot_even_be_noted_is_no_failure_either(session):
    order = session.ready(())[0]
    faults.plan(faults.Plan("attempts.draft", 1, "ENOSPC"))
    try:
        outcome = run_order(order, session.folder, StageCache(session.folder.root / "cache"), LocalRuntime())
    finally:
        faults.plan(None)
    assert outcome == "storage"
    with pytest.raises(StudyError, match="it could not even be noted what failed"):
        session.ended(order, outcome)


def test_a_missing_file_is_the_fault_of_the_order(session, monkeypatch):
    assert run_failing(session, session.ready(())[0], monkeypatch, errno.ENOENT) == "failed"


def test_an_overtaken_session_ends_when_an_order_does(tmp_path):
    study = open_study(STUDY)
    with Lease(tmp_path) as lease:
        row = study_row(study, ["test"])
        folder = StudyFolder.create(tmp_path, row, "", study.resolved(), lease.check)
        session = Session(study, folder, propose)
        order = session.ready(())[0]
        with Lease(tmp_path, takeover=True), pytest.raises(LockedError, match="was taken over by process"):
            session.ended(order, "failed")
