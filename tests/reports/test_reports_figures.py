"""Every kind of figure: what is drawn is what the summaries say, and what cannot be drawn says why."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from mmdistill.errors import InputError
from mmdistill.records.rows import EpochRow, arrow_table
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.reports.figures.base import FIGURES, NothingToDrawError, Sources
from mmdistill.reports.figures.drawing import draw, kinds
from mmdistill.reports.figures.over_epochs import bands
from mmdistill.reports.figures.style import MARKERS, paper_style, shown, text_on
from mmdistill.reports.readings import readings_of
from mmdistill.reports.series import reliability
from mmdistill.statistics import Verdict, t_interval

STORE = Path(__file__).parents[1] / "golden" / "store"


@pytest.fixture(scope="module")
def golden():
    return Sources(latest(StudyFolder.open(STORE)))


def drawn(kind, sources):
    kinds()
    with paper_style():
        return FIGURES[kind](sources)


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_golden_store_fills_what_it_can_and_says_why_not_the_rest(golden, tmp_path):
    found = draw(golden, tmp_path / "figures")
    assert set(found.skipped) <= {"labels", "lattice", "ranks", "similarity"}
    assert "needs 3" in found.skipped["labels"]
    assert "too few to compare arms over data sets" in found.skipped["ranks"]
    stems = {file.stem for file in found.files}
    assert stems >= {
        "budget",
        "calibration",
        "curves_validation_accuracy",
        "curves_validation_log_loss",
        "forest",
        "selection",
    }
    assert len(found.files) == 2 * len(stems)
    for file in found.files:
        content = file.read_bytes()
        if file.suffix == ".pdf":
            # TrueType, embedded whole: Type 3 fonts are refused by some journals.
            assert b"/FontFile2" in content
            assert b"/Type3" not in content
        else:
            assert content.startswith(b"\x89PNG")


def test_a_study_that_has_only_searched_shows_its_budget_and_one_that_has_not_begun_nothing(
    new_study, tmp_path
):
    study = new_study(["student_only", "hinton"])
    assert draw(Sources(study.tables()), tmp_path).files == ()
    study.add_search("student_only", [0.9, 0.7, 0.8])
    found = draw(Sources(study.tables()), tmp_path)
    assert {file.stem for file in found.files} == {"budget"}
    assert found.skipped["forest"] == "no two arms share a finished pair yet; go on with `mmdistill run`"


def test_the_same_study_gives_the_same_files(golden, tmp_path):
    first, second = (draw(golden, tmp_path / name, ["forest"]) for name in "ab")
    assert [f.read_bytes() for f in first.files] == [f.read_bytes() for f in second.files]


def test_what_is_asked_for_and_cannot_be_drawn_is_an_error_and_nothing_is_written(golden, tmp_path):
    with pytest.raises(InputError) as error:
        draw(golden, tmp_path / "figures", ["forrest", "labels", "forest"])
    first, second = map(str, error.value.problems)
    assert first == "KIND: no figure is called 'forrest'; did you mean 'forest'?"
    assert second.startswith("figure labels: the study has no label curve; ")
    assert not (tmp_path / "figures").exists()


def test_an_unknown_curve_is_named_with_the_nearest(golden, tmp_path):
    sources = dataclasses.replace(golden, curves=["validation/acuracy"])
    with pytest.raises(
        InputError, match=r"--curve: no curve is called .* did you mean 'validation/accuracy'\?"
    ):
        draw(sources, tmp_path, ["curves"])


def test_names_are_drawn_as_they_are(new_study, tmp_path):
    name = r"$\frac{a_1 中" + "x" * 60
    study = new_study(["student_only", name])
    study.fill({"student_only": 0.5, name: 0.7}, seeds=3)
    figure = drawn("forest", Sources(study.tables()))[""]
    (label,) = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert label.startswith(r"$\frac{a_1 中")
    assert "…" in label
    assert draw(Sources(study.tables()), tmp_path, ["forest"]).files


def test_the_forest_shows_the_intervals_and_verdicts_of_the_table(made):
    sources = Sources(made.tables())
    axes = drawn("forest", sources)[""].axes[0]
    claims = [*sources.ablation.contrasts, *(arm.against_baseline for arm in sources.arms[2:])]
    segments = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    for claim in claims:
        for interval in (claim.seeds, claim.crossed):
            assert any(np.allclose(s, (interval.low, interval.high)) for s in segments)
    labels = [text.get_text() for text in axes.child_axes[0].get_yticklabels()]
    assert labels[0].endswith(claims[0].verdict)
    assert [label.endswith("*") for label in labels] == [False, False, True]
    margin = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (margin.x0, margin.x1) == pytest.approx((-0.005, 0.005))


def before(made, *phases):
    made.trials = [run for run in made.trials if run.phase not in phases]
    made.predictions, made.openings = [], []
    return Sources(made.tables())


def test_before_the_test_no_difference_is_drawn_as_one_that_was_judged(made):
    figure = drawn("forest", before(made, "test"))[""]
    judged = {MARKERS[verdict] for verdict in get_args(Verdict)}
    markers = {line.get_marker() for line in figure.axes[0].lines} - {"None"}
    assert markers
    assert not markers & judged
    (legend,) = figure.legends
    assert "not judged" in [text.get_text() for text in legend.get_texts()]


def test_of_one_trial_each_there_is_no_forest_as_on_the_page(made):
    with pytest.raises(NothingToDrawError, match="of one trial each, no comparison holds"):
        drawn("forest", before(made, "confirm", "test"))


def test_bands_are_student_t_over_the_runs_of_an_arm(new_study, new_trial):
    study = new_study(["student_only"])
    values = np.array([[0.1, 0.5, 0.6], [0.3, 0.4, 0.9], [0.2, 0.6, 0.6]])
    study.trials = [new_trial("student_only", "confirm", seed_index=seed) for seed in range(3)]
    epochs = [
        EpochRow(
            trial_id=run.trial_id, arm=run.arm, phase="confirm", epoch=epoch, name="c", value=values[s, epoch]
        )
        for s, run in enumerate(study.trials)
        for epoch in range(3)
    ]
    tables = study.tables() | {"epochs": arrow_table(EpochRow, epochs)}
    band = bands(Sources(tables), "c")["student_only"]
    for epoch in range(3):
        slow = t_interval(values[:, epoch])
        assert (band.mean_E[epoch], band.low_E[epoch], band.high_E[epoch]) == pytest.approx(slow[:3])


def test_bands_average_seeds_within_a_fold(new_study, new_trial):
    study = new_study(["student_only"])
    runs = [(fold, seed) for fold in range(2) for seed in range(2)]
    study.trials = [
        new_trial("student_only", "confirm", seed_index=seed, fold=fold, pair_id=f"f{fold}-s{seed}")
        for fold, seed in runs
    ]
    epochs = [
        EpochRow(
            trial_id=run.trial_id, arm=run.arm, phase="confirm", epoch=0, name="c", value=10 * fold + seed
        )
        for run, (fold, seed) in zip(study.trials, runs, strict=True)
    ]
    tables = study.tables() | {"epochs": arrow_table(EpochRow, epochs)}
    band = bands(Sources(tables), "c")["student_only"]
    assert band.n == 2
    # One of two folds is tested and half of the other is validation: two rows tested per row of training.
    assert (band.mean_E[0], band.low_E[0]) == pytest.approx(t_interval([0.5, 10.5], test_share=2)[:2])


def test_many_arms_get_a_panel_each_beside_the_baseline(golden):
    few = dataclasses.replace(golden, names=["student_only", "hinton"])
    assert len(drawn("curves", few)["validation/accuracy"].axes) == 1
    panels = [axes for axes in drawn("curves", golden)["validation/accuracy"].axes if axes.get_visible()]
    names = [arm.name for arm in golden.ablation.arms if arm.name != "student_only"]
    assert [axes.get_title() for axes in panels] == [shown(name, 27) for name in names]
    assert all(len(axes.lines) == 2 for axes in panels)


def test_selection_shares_fill_the_height(golden):
    axes = drawn("selection", golden)[""].axes[0]
    top = max(
        path.vertices[:, 1].max() for area in axes.collections for path in area.get_paths() if len(path)
    )
    assert axes.get_title() == "mt_pkdot"
    assert top == pytest.approx(1.0, abs=1e-6)


def test_reliability_is_confidence_and_accuracy_of_equal_parts():
    rng = np.random.default_rng(0)
    sure, right = rng.random(23), (rng.random(23) < 0.5).astype(float)
    confidence, accuracy = reliability(sure, right, bins=5)
    rows = sorted(zip(sure, right, strict=True))
    ends = [0, 5, 10, 15, 19, 23]
    for b, (start, end) in enumerate(itertools.pairwise(ends)):
        assert confidence[b] == pytest.approx(np.mean([c for c, _ in rows[start:end]]))
        assert accuracy[b] == pytest.approx(np.mean([r for _, r in rows[start:end]]))
    assert len(reliability(sure[:2], right[:2])[0]) == 2


def test_calibration_names_the_error_of_the_table(made):
    sources = Sources(made.tables())
    titles = [axes.get_title() for axes in drawn("calibration", sources)[""].axes if axes.get_visible()]
    assert titles == [f"{arm.name}\nerror {arm.calibration_error:.3f}" for arm in sources.arms]
    regression = readings_of(made.tables()).study | {"task": "regression"}
    sources.readings = sources.readings._replace(study=regression)
    with pytest.raises(Exception, match="predicted targets have no confidence"):
        drawn("calibration", sources)


def test_calibration_leaves_out_what_diverged_like_the_table_does(made):
    made.trials = [
        dataclasses.replace(run, status="diverged")
        if run.arm == "student_only" or run.trial_id == "hinton-test-0-0"
        else run
        for run in made.trials
    ]
    sources = Sources(made.tables())
    panels = [axes for axes in drawn("calibration", sources)[""].axes if axes.get_visible()]
    assert [axes.get_title().split("\n")[0] for axes in panels] == ["self_distillation", "hinton"]
    # The diagonal, a thin line per run, and all runs together.
    assert [len(axes.lines) for axes in panels] == [12, 11]


def lattice_study(new_study, parts):
    """Made arms of every subset of some modalities but the last one alone, frozen ones of none."""
    subsets = [s for n in range(len(parts) + 1) for s in itertools.combinations(parts, n)]
    arms = [{"name": "student_only"}]
    for subset in subsets[1:]:
        alike = {"privileged": "same", "teachers": "+".join(subset)}
        arm = {"name": f"hinton@{'+'.join(subset)}", "baseline": "student_only", "alike": alike}
        arms.append(arm | {"recipe": "hinton", "privileged": list(subset), "teachers": ["joint"]})
    kept = [arm for arm in arms if arm["name"] != f"hinton@{parts[-1]}"]
    study = new_study(kept, reference=None)
    study.fill({arm["name"]: 0.5 + 0.1 * place for place, arm in enumerate(kept)}, seeds=3)
    return Sources(study.tables())


def test_the_lattice_shows_the_scores_of_its_arms_and_the_contributions(new_study):
    sources = lattice_study(new_study, ["audio", "decoy"])
    (lattice,) = sources.ablation.lattices
    left, right = drawn("lattice", sources)[""].axes
    arms = [cell.arm for cell in lattice.cells]
    scores = [f"{sources.readings.score(arm).mean:.3f}" if arm else "no arm" for arm in arms]
    assert sorted(text.get_text() for text in left.texts) == sorted(scores)
    assert scores.count("no arm") == 1
    bars = [patch.get_width() for patch in right.patches]
    for part in lattice.parts:
        for effect in (part.add_one, part.leave_one_out, part.shapley):
            if effect.claim is None:
                assert any(effect.reason[:20] in text.get_text() for text in right.texts)
            else:
                assert any(bar == pytest.approx(effect.claim.seeds.mean) for bar in bars)


@pytest.mark.parametrize(("colour", "text"), [((1, 1, 0), "black"), ((0.27, 0.0, 0.33), "white")])
def test_text_is_black_or_white_by_what_is_below_it(colour, text):
    assert text_on(colour) == text


def label_study(new_study, new_trial):
    """Made arms on a label axis: the student alone at four fractions, a taught one at the smallest."""
    fractions = {"student_only": 0.1, "alone_25": 0.25, "alone_50": 0.5, "alone_100": 1.0, "hinton": 0.1}
    arms = [{"name": name, "recipe": "hinton" if name == "hinton" else "student_only"} for name in fractions]
    study = new_study(arms, reference=None)
    accuracies = dict(zip(fractions, (0.5, 0.6, 0.7, 0.8, 0.65), strict=True))
    study.fill(accuracies, seeds=4, rows=400)
    study.trials = [
        dataclasses.replace(
            run, config_json=json.dumps({"data": {"label_fraction": fractions[run.arm], "dataset": "made"}})
        )
        for run in study.trials
    ]
    return study


def test_the_label_curve_has_an_arrow_to_what_an_arm_is_worth(new_study, new_trial):
    figure = drawn("labels", Sources(label_study(new_study, new_trial).tables()))[""]
    (axes,) = figure.axes
    arrows = [a for a in axes.texts if getattr(a, "arrow_patch", None)]
    (arrow,) = arrows
    assert arrow.get_position()[0] == pytest.approx(0.1)
    assert 0.25 < arrow.xy[0] < 0.5
    said = next(text for text in texts(figure) if "share of the labels" in text)
    assert re.search(rf"^hinton: {100 * arrow.xy[0]:.0f} % \(\d+ to \d+\)$", said, re.MULTILINE)


def test_ranks_are_drawn_over_the_data_sets_of_several_studies(new_study, tmp_path):
    accuracies = {"student_only": 0.5, "hinton": 0.9, "pkdot": 0.7}
    found = []
    for n in range(4):
        study = new_study(list(accuracies), name=f"s{n}", dataset=f"d{n}", data_fingerprint=f"{n:016d}")
        study.fill(accuracies, seeds=2)
        found.append(study.tables())
    sources = Sources(found[0], beside=[readings_of(tables) for tables in found[1:]])
    figure = drawn("ranks", sources)[""]
    assert {"hinton (1.00)", "(3.00) student_only"} <= set(texts(figure))
    assert "over 4 data sets" in figure.get_supxlabel()
    assert draw(sources, tmp_path, ["ranks"]).files


def matrices(arm, names=("student", "teacher", "plan")):
    rng = np.random.default_rng(3)
    return pa.Table.from_pylist(
        [
            {
                "trial_id": f"{arm}-confirm-{seed}-0",
                "arm": arm,
                "fold": 0,
                "seed_index": seed,
                "matrix": name,
                "place": place,
                "label": float(place // 3),
                "values": rng.random(6).round(3).tolist(),
            }
            for name in names
            for seed in range(2)
            for place in range(6)
        ]
    )


def test_similarities_of_one_run_stand_beside_its_plan(made):
    lines = matrices("hinton")
    (figure,) = drawn("similarity", Sources(made.tables() | {"matrices": lines})).values()
    pictures = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in pictures] == ["student", "teacher", "plan (teacher to student)"]
    first = [
        row["values"] for row in lines.to_pylist() if row["matrix"] == "student" and row["seed_index"] == 0
    ]
    assert np.array_equal(pictures[0].images[0].get_array(), first)
    assert [text.get_text() for text in pictures[0].get_xticklabels()] == ["0", "1"]


def test_arms_with_names_almost_alike_leave_a_file_each(new_study, tmp_path):
    arms = ["mt_pkdot-transport", "mt_pkdot@transport", "a b", "A/b"]
    study = new_study(["student_only", *arms], reference=None)
    study.fill(dict.fromkeys(arms, 0.5), seeds=2, rows=4)
    tables = study.tables() | {"matrices": pa.concat_tables([matrices(arm, ["teacher"]) for arm in arms])}
    found = draw(Sources(tables), tmp_path, ["similarity"]).files
    assert [file.stem for file in found[::2]] == [
        "similarity_mt_pkdot-transport",
        "similarity_mt_pkdot@transport",
        "similarity_a_b",
        "similarity_A_b_2",
    ]
    assert len({(tmp_path / file.name).read_bytes() for file in found}) == len(found) == 2 * len(arms)


def test_the_run_that_is_shown_did_not_diverge(made):
    made.trials = [
        dataclasses.replace(run, status="diverged") if run.trial_id == "hinton-confirm-0-0" else run
        for run in made.trials
    ]
    lines = matrices("hinton")
    (figure,) = drawn("similarity", Sources(made.tables() | {"matrices": lines})).values()
    second = [row["values"] for row in lines.to_pylist() if row["matrix"] == "student" and row["seed_index"]]
    assert np.array_equal(figure.axes[0].images[0].get_array(), second)
    assert "repetition 1" in figure.get_supxlabel()


@pytest.mark.parametrize("lines", [None, matrices("hinton", ["student"])])
def test_without_matrices_of_a_teacher_there_is_no_similarity_figure(made, lines):
    tables = made.tables() if lines is None else made.tables() | {"matrices": lines}
    with pytest.raises(Exception, match=r"similarity matrices|features of a teacher"):
        drawn("similarity", Sources(tables))


def test_the_command_lists_every_kind():
    from mmdistill.cli.main import app

    (listed,) = re.findall(r"Kinds: ([^.]+)\.", app["figure"].help)
    assert listed.split(", ") == kinds()
