"""What a driver does for a study grows with the study and not faster."""

import dataclasses
import gc
import tracemalloc

import pytest

from mmdistill.cluster.proposals import propose
from mmdistill.pipeline.execute import failed_final
from mmdistill.pipeline.run import RunSettings
from mmdistill.randomness import derive_seed
from mmdistill.records.study import StudyFolder
from mmdistill.settings import merged
from mmdistill.studies.file import StudyFile
from mmdistill.studies.session import Session
from mmdistill.studies.study import assemble

TINY = {
    "name": "many",
    "run": {"epochs": 2, "data": {"dataset": "planted", "student": ["face"], "privileged": ["audio"]}},
    "arms": [{"name": "student_only", "recipe": "student_only"}, {"name": "hinton", "recipe": "hinton"}],
    "search": {"startup": 4, "generation": 4, "top": 1, "seeds": 1, "sampler": "random"},
    "confirm": {"pairs": 1},
    "resources": {"lanes": 2},
}


def made_up(order):
    """Return rows that look like results, without training anything."""
    final = failed_final(order, "made up")
    values = [derive_seed(row.trial_id) / 2**63 for row in final.trials]
    trials = [
        dataclasses.replace(row, status="complete", error=None, metrics={"log_loss": value})
        for row, value in zip(final.trials, values, strict=True)
    ]
    return dataclasses.replace(final, trials=trials)


@pytest.fixture
def many(begin, tmp_path, monkeypatch):
    """Return a function from a number of trials to the session of a study that shows nothing."""

    def _many(trials):
        study = assemble(StudyFile.model_validate(merged(TINY, {"search": {"trials": trials}})), "many.toml")
        session = begin(study, tmp_path / str(trials))
        monkeypatch.setattr(session._board, "show", lambda _final: None)
        return session

    return _many


@pytest.fixture
def work(many, monkeypatch):
    """Return a function from a number of trials to how often a driver did what costs."""
    counts = {}

    def counting(owner, name):
        honest = getattr(owner, name)

        def counted(*args, **more):
            counts[name] = counts.get(name, 0) + 1
            return honest(*args, **more)

        monkeypatch.setattr(owner, name, counted)

    def play(trials):
        session = many(trials)
        counts.clear()
        while not session.is_finished:
            (order,) = session.ready((), most=1)
            session.folder.put_final(made_up(order))
            session.ended(order, "complete")
        return dict(counts)

    for owner, name in (
        (StudyFolder, "final"),
        (StudyFolder, "final_ids"),
        (StudyFolder, "decisions"),
        (RunSettings, "model_validate"),
        (Session, "ended"),
    ):
        counting(owner, name)
    return play


def test_five_times_the_trials_are_five_times_the_work(work):
    few, many = work(16), work(80)
    for name in ("ended", "final", "model_validate"):
        assert 3 < many[name] / few[name] <= 5
    # Never listed again once it runs.
    assert "final_ids" not in many
    assert "decisions" not in many


def test_a_session_keeps_no_rows_of_what_ended(begin, tmp_path):
    study = assemble(StudyFile.model_validate(merged(TINY, {"search": {"trials": 60}})), "many.toml")
    session = begin(study, tmp_path)

    def play(orders):
        for _ in range(orders):
            (order,) = session.ready((), most=1)
            session.folder.put_final(made_up(order))
            session.ended(order, "complete")
        gc.collect()

    play(16)
    tracemalloc.start()
    try:
        play(40)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # Two trials per order; the rows of one are more than 6 KB, its parameters and its rank below one.
    assert kept / 80 < 2500


def test_a_study_resumed_in_its_search_reads_each_result_once(many, monkeypatch):
    session = many(24)
    folder, study = session.folder, session.study
    for _ in range(14):
        (order,) = session.ready((), most=1)
        folder.put_final(made_up(order))
        session.ended(order, "complete")
    waiting = [order.order_id for order in session.ready(())]
    read, honest = [], StudyFolder.final

    def reading(self, order_id, **more):
        read.append(order_id)
        return honest(self, order_id, **more)

    monkeypatch.setattr(StudyFolder, "final", reading)
    resumed = Session(study, StudyFolder.open(folder.root), propose)
    assert [order.order_id for order in resumed.ready(())] == waiting
    assert len(read) == len(set(read)) <= 14
