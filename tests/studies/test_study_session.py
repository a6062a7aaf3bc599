"""When a session gives an order up."""

from pathlib import Path

import pytest

from mmdistill.cluster.proposals import propose
from mmdistill.records.study import StudyFolder
from mmdistill.studies.provenance import study_row
from mmdistill.studies.session import DIED, RETRIES, Session
from mmdistill.studies.study import open_study

STUDY = Path(__file__).parents[2] / "search_spaces" / "planted_nothing.toml"


@pytest.fixture
def session(tmp_path):
    study = open_study(STUDY)
    folder = StudyFolder.create(tmp_path, study_row(study, ["test"]), "", study.resolved())
    return Session(study, folder, propose)


def test_an_order_is_given_up_after_its_retries_even_if_no_attempt_of_it_ever_began(session):
    order = next(order for order in session.ready(()) if order.lanes)
    for _ in range(RETRIES):
        session.ended(order, "failed")
        assert order.order_id in {found.order_id for found in session.ready(())}
    session.ended(order, "failed")
    assert {trial.status for trial in session.folder.final(order.order_id).trials} == {"failed"}
    assert session.failed == [order.title]


def test_an_order_whose_process_was_lost_is_given_up_at_once(session):
    order = next(order for order in session.ready(()) if order.lanes)
    session.ended(order, "lost")
    assert {trial.error for trial in session.folder.final(order.order_id).trials} == {DIED}
