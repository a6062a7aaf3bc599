"""The TensorBoard tree of a study: which runs it shows, the means of its arms, what it says of itself."""

import dataclasses
import math
import random
import tomllib

import numpy as np
import pytest
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from mmdistill.records.board import MEANS, Board
from mmdistill.records.charts import LAYOUT, layout
from mmdistill.records.events import tag_of
from mmdistill.records.finals import Final
from mmdistill.records.rows import EpochRow, MatrixRow
from mmdistill.records.study import StudyFolder

TERMS = {"transport": {"weight": 1.0}, "centroid": {"weight": 0.0}}


def arm(scheme="official", pool=("joint",), training="frozen", terms=(), space=()):
    data = {"folds": {"scheme": scheme}}
    run = {"data": data, "teachers": {"pool": list(pool), "training": training}, "terms": dict(terms)}
    return {"run": run, "space": dict(space)}


@pytest.fixture
def study(tmp_path, study_row):
    """Return ``study(arms)``: an empty study with these arms."""

    def _study(arms=None, **row):
        arms = {"hinton": arm(), "none": arm()} if arms is None else arms
        return StudyFolder.create(
            tmp_path / "study", study_row(**row), "", {"arms": arms, "order": list(arms)}
        )

    return _study


@pytest.fixture
def result(trial_row):
    """Return ``result(arm, phase, ...)``: an order of one run; its curve is 1 / (epoch + 1) + ``value``."""

    def _result(arm, phase, at, *, value=0.0, fold=0, status="complete", name="validation/accuracy"):
        order_id = f"{arm}-{phase}-{at}-{fold}"
        numbers = {"number": at} if phase == "search" else {"number": None, "seed_index": at}
        trial = trial_row(
            trial_id=order_id, order_id=order_id, arm=arm, phase=phase, fold=fold, status=status,
            metrics={"accuracy": 1 - value, "log_loss": value}, **numbers,
        )  # fmt: skip
        rows = {"trial_id": order_id, "arm": arm}
        epochs = [
            EpochRow(**rows, phase=phase, epoch=e, name=name, value=value + 1 / (e + 1)) for e in range(3)
        ]
        return Final(order_id, phase, trials=[trial], epochs=epochs)

    return _result


def runs(root):
    return {path.parent.relative_to(root).as_posix() for path in root.rglob("*tfevents*")} - {".", MEANS}


def scalars(folder, tag):
    return [point.value for point in EventAccumulator(str(folder)).Reload().Scalars(tag)]


def test_means_and_intervals_are_those_of_the_definition(study, result, tmp_path):
    folder = study()
    values = [0.0, 0.1, 0.4]
    for at, value in enumerate(values):
        folder.put_final(result("hinton", "confirm", at, value=value))
    folder.put_final(result("hinton", "search", 0, value=9.0))
    folder.put_final(result("hinton", "confirm", 3, value=9.0, status="diverged"))
    folder.put_final(result("none", "confirm", 0))
    board = Board(folder, tmp_path / "tree")
    board.catch_up()
    found = {
        tag: scalars(board.root / MEANS / "hinton", f"{tag}/accuracy")
        for tag in ("validation", "validation_low", "validation_high")
    }
    middle = np.mean(values)
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    for epoch in range(3):
        expected = 1 / (epoch + 1) + middle
        assert found["validation"][epoch] == pytest.approx(expected)
        assert found["validation_low"][epoch] == pytest.approx(expected - half)
        assert found["validation_high"][epoch] == pytest.approx(expected + half)
    # One repetition has a mean and no interval.
    tags = EventAccumulator(str(board.root / MEANS / "none")).Reload().Tags()["scalars"]
    assert tags == ["validation/accuracy"]


def test_the_folds_of_a_repetition_are_averaged_first(study, result, tmp_path):
    folder = study({"hinton": arm("grouped")})
    for at, fold, value in [(0, 0, 0.0), (0, 1, 0.2), (1, 0, 0.4), (1, 1, 0.6)]:
        folder.put_final(result("hinton", "confirm", at, fold=fold, value=value))
    board = Board(folder, tmp_path / "tree")
    board.catch_up()
    high = scalars(board.root / MEANS / "hinton", "validation_high/accuracy")
    half = stats.t.ppf(0.975, 1) * np.std([0.1, 0.5], ddof=1) / math.sqrt(2)
    assert high[0] == pytest.approx(1.3 + half)
    assert "hinton/confirm-001-fold1" in runs(board.root)


def test_an_arm_keeps_what_is_confirmed_and_the_best_of_its_search(study, result, tmp_path):
    folder = study()
    finals = [result("hinton", "search", n, value=v) for n, v in enumerate([0.5, 0.1, math.nan, 0.3])]
    finals += [result("hinton", "confirm", n, value=2.0) for n in range(2)]
    finals += [result("none", "search", 0), result("none", "test", 0)]
    for final in finals:
        folder.put_final(final)
    board = Board(folder, tmp_path / "tree", most=6)
    board.catch_up()
    assert runs(board.root) == {
        "hinton/confirm-000", "hinton/confirm-001", "hinton/search-001", "hinton/search-003",
        "none/search-000", "none/test-000", "means/hinton",
    }  # fmt: skip
    assert (board.runs, board.left_out) == (6, 2)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_shown_does_not_depend_on_the_order_in_which_it_came(study, result, tmp_path, seed):
    folder, draw = study(), random.Random(seed)
    finals = [result("hinton", "search", n, value=draw.random()) for n in range(7)]
    finals += [result("none", "search", n, value=draw.random()) for n in range(3)]
    finals += [result(name, "confirm", n) for name in ("hinton", "none") for n in range(2)]
    live = Board(folder, tmp_path / "live", most=8)
    live.catch_up()
    for final in draw.sample(finals, len(finals)):
        folder.put_final(final)
        live.show(folder.final(final.order_id))
        assert live.runs <= 8
    anew = Board(StudyFolder.open(folder.root), tmp_path / "anew", most=8)
    anew.catch_up()
    assert runs(live.root) == runs(anew.root)
    assert len(runs(live.root)) == 8 + 2
    # A board that finds more than it may show takes the others away.
    Board(folder, live.root, most=3).catch_up()
    assert len(runs(live.root)) == 3 + 2


def test_catching_up_writes_what_is_missing_and_leaves_the_rest(study, result, tmp_path):
    folder = study()
    for at in range(2):
        folder.put_final(result("hinton", "confirm", at, value=float(at)))
    root = tmp_path / "tree"
    Board(folder, root).catch_up()
    kept, lost = (next((root / "hinton" / f"confirm-00{n}").iterdir()) for n in range(2))
    lost.unlink()
    Board(folder, root).catch_up()
    assert kept.exists()
    assert runs(root) == {"hinton/confirm-000", "hinton/confirm-001", "means/hinton"}


def test_a_result_that_is_computed_anew_takes_the_place_of_the_failure(study, result, tmp_path):
    folder = study()
    board = Board(folder, tmp_path / "tree", most=1)
    failure = dataclasses.replace(result("hinton", "confirm", 0, status="failed"), epochs=[])
    folder.put_final(failure)
    board.catch_up()
    assert runs(board.root) == {"hinton/confirm-000"}
    folder.withdraw(failure.order_id)
    folder.put_final(result("hinton", "confirm", 0))
    board.show(folder.final(failure.order_id))
    assert runs(board.root) == {"hinton/confirm-000", "means/hinton"}
    assert len(scalars(board.root / "hinton/confirm-000", "validation/accuracy")) == 3


def test_a_confirmed_run_and_the_mean_of_its_arm_have_a_picture(study, result, tmp_path):
    final = result("hinton", "confirm", 0)
    rows = {"trial_id": final.order_id, "arm": "hinton", "pair_id": "p0", "seed_index": 0, "fold": 0}
    matrices = [
        MatrixRow(**rows, matrix=name, place=n, row=f"r{n}", label=n // 2, values=np.eye(4)[n].tolist())
        for name in ("student", "teacher", "plan")
        for n in range(4)
    ]
    folder = study()
    folder.put_final(dataclasses.replace(final, matrices=matrices))
    board = Board(folder, tmp_path / "tree")
    board.catch_up()
    for name in ("hinton/confirm-000", "means/hinton"):
        (image,) = EventAccumulator(str(board.root / name)).Reload().Images("structure")
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert image.step == 2
        assert (image.width, image.height) == (816, 306)


def said(root):
    (text,) = EventAccumulator(str(root / MEANS)).Reload().Tensors("about")
    return text.tensor_proto.string_val[0].decode()


def test_a_text_says_what_is_left_out_and_how_to_get_it(study, tmp_path):
    planned = '[{"name": "hinton", "planned": {"search": 700, "confirm": 20}}]'
    board = Board(study(arms_json=planned), tmp_path / "tree")
    board.catch_up()
    assert "Of 720 planned runs at most 500 are shown" in said(board.root)
    assert "`mmdistill export tensorboard STUDY FOLDER --runs 720`" in said(board.root)


def test_the_layout_is_drawn_for_what_the_arms_have(study, tmp_path):
    arms = {
        "a": arm(pool=["each", "joint"], terms=TERMS),
        "b": arm(training="joint", terms={"x": {"weight": 1}}),
    }
    for number, having in enumerate([arms, {"a": arm()}]):
        folder = StudyFolder.create(
            tmp_path / str(number), study().row, "", {"arms": having, "order": list(having)}
        )
        board = Board(folder, tmp_path / f"tree{number}")
        board.catch_up()
        (point,) = EventAccumulator(str(board.root)).Reload().Tensors(metadata.CONFIG_SUMMARY_TAG)
        shown = layout_pb2.Layout.FromString(point.tensor_proto.string_val[0])
        everything = {"several teachers", "transport", "teacher that trains along"}
        expected = layout("accuracy", everything if number == 0 else ())
        assert [category.title for category in shown.category] == [category.title for category in expected]
    assert len(layout("accuracy", everything)) == len(layout("accuracy", ())) + 3


def test_the_layout_asks_for_nothing_that_is_not_known():
    tree = tomllib.loads(LAYOUT.read_text("utf-8"))
    only = {entry["only"] for entry in tree["category"] if "only" in entry}
    assert only == {"several teachers", "transport", "teacher that trains along"}
    assert {tuple(entry) for entry in tree["category"]} == {("title", "chart"), ("title", "only", "chart")}
    charts = [chart for entry in tree["category"] for chart in entry["chart"]]
    assert all(set(chart) in ({"title", "curves"}, {"title", "interval"}) for chart in charts)
    assert tag_of("transport/converged") == "term_detail/transport/converged"
