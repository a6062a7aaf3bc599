"""Where the truth is known, the platform must say it: three studies from file to verdict."""

from pathlib import Path

import pytest

from mmdistill.cluster.inline import run_inline
from mmdistill.cluster.proposals import propose
from mmdistill.pipeline.cache import StageCache
from mmdistill.records.study import StudyFolder
from mmdistill.reports.ablation import summarise
from mmdistill.studies.provenance import study_row
from mmdistill.studies.session import Session
from mmdistill.studies.study import open_study

SEARCH_SPACES = Path(__file__).parents[2] / "search_spaces"


@pytest.mark.parametrize(
    ("truth", "verdicts"),
    [("helpful", {"helps"}), ("harmful", {"harms"}), ("nothing", {"harms", "equivalent", "cannot tell"})],
)
def test_the_verdict_is_the_planted_truth(tmp_path, truth, verdicts):
    path = SEARCH_SPACES / f"planted_{truth}.toml"
    study = open_study(path)
    folder = StudyFolder.create(tmp_path, study_row(study, []), path.read_text("utf-8"), study.resolved())
    session = Session(study, folder, propose)
    run_inline(session, StageCache(tmp_path / "cache"))
    assert session.is_finished
    assert not session.failed
    (claim,) = summarise(tmp_path).contrasts
    assert (claim.arm, claim.against, claim.seeds.n) == ("hinton", "self_distillation", 8)
    assert claim.verdict in verdicts
