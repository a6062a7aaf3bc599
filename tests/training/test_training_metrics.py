"""Metrics against scikit-learn and against their definitions."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss

from mmdistill.training.metrics import (
    adaptive_calibration_error,
    best_temperature,
    classification_metrics,
    concordance,
    regression_metrics,
)


@pytest.fixture
def drawn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 200)
    logits = generator.standard_normal((200, 5)) + 1.5 * np.eye(5)[labels]
    return logits, labels


def rows(count):
    return np.arange(count).astype(np.str_)


def test_classification_agrees_with_scikit_learn(drawn):
    logits, labels = drawn
    p, predicted = softmax(logits, axis=1), logits.argmax(axis=1)
    ours = classification_metrics(logits, labels, rows(200))
    assert ours["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert ours["log_loss"] == pytest.approx(log_loss(labels, p, labels=range(5)))
    brier = brier_score_loss(labels, p, labels=range(5), scale_by_half=False)
    assert ours["brier"] == pytest.approx(brier)
    macro = f1_score(labels, predicted, average="macro", labels=np.unique(labels))
    assert ours["macro_f1"] == pytest.approx(macro)
    recall = [accuracy_score(labels[labels == c], predicted[labels == c]) for c in range(4)]
    assert ours["worst_class_accuracy"] == pytest.approx(min(recall))
    assert "worst_group_accuracy" not in ours


def test_extreme_logits_stay_finite():
    logits = np.array([[1e4, -1e4], [1e4, -1e4]])
    ours = classification_metrics(logits, np.array([0, 1]), rows(2))
    assert ours["log_loss"] == pytest.approx(1e4)
    assert ours["brier"] == pytest.approx(1.0)
    assert all(math.isfinite(value) for value in ours.values())


def test_the_worst_group_counts_where_groups_have_several_rows(drawn):
    logits, labels = drawn
    groups = np.array(["a", "b", "b", "c"] * 50)
    hit = logits.argmax(axis=1) == labels
    ours = classification_metrics(logits, labels, groups)["worst_group_accuracy"]
    assert ours == pytest.approx(min(hit[groups == name].mean() for name in "abc"))


def test_calibration_error_by_hand():
    confidence = np.array([0.9, 0.1, 0.5, 0.7])
    hit = np.array([1.0, 0.0, 1.0, 0.0])
    # Two bins of equal mass: {0.1, 0.5} with accuracy 1/2 and {0.7, 0.9} with accuracy 1/2.
    assert adaptive_calibration_error(confidence, hit, bins=2) == pytest.approx((0.2 + 0.3) / 2)
    # More bins than rows: each row is a bin.
    assert adaptive_calibration_error(confidence, hit) == pytest.approx((0.1 + 0.1 + 0.5 + 0.7) / 4)


def test_bins_of_unequal_numbers_of_rows_are_weighted_by_them():
    confidence, hit = np.array([0.1, 0.2, 0.6]), np.array([0.0, 0.0, 1.0])
    assert adaptive_calibration_error(confidence, hit, bins=2) == pytest.approx((2 * 0.15 + 0.4) / 3)


def test_a_calibrated_prediction_has_a_small_error():
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.3, 1.0, 20_000)
    hit = (generator.uniform(size=20_000) < confidence).astype(float)
    assert adaptive_calibration_error(confidence, hit) < 0.02


def test_the_temperature_undoes_an_overconfident_scale():
    generator = np.random.default_rng(2)
    logits = generator.standard_normal((20_000, 3)) * 1.5
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    labels = (generator.uniform(size=(20_000, 1)) > cumulative).sum(axis=1)
    assert best_temperature(4 * logits, labels) == pytest.approx(4, rel=0.05)
    assert best_temperature(logits, labels) == pytest.approx(1, rel=0.05)


def test_the_temperature_stays_in_its_interval():
    perfect = 5.0 * np.eye(3)
    assert 0.05 <= best_temperature(perfect, np.arange(3)) < 0.2
    assert 19 < best_temperature(-perfect, np.arange(3)) <= 20.001


def test_concordance_by_its_formula():
    p, t = np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 5.0])
    rho = np.corrcoef(p, t)[0, 1]
    expected = 2 * rho * p.std() * t.std() / (p.var() + t.var() + (p.mean() - t.mean()) ** 2)
    assert concordance(p, t) == pytest.approx(expected)
    assert concordance(t, t) == pytest.approx(1)
    assert concordance(-t, t) == pytest.approx(-t.var() * 2 / (2 * t.var() + 4 * t.mean() ** 2))


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_a_constant_prediction_scores_nothing(constant):
    t = np.array([[1.0], [2.0], [3.0]])
    ours = regression_metrics(np.full((3, 1), constant), t, ("valence",))
    assert ours["ccc"] == 0
    assert ours["pearson_valence"] == 0
    assert ours["rmse"] == pytest.approx(np.sqrt(np.mean((t - constant) ** 2)))


def test_a_constant_prediction_of_a_constant_target_scores_nothing():
    assert concordance(np.ones(3), np.ones(3)) == 0


def test_regression_metrics_are_per_target_and_averaged():
    generator = np.random.default_rng(3)
    t, p = generator.standard_normal((2, 50, 2))
    ours = regression_metrics(p, t, ("valence", "arousal"))
    for column, name in enumerate(("valence", "arousal")):
        assert ours[f"ccc_{name}"] == pytest.approx(concordance(p[:, column], t[:, column]))
        assert ours[f"pearson_{name}"] == pytest.approx(np.corrcoef(p[:, column], t[:, column])[0, 1])
        rmse = np.sqrt(((p[:, column] - t[:, column]) ** 2).mean())
        assert ours[f"rmse_{name}"] == pytest.approx(rmse)
    assert ours["ccc"] == pytest.approx((ours["ccc_valence"] + ours["ccc_arousal"]) / 2)
    assert ours["rmse"] == pytest.approx((ours["rmse_valence"] + ours["rmse_arousal"]) / 2)
