"""Where the truth is known, the platform must say it: three studies from file to verdict."""

from pathlib import Path

import pytest

from mmdistill.reports.ablation import summarise
from mmdistill.studies.study import open_study

SEARCH_SPACES = Path(__file__).parents[2] / "search_spaces"


@pytest.mark.parametrize(
    ("truth", "verdicts"),
    [("helpful", {"helps"}), ("harmful", {"harms"}), ("nothing", {"harms", "equivalent", "cannot tell"})],
)
def test_the_verdict_is_the_planted_truth(begin, finish, tmp_path, truth, verdicts):
    finish(begin(open_study(SEARCH_SPACES / f"planted_{truth}.toml"), tmp_path))
    (claim,) = summarise(tmp_path).contrasts
    assert (claim.arm, claim.against, claim.seeds.n) == ("hinton", "self_distillation", 8)
    assert claim.verdict in verdicts
