import numpy as np
import pytest

from mmdistill.data.folds import held_out_folds
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.forecast import _judged, beyond, forecast
from mmdistill.pipeline.run import RunSettings


def forecast_of(privileged="audio", fraction=1.0, **options):
    tree = {
        "data": {
            "dataset": "planted",
            "options": {"rows": [600, 40, 40], **options},
            "student": ["face"],
            "privileged": [privileged],
            "label_fraction": fraction,
        },
        "network": {"width": 16, "depth": 1},
        "teachers": {"epochs": 8, "out_of_fold": 3},
    }
    run = RunSettings.model_validate(tree)
    return forecast(run, opened(run.data, 0, with_test=False, device="cpu"), seed=3)


def test_what_both_modalities_show_can_be_distilled():
    found = forecast_of(redundant=2.0, student_only=0.5, privileged_only=1.0)
    assert found.beyond_label > 0.05
    assert found.beyond_label > 2 * found.spread / np.sqrt(found.folds)
    assert found.privileged_score > 0.6
    assert (found.labelled, found.unlabelled, found.label_supply, found.folds) == (600, 0.0, 0.0, 5)


@pytest.mark.parametrize("seed", [0, 2])
def test_of_privileged_noise_there_is_nothing_to_distil(seed):
    found = forecast_of("decoy", student_only=2.0, seed=seed)
    assert found.beyond_label <= 0
    assert found.privileged_score < 0.35


def test_a_good_teacher_that_shares_nothing_with_the_student_has_the_label_to_give_and_no_more():
    found = forecast_of(fraction=0.5, redundant=0.0, student_only=1.0, privileged_only=4.0)
    assert abs(found.beyond_label) < 0.02
    assert found.joint_score > found.student_score + 0.2
    assert found.unlabelled == pytest.approx(0.5)
    assert found.label_supply == pytest.approx((found.joint_score - found.student_score) / 2)


def judged(x_ND, target_NC, labels):
    part = type("Part", (), {"labels": labels, "groups": np.arange(len(labels)).astype(str)})
    everything = np.full(len(labels), True)
    folds = [held_out_folds(part, everything, count, 1) for count in (5, 3)]
    left, there = np.array(list(_judged(x_ND, target_NC, labels, *folds))).T
    return 1 - left.sum() / there.sum()


def test_linear_and_curved_knowledge_is_found_and_the_label_does_not_count():
    generator = np.random.default_rng(2)
    x_ND = generator.standard_normal((400, 3))
    labels = generator.integers(3, size=400)
    by_class_NC = 10.0 * np.eye(3)[labels]
    noise_NC = generator.standard_normal((400, 3))
    assert judged(x_ND, by_class_NC + x_ND, labels) > 0.99
    assert judged(x_ND, by_class_NC + np.cos(2 * x_ND), labels) > 0.8
    assert judged(x_ND, by_class_NC + noise_NC, labels) < 0.02
    assert judged(x_ND, by_class_NC + x_ND + noise_NC, labels) == pytest.approx(0.5, abs=0.1)


def test_soft_labels_are_centred_log_probabilities_and_residuals_in_regression():
    logits = np.array([[2.0, 0.0, 1.0]])
    assert beyond(logits + 5, np.array([0])) == pytest.approx(logits - 1)
    targets = np.array([[1.0], [2.0]])
    assert beyond(np.array([[1.5], [2.0]]), targets) == pytest.approx(np.array([[0.5], [0.0]]))
