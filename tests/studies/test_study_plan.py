import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from mmdistill.cluster.inline import run_inline
from mmdistill.few_pairs import too_few_alone
from mmdistill.pipeline.cache import StageCache
from mmdistill.records.tables import compact, latest
from mmdistill.reports.ablation import summarise_tables
from mmdistill.statistics import detectable_difference
from mmdistill.studies import power
from mmdistill.studies.plan import plan
from mmdistill.studies.power import earlier_spread, powers_of
from mmdistill.studies.provenance import study_row
from mmdistill.studies.rehearsal import rehearse

MT_PKDOT = """
[[arms]]
name = "mt_pkdot"
recipe = "mt_pkdot"
edits = { "terms.transport.k" = 5, "alignment.epochs" = 2 }
"""


@pytest.fixture
def text(tiny):
    return tiny.replace("[search]", f"{MT_PKDOT}\n[search]")


@pytest.fixture
def run(begin):
    """Return ``run(study, root, most=None)``: execute some orders of a study, or all; its folder."""

    def _run(study, root, most=None):
        session = begin(study, root)
        run_inline(session, StageCache(root / "cache"), most=most)
        return session.folder

    return _run


def planned(study, root, **other):
    return plan(study, root, root / "cache", may_pilot=False, **other)


def test_a_plan_knows_what_every_row_of_a_run_will_be_called(run, put_together, text, tmp_path):
    study = put_together(text)
    root = tmp_path / "results" / "tiny"
    before = planned(study, root)
    folder = run(study, root)
    finals = list(folder.finals())
    rehearsed = [order for wave in rehearse(study) for order in wave]
    # Which trials are validated is a result; how many are is none.
    assert Counter(order.kind for order in rehearsed) == Counter(final.kind for final in finals)
    expected = {order.order_id for order in rehearsed if order.kind != "validate"}
    assert expected == {final.order_id for final in finals if final.kind != "validate"}
    assert sum(phase.orders for phase in before.phases) == len(finals)
    stages = [row for final in finals if not final.trials for row in final.stages]
    assert sum(phase.stages for phase in before.phases) == len(stages)
    assert before.trainings == sum(row.stage == "teacher" for row in stages)
    compact(folder)
    # Another study of the same work: every price is on record.
    again = planned(put_together(text, "name=other", "seed=8"), root.parent / "other")
    assert (again.cost.unknown, again.cost.recorded) == (0, 1)
    used = sum(attempt.cpu_s for attempt in folder.attempts())
    assert again.cost.cpu_s == pytest.approx(used, rel=0.05)


@pytest.mark.parametrize("most", [1, 8, 20])
def test_a_plan_of_a_study_in_progress_counts_what_is_left(run, put_together, text, tmp_path, most):
    study = put_together(text)
    whole = planned(study, tmp_path / "nothing")
    run(study, tmp_path / "tiny", most)
    rest = planned(study, tmp_path / "tiny")
    assert sum(phase.orders for phase in rest.phases) == sum(phase.orders for phase in whole.phases) - most
    assert [phase.runs for phase in rest.phases] == [phase.runs for phase in whole.phases]
    assert [phase.stages for phase in rest.phases] == [phase.stages for phase in whole.phases]
    assert (rest.trainings, rest.trainings_alone) == (whole.trainings, whole.trainings_alone)
    assert [arm.runs for arm in rest.arms] == [arm.runs for arm in whole.arms]


def test_folds_multiply_and_count_as_replicates(put_together, text, tmp_path):
    edits = ('run.data.folds={scheme="stratified", count=3}',)
    whole = planned(put_together(text), tmp_path / "a")
    folded = planned(put_together(text, *edits), tmp_path / "a")
    assert [phase.runs for phase in folded.phases] == [3 * phase.runs for phase in whole.phases]
    (found,) = folded.power
    assert (found.replicate, found.n, found.refusal) == ("folds", 3, None)
    assert found.arms == tuple(arm.name for arm in folded.arms)


def test_searched_teachers_are_said_to_make_the_counts_inexact(put_together, text, tmp_path):
    space = '[search.space]\n"teachers.pool" = { choice = [["joint"], ["each", "joint"]] }\n[confirm]'
    study = put_together(text.replace("[confirm]", space))
    assert planned(put_together(text), tmp_path / "a").is_exact
    found = planned(study, tmp_path / "a")
    assert not found.is_exact


def test_the_spread_of_earlier_studies_turns_into_units_of_the_score(run, put_together, tiny, tmp_path):
    study = put_together(tiny, "confirm.pairs=5", "search.trials=1", "search.startup=1", "name=earlier")
    folder = run(study, tmp_path / "earlier")
    compact(folder)
    scores = {arm.name: {} for arm in study.arms}
    for row in (row for final in folder.finals() for row in final.trials if row.phase == "test"):
        scores[row.arm][row.seed_index] = row.metrics["accuracy"]
    differences = [
        [scores[arm][n] - scores["student_only"][n] for n in range(5)] for arm in ("hinton", "several")
    ]
    spread, source = earlier_spread(study, study.arms, tmp_path)
    assert source == "earlier"
    assert spread == pytest.approx(np.sqrt(np.var(differences, axis=1, ddof=1).mean()))
    (found,) = powers_of(put_together(tiny, "confirm.pairs=8"), tmp_path)
    assert found.difference == pytest.approx(found.in_sd * spread)
    decoy = put_together(tiny, 'run.data.student=["decoy"]', 'run.data.privileged=["audio"]')
    assert earlier_spread(decoy, decoy.arms, tmp_path) == (None, None)
    folded = put_together(tiny, 'run.data.folds={scheme="stratified", count=3}')
    assert earlier_spread(folded, folded.arms, tmp_path) == (None, None)


def test_a_plan_counts_the_unplanned_comparisons_as_the_report_does(begin, put_together, text, tmp_path):
    text = text.replace('name = "', 'reference = "hinton"\nname = "', 1)
    study = put_together(text, "confirm.pairs=6")
    (found,) = powers_of(study, tmp_path)
    arms = summarise_tables(latest(begin(study, tmp_path / "study").folder)).arms
    shown = [(arm.against_baseline, arm.against_reference, arm.against_base) for arm in arms]
    claims = [claim for several in shown for claim in several if claim and claim.question is None]
    assert found.unplanned == len({frozenset({claim.arm, claim.against}) for claim in claims}) > 1
    assert found.caution == too_few_alone(6, found.unplanned)
    assert powers_of(put_together(text, "confirm.pairs=16"), tmp_path)[0].caution is None


def test_a_damaged_neighbour_costs_nothing(put_together, tiny, tmp_path):
    study = put_together(tiny)
    (tmp_path / "torn" / "compact").mkdir(parents=True)
    for name in ("trials", "studies", "stages", "attempts"):
        (tmp_path / "torn" / "compact" / f"{name}.parquet").write_bytes(b"PAR1 torn")
    found = planned(study, tmp_path / "tiny")
    assert found.cost.recorded == 0
    assert found.power[0].spread is None


def parts(*names):
    """Return a part of a fold with a labelled row per name of a group; ``-name`` has no label."""
    groups = np.array([name.removeprefix("-") for name in names])
    labels = np.array([-1 if name.startswith("-") else 0 for name in names])
    return SimpleNamespace(
        labels=labels, groups=groups, rows=np.array([f"{g}{n}" for n, g in enumerate(groups)])
    )


def with_parts(monkeypatch, *folds):
    found = [SimpleNamespace(train=train, validation=validation) for train, validation in folds]
    monkeypatch.setattr(power, "open_fold", lambda _data, fold: found[fold])


def test_a_fold_that_tests_one_group_counts_as_a_subject(put_together, tiny, tmp_path, monkeypatch):
    study = put_together(tiny, 'run.data.folds={scheme="stratified", count=3}')
    with_parts(monkeypatch, (parts("a", "a", "-x"), parts("b")), (parts("a", "a"), parts("c", "c")))
    (found,) = powers_of(study, tmp_path)
    assert (found.replicate, found.n) == ("subjects", 3)
    # Three subjects cannot reach .05 by sign flips.
    assert found.refusal.startswith("n = 3 is too small")
    assert found.in_sd is None


def test_folds_of_several_groups_count_by_subjects_where_the_score_is_a_mean_over_rows(
    put_together, tiny, tmp_path, monkeypatch
):
    study = put_together(tiny, 'run.data.folds={scheme="stratified", count=2}')
    with_parts(monkeypatch, (parts(*"aabb"), parts(*"ccdd")), (parts(*"eeff"), parts(*"gg")))
    (found,) = powers_of(study, tmp_path)
    assert (found.replicate, found.n, found.spread) == ("subjects", 7, None)
    assert found.in_sd == pytest.approx(detectable_difference(7, level=found.level, power=0.8))


def test_rows_kept_for_tuning_are_no_replicates(put_together, tiny, tmp_path):
    folds = 'run.data.folds={scheme="stratified", count=4, tuning="fixed_holdout"}'
    (found,) = powers_of(put_together(tiny, folds), tmp_path)
    assert (found.replicate, found.n) == ("folds", 4)
    assert found.in_sd == pytest.approx(
        detectable_difference(4, level=found.level, power=0.8, test_share=1 / 3)
    )


def test_arms_with_other_folds_have_replicates_of_their_own(put_together, tiny, tmp_path):
    alone = ("student_only", "hinton")
    folded = "\n".join(
        f'[[arms]]\nname = "{arm}_folds"\nrecipe = "{arm}"\nedits = {{ "data.folds.scheme" = "stratified", '
        '"data.folds.count" = 4, "data.folds.tuning" = "fixed_holdout" }'
        for arm in alone
    )
    study = put_together(tiny.replace("[search]", f"{folded}\n[search]"), "confirm.pairs=7")
    official, in_folds = planned(study, tmp_path / "a").power
    assert (official.replicate, official.n, official.arms) == ("seeds", 7, (*alone, "several"))
    assert (in_folds.replicate, in_folds.n) == ("folds", 4)
    assert in_folds.arms == tuple(f"{arm}_folds" for arm in alone)
    share = {"level": in_folds.level, "power": 0.8, "test_share": 1 / 3}
    assert in_folds.in_sd == pytest.approx(detectable_difference(4, **share))
    row = study_row(study, [])
    assert (row.tuning, row.pairs) == ("mixed", 28)
    told = {arm["name"]: (arm["folds"], arm["tuning"]) for arm in json.loads(row.arms_json)}
    assert told["several"] == ("official", "nested")
    assert told["hinton_folds"] == ("stratified", "fixed_holdout")


def test_a_neighbour_that_was_extended_tells_its_prices_and_spread(run, put_together, tiny, tmp_path):
    edits = ("search.trials=1", "search.startup=1", "name=earlier")
    run(put_together(tiny, "confirm.pairs=4", *edits), tmp_path / "earlier")
    study = put_together(tiny, "confirm.pairs=5", *edits)
    folder = run(study, tmp_path / "earlier")
    assert folder.revision == 2
    compact(folder)
    assert earlier_spread(study, study.arms, tmp_path)[1] == "earlier"
    assert planned(put_together(tiny, "name=other", *edits[:2]), tmp_path / "other").cost.recorded == 1
