"""What may be bold: a best arm that the crossed intervals support."""

from mmdistill.reports.readings import readings_of
from mmdistill.reports.standing import Standing, standing


def marks(study, among=None):
    return standing(readings_of(study.tables()), among)


def test_a_clear_winner_is_best_and_the_next_mean_second(made):
    assert marks(made) == Standing("hinton", "self_distillation")


def test_a_winner_by_chance_is_not_best(new_study):
    study = new_study(["student_only", "hinton"])
    study.fill({"student_only": 0.75, "hinton": 0.77})
    assert marks(study) == Standing(None, "student_only")


def test_the_best_must_beat_every_arm_not_only_the_second(new_study):
    # The third arm has the lower mean, but varies so much that nothing can be said against it.
    study = new_study(["student_only", "steady", "erratic"])
    study.fill({"student_only": 0.4, "steady": 0.8}, rows=100)
    for seed in range(8):
        study.add_test("erratic", seed, [(row + seed) % 2 == 0 or seed < 4 for row in range(100)])
    assert marks(study).best is None
    assert marks(study, {"student_only", "steady"}) == Standing("steady", "student_only")


def test_a_frozen_arm_is_neither_best_nor_second(new_study):
    study = new_study(["student_only", "hinton", {"name": "knocked.frozen", "frozen": "hinton"}])
    study.fill({"student_only": 0.4, "hinton": 0.7, "knocked.frozen": 0.95})
    assert marks(study) == Standing("hinton", "student_only")


def test_nothing_is_best_before_the_test_split_was_opened(made):
    made.trials = [trial for trial in made.trials if trial.phase != "test"]
    made.predictions, made.openings = [], []
    assert marks(made) == Standing(None, "self_distillation")


def test_one_arm_stands_alone(new_study):
    study = new_study(["student_only"])
    study.fill({"student_only": 0.4})
    assert marks(study) == Standing(None, None)
