"""What the tables say of studies with designs, races and several openings."""

import csv
import dataclasses
import io
import json
import math

import pytest

from mmdistill.records.rows import StudyRow, arrow_table
from mmdistill.reports.ablation import summarise_tables
from mmdistill.reports.budget import budget_of
from mmdistill.reports.render import as_csv, markdown
from mmdistill.reports.status import status_of_tables

FRACTIONS = ("0.1", "1.0")


def arm_of(ablation, name):
    return next(arm for arm in ablation.arms if arm.name == name)


@pytest.fixture
def curve(new_study):
    """The best recipe against its own baseline at two label fractions."""
    arms = [
        {"name": f"{recipe}@{fraction}", "recipe": recipe, "baseline": f"student_only@{fraction}"}
        for fraction in FRACTIONS
        for recipe in ("student_only", "hinton")
    ]
    arms[0]["baseline"] = "student_only@1.0"
    contrasts = [
        (f"At {fraction} of the labels, does hinton help?", f"hinton@{fraction}", f"student_only@{fraction}")
        for fraction in FRACTIONS
    ]
    made = new_study(arms, contrasts=contrasts, baseline="student_only@1.0", reference=None)
    accuracies = {"student_only@0.1": 0.3, "hinton@0.1": 0.6, "student_only@1.0": 0.8, "hinton@1.0": 0.8}
    made.fill(accuracies)
    return made


def test_each_arm_is_compared_with_the_baseline_of_its_own_data(curve):
    ablation = summarise_tables(curve.tables())
    compared = {arm.name: arm.against_baseline and arm.against_baseline.against for arm in ablation.arms}
    assert compared == {
        "student_only@0.1": "student_only@1.0",
        "hinton@0.1": "student_only@0.1",
        "student_only@1.0": None,
        "hinton@1.0": "student_only@1.0",
    }
    assert arm_of(ablation, "student_only@0.1").against_baseline.verdict == "harms"
    assert arm_of(ablation, "hinton@0.1").against_baseline == ablation.contrasts[0]


def test_several_baselines_are_named(curve):
    ablation = summarise_tables(curve.tables())
    text = " ".join(markdown(ablation).split())
    assert "minus baseline [seeds] [x rows]" in text
    assert (
        "Each arm is compared with the arm without a teacher on its own data: student_only@0.1, hinton@1.0 "
        "with student_only@1.0; hinton@0.1 with student_only@0.1." in text
    )
    lines = list(csv.DictReader(io.StringIO(as_csv(ablation))))
    assert [line["baseline"] for line in lines] == [
        "student_only@1.0",
        "student_only@0.1",
        "",
        "student_only@1.0",
    ]


def test_a_label_curve_has_one_sentence_per_fraction(curve):
    first, second = summarise_tables(curve.tables()).sentences
    assert first.startswith(
        "At 0.1 of the labels, does hinton help? Yes: hinton@0.1 beats student_only@0.1 by"
    )
    assert second.startswith(
        "At 1.0 of the labels, does hinton help? Cannot tell: hinton@1.0 minus student_o"
    )


@pytest.fixture
def lattice(new_study):
    """A base, two changes of it, and the frozen reading of the second, declared in no good order."""
    arms = [
        {"name": "student_only"},
        {
            "name": "full-b.frozen",
            "frozen": "full",
            "base": "full",
            "change": "without b, not re-tuned",
            "dimensions": 0,
        },
        {"name": "hinton"},
        {"name": "full-a", "base": "full", "change": "without a"},
        {"name": "full-b", "base": "full", "change": "without b"},
        {"name": "full", "base": None},
    ]
    made = new_study(arms, contrasts=[("Does b matter?", "full", "full-b.frozen")])
    accuracies = {"student_only": 0.4, "hinton": 0.6, "full": 0.9, "full-a": 0.88, "full-b": 0.6}
    made.fill(accuracies | {"full-b.frozen": 0.5})
    for arm in accuracies:
        made.add_search(arm, [0.9, 0.8, 0.7, 0.75])
    return made


def test_a_base_is_followed_by_its_changes_and_each_by_its_frozen_reading(lattice):
    names = [arm.name for arm in summarise_tables(lattice.tables()).arms]
    assert names == ["student_only", "hinton", "full", "full-b", "full-b.frozen", "full-a"]


def test_changes_stand_beside_their_frozen_reading(lattice, rows_of):
    ablation = summarise_tables(lattice.tables())
    first, second = rows_of(markdown(ablation), "change")
    tuned, frozen = (arm_of(ablation, name).against_base for name in ("full-b", "full-b.frozen"))
    assert (first["change"], first["of"], first["n"]) == ("without b", "full", "8")
    assert first["re-tuned minus base [seeds] [x rows]"].startswith(f"{tuned.seeds.mean:.3f}")
    assert first["frozen minus base"].startswith(f"{frozen.seeds.mean:.3f} [")
    # What the frozen reading does to its base was planned, the other way round.
    assert (first["verdict"], first["frozen verdict"]) == ("harms *", "harms")
    assert (second["change"], second["frozen minus base"], second["frozen verdict"]) == (
        "without a",
        "-",
        "-",
    )


def test_a_frozen_arm_is_no_headline_and_is_said_to_be_biased(lattice, rows_of):
    ablation = summarise_tables(lattice.tables())
    arm, text = arm_of(ablation, "full-b.frozen"), markdown(ablation)
    assert arm.budget.trials == 0
    assert arm.notes == ("frozen: knock-out, biased towards full",)
    shown = {row["arm"]: row for row in rows_of(text, "arm ")}
    assert shown["full-b.frozen"]["verdict"] == "frozen"
    assert shown["full-b.frozen"]["trials/dims/CPU-s"].startswith("0/0/")
    assert ablation.sentences[0].startswith("Does b matter? Yes: full beats full-b.frozen by ")
    assert ablation.sentences[0].endswith("; full-b.frozen is frozen: knock-out, biased towards full.")
    assert "A frozen arm has no search of its own" in text


def test_without_designs_there_is_no_table_of_changes(made):
    text = markdown(summarise_tables(made.tables()))
    assert "| change" not in text
    assert "frozen" not in text


def test_the_tables_of_a_design_fit_two_hundred_columns(lattice):
    arms = json.loads(lattice.study.arms_json)
    for arm in arms:
        arm["change"] = arm.get("change") and arm["change"] * 20
    lattice.study = dataclasses.replace(lattice.study, arms_json=json.dumps(arms))
    assert max(map(len, markdown(summarise_tables(lattice.tables())).splitlines())) <= 200


@pytest.fixture
def reopened(new_study):
    """An arm and two pairs more after the first opening; the contrast of the new arm was planned with it."""
    arms = ["student_only", "hinton", {"name": "late", "revision": 2}]
    made = new_study(arms, contrasts=[("Better?", "hinton", "student_only")], revision=2)
    late = {"question": "And the late one?", "arm": "late", "against": "hinton", "revision": 2}
    contrasts = [*json.loads(made.study.contrasts_json), late]
    made.study = dataclasses.replace(made.study, contrasts_json=json.dumps(contrasts))
    made.fill({"student_only": 0.5, "hinton": 0.7})
    made.fill({"student_only": 0.5, "hinton": 0.7}, seeds=2, first=8, opening=2)
    made.fill({"late": 0.95}, seeds=10, opening=2)
    return made


def test_several_openings_are_stamped_on_every_table(reopened):
    ablation = summarise_tables(reopened.tables())
    stamp = (
        "the test split was opened 2 times: opening 2 read student_only, hinton again (2 pairs each), late "
        "for the first time (10 pairs each). No p-value accounts for what was seen at an earlier opening"
    )
    assert ablation.openings == 2
    assert ablation.stamps == (stamp,)
    assert stamp in " ".join(markdown(ablation).split())
    assert {line["stamps"] for line in csv.DictReader(io.StringIO(as_csv(ablation)))} == {stamp}
    assert [arm.opening for arm in ablation.arms] == [1, 1, 2]
    assert arm_of(ablation, "late").notes == ("added in revision 2", "first read at opening 2")


def test_a_contrast_planned_after_an_opening_says_so_and_shares_the_family(reopened):
    ablation = summarise_tables(reopened.tables())
    first, late = ablation.contrasts
    assert (first.after_opening, late.after_opening) == (0, 1)
    assert late.adjusted_p == pytest.approx(min(1, max(2 * late.p, first.p if first.p < late.p else 0)))
    assert ablation.sentences[1].endswith("; planned after opening 1.")
    assert "opening" not in ablation.sentences[0]
    assert "^n: planned after opening n of the test split, in one Holm family" in markdown(ablation)


def test_a_contrast_added_before_the_test_was_opened_is_like_any_other(reopened):
    reopened.openings = [dataclasses.replace(row, opening=1) for row in reopened.openings]
    ablation = summarise_tables(reopened.tables())
    assert [claim.after_opening for claim in ablation.contrasts] == [0, 0]
    assert ablation.stamps == ()


def test_one_opening_is_no_stamp(made):
    assert summarise_tables(made.tables()).stamps == ()


def test_pruned_trials_count_as_trials_and_never_as_the_best(new_trial):
    losses = [0.9, 0.8, 0.5, 0.75, 0.7, 0.72, 0.1, 0.2]
    rows = [new_trial("a", "search", number=i, metrics={"log_loss": x}) for i, x in enumerate(losses)]
    for i in (2, 6, 7):
        rows[i] = dataclasses.replace(rows[i], status="pruned", stopped_epoch=2)
    budget = budget_of([dataclasses.asdict(row) for row in rows], 3, "classification")
    assert (budget.trials, budget.pruned, budget.diverged, budget.failed) == (8, 3, 0, 0)
    assert budget.best_of == ((4, 0.75), (8, 0.7))
    assert budget.still_improving is False


def test_nothing_stands_where_every_first_trial_was_lost(new_study, new_trial, rows_of):
    made = new_study(["student_only"], reference=None)
    for number in range(8):
        row = new_trial("student_only", "search", number=number, metrics={"log_loss": 0.5})
        made.trials.append(dataclasses.replace(row, status="pruned" if number < 4 else "complete"))
    ablation = summarise_tables(made.tables())
    (cells,) = rows_of(markdown(ablation), "search ")
    assert (cells["best of 4"], cells["best of 8"], cells["pruned"]) == ("-", "0.500", "4")
    (line,) = csv.DictReader(io.StringIO(as_csv(ablation)))
    assert line["best_of_4"] == ""
    assert math.isinf(dict(ablation.arms[0].budget.best_of)[4])


def test_status_expects_the_runs_that_the_study_planned(new_study):
    planned = {"search": 8, "validate": 2, "confirm": 6, "test": 6}
    made = new_study([{"name": "student_only", "planned": planned}, "hinton"])
    for arm in ("student_only", "hinton", "undeclared"):
        made.add_search(arm, [0.9, 0.8, 0.7, 0.75])
    found = {arm.name: arm.done for arm in status_of_tables(made.tables(), set()).arms}
    assert found == {"student_only": 4 / 20, "hinton": 4 / 24, "undeclared": 0.0}


def test_the_newest_revision_of_a_study_counts(reopened):
    tables = reopened.tables()
    old = dataclasses.replace(reopened.study, arms_json="[]", contrasts_json="[]", revision=1)
    tables["studies"] = arrow_table(StudyRow, [old, reopened.study])
    assert len(summarise_tables(tables).contrasts) == 2
    assert [arm.name for arm in status_of_tables(tables, set()).arms] == [
        "student_only",
        "hinton",
        "late",
    ]


def test_status_names_pruned_trials(made):
    run = next(run for run in made.trials if (run.arm, run.number) == ("hinton", 3))
    made.trials[made.trials.index(run)] = dataclasses.replace(run, status="pruned")
    found = status_of_tables(made.tables(), set())
    assert found.arms[2].counts["search"] == {"complete": 3, "pruned": 1}
