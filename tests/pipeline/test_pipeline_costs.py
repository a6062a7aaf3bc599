import pytest

from mmdistill.pipeline.costs import kind_of, lanes_of, same_shape, sizes_of, stage_key, student_key
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.order import Order
from mmdistill.pipeline.pilot import Sample, pilot
from mmdistill.pipeline.prices import Price, Prices
from mmdistill.training.race import RaceSettings


def sizes(run):
    return sizes_of(opened(run.data, 0, with_test=False, device="cpu"), run)


def key(run, lanes=4, **other):
    return student_key(run, sizes(run), lanes, **other)


@pytest.mark.parametrize(
    "edits",
    [
        {"optimiser__learning_rate": 1e-2},
        {"seed": 9},
        {"fold": 0},
        {"terms__softened_logits__weight": 3.0},
        {"terms__softened_logits__temperature": 3.0},
        {"teachers__epochs": 9},
        {"data__options__seed": 4},
        {"data__label_fraction": 0.5},
    ],
)
def test_what_does_not_change_a_students_cost_does_not_change_its_key(run, edits):
    assert key(run("hinton", **edits)) == key(run("hinton"))


@pytest.mark.parametrize(
    "edits",
    [
        {"epochs": 3},
        {"batch_size": 12},
        {"network__width": 16},
        {"teachers__pool": ["each", "joint"]},
        {"terms__centroid": {}},
        {"data__student": ["face", "decoy"], "data__privileged": ["audio"]},
        {"data__options__rows": [240, 40, 40]},
        {"data__options__classes": 3},
    ],
)
def test_what_changes_a_students_cost_changes_its_key(run, edits):
    assert key(run("hinton", **edits)) != key(run("hinton"))


def test_a_race_and_the_reading_of_the_test_rows_have_prices_of_their_own(run):
    plain = key(run("hinton"))
    assert key(run("hinton"), race=RaceSettings(kind="median")) != plain
    assert kind_of(key(run("hinton"), is_test=True)) == "test"


def test_a_teachers_cost_hangs_on_its_own_epochs_and_labels(run):
    plain = stage_key("teacher", "joint", run("hinton"), sizes(run("hinton")), 2)
    for edits in ({"teachers__epochs": 3}, {"teachers__out_of_fold": 2}, {"data__label_fraction": 0.5}):
        changed = run("hinton", **edits)
        assert stage_key("teacher", "joint", changed, sizes(changed), 2) != plain
    changed = run("hinton", epochs=9)
    assert stage_key("teacher", "joint", changed, sizes(changed), 2) == plain
    assert stage_key("teacher", "audio", changed, sizes(changed), 2) != plain


@pytest.mark.parametrize(("lanes", "bucket"), [(1, 1), (2, 2), (3, 4), (9, 16), (16, 16)])
def test_lanes_are_rounded_up_to_a_power_of_two(run, lanes, bucket):
    assert lanes_of(key(run("hinton"), lanes)) == bucket


def test_a_cohort_that_was_not_timed_is_priced_by_those_of_other_sizes():
    # A cohort of K costs 4 + 2 K.
    prices = Prices(
        {"student-ax2": Price(4, 8), "student-ax16": Price(2.25, 4.5), "student-bx4": Price(6, 6)}
    )
    assert list(same_shape("student-ax4", prices.by_key)) == [2, 16]
    assert prices.of("student-ax16") == Price(2.25, 4.5)
    for lanes in (1, 4, 8, 64):
        assert prices.of(f"student-ax{lanes}") == pytest.approx(Price(4 / lanes + 2, 2 * (4 / lanes + 2)))
    assert prices.of("student-cx8") is None
    assert prices.guess("student-cx8") == pytest.approx(Price(12.25 / 3, 18.5 / 3))
    assert prices.guess("teacher-cx8") is None


def test_one_size_of_cohorts_prices_the_others_as_measured_for_small_networks():
    prices = Prices({"student-ax16": Price(1, 2)})
    alone = prices.of("student-ax1")
    assert 4 < alone.cpu_s < 6
    assert alone.wall_s == pytest.approx(2 * alone.cpu_s)
    assert 0.7 < prices.of("student-ax64").cpu_s < 0.9


def test_sizes_that_contradict_each_other_keep_prices_within_reason():
    """A larger cohort that looks dearer is noise: then all cost the same."""
    prices = Prices({"student-ax2": Price(1, 1), "student-ax8": Price(2, 2)})
    assert prices.of("student-ax1") == prices.of("student-ax4") == Price(1, 1)
    steep = Prices({"student-ax2": Price(8, 8), "student-ax4": Price(1, 1)})
    assert 0 < steep.of("student-ax16").cpu_s < 1


@pytest.mark.parametrize("recipe", ["student_only", "hinton", "mt_pkdot", "amid"])
def test_a_pilot_prices_every_kind_of_work(run, order, stages_order, recipe):
    one = run(recipe)
    fold = opened(one.data, 0, with_test=False, device="cpu")
    samples = {}
    for kind in ("search", "test"):
        asked = order(kind, one, run(recipe, seed=6))
        samples[key(one, 2, is_test=kind == "test")] = Sample(asked, fold)
    if recipe in {"hinton", "mt_pkdot"}:
        for kind in ("teacher", "teacher_outputs", *(["alignment"] if recipe == "mt_pkdot" else [])):
            asked = stages_order("teacher" if kind == "teacher" else "teacher_outputs", "joint", one)
            samples[stage_key(kind, "joint", one, sizes(one), 1)] = Sample(asked, fold)
    found = pilot(samples, 60)
    assert set(found) == set(samples)
    assert all(0 < price.cpu_s < 10 for price in found.values())


def test_a_longer_training_has_a_higher_price(run, order):
    fold = opened(run().data, 0, with_test=False, device="cpu")
    short, long = (run("hinton", epochs=epochs) for epochs in (1, 60))
    found = pilot({key(one, 1): Sample(order("search", one), fold) for one in (short, long)}, 60)
    assert found[key(long, 1)].cpu_s > 5 * found[key(short, 1)].cpu_s


def test_a_pilot_stops_when_its_time_is_over(run, order):
    one = run()
    fold = opened(one.data, 0, with_test=False, device="cpu")
    assert pilot({key(one, 1): Sample(order("search", one), fold)}, 0) == {}
    assert isinstance(order("search", one), Order)
