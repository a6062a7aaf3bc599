import io
import pickle

import pytest
from rich.console import Console

from mmdistill.cli import progress
from mmdistill.cli.progress import LiveProgress, PlainProgress, Tally, line, progress_of
from mmdistill.cluster.progress import Event
from mmdistill.studies.session import RETRIES
from mmdistill.studies.study import open_study


@pytest.fixture
def session(begin, study_file, tmp_path):
    return begin(open_study(study_file), tmp_path / "s")


def order_of(session, kind):
    return next(order for order in session.ready(()) if order.kind == kind)


def test_lines_count_orders_with_runs_and_name_the_rest(session):
    tally = Tally(session)
    stages, search = order_of(session, "stages"), order_of(session, "search")
    for event in (Event(stages, "complete", 0.25, 1), Event(search, "failed", 1, 0)):
        tally.add(event)
    shown = " ".join(line(Event(stages, "complete", 0.25, 1), tally).split())
    assert shown == "[ 0/8] teacher joint for search 1 stage 0.2 s"
    assert line(Event(search, "failed", 1, 0), tally).endswith("2 runs     1.0 s  failed")
    tally.add(Event(search, "complete", 1, 0))
    assert tally.orders == 1
    assert tally.runs["student_only", "search"] == 2


def test_an_order_that_is_given_up_has_ended_as_on_record(session):
    tally, order = Tally(session), order_of(session, "search")
    for _ in range(RETRIES + 1):
        tally.add(Event(order, session.ended(order, "failed"), 1, 0))
    assert (tally.orders, tally.runs["student_only", "search"]) == (1, 2)
    on_record = Tally(session)
    assert (on_record.orders, on_record.runs) == (tally.orders, tally.runs)


def test_a_resumed_study_starts_from_what_is_on_record(begin, session, finished):
    tally = Tally(begin(session.study, finished))
    assert tally.orders == tally.total == 8
    assert all(tally.runs[arm, phase] == n for arm in tally.arms for phase, n in tally.expected[arm].items())


def test_a_closed_pipe_does_not_end_the_study(session, monkeypatch):
    def closed(message):
        raise BrokenPipeError

    monkeypatch.setattr(progress, "say", closed)
    with PlainProgress(Tally(session)) as listen:
        listen(Event(order_of(session, "search"), "complete", 1, 0))


def test_a_terminal_shows_a_line_per_arm(session):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with LiveProgress(Tally(session), console) as listen:
        listen(Event(order_of(session, "search"), "complete", 1, 3))
    text = screen.getvalue()
    assert "student_only" in text
    assert "hinton" in text
    assert "2/2" in text
    assert "3 running" in text


@pytest.mark.parametrize(
    "kind", [PlainProgress, lambda tally: LiveProgress(tally, Console(file=io.StringIO()))]
)
def test_tune_can_pickle_it(session, kind):
    copy = pickle.loads(pickle.dumps(kind(Tally(session))))
    copy(Event(order_of(session, "search"), "complete", 1, 3))


def test_elsewhere_lines_are_plain(session):
    assert isinstance(progress_of(session), PlainProgress)
