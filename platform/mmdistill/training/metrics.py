"""What is measured on a split, in NumPy and float64.

Axes: N rows, C classes, T targets, S streams of one prediction.
"""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]

ACE_BINS = 15


def classification_metrics(logits_NC: Array, labels_N: Labels, groups_N: Names) -> dict[str, float]:
    """Return accuracy, log-loss, Brier score, adaptive calibration error, macro-F1, worst class and group.

    Fractions are 0 to 1, log-loss in nats. ``worst_group_accuracy`` is absent where every row is a group of
    its own. Classes without a row do not count towards macro-F1 and worst class.
    """
    log_p_NC = log_softmax(logits_NC, axis=1)
    p_NC, predicted_N = np.exp(log_p_NC), log_p_NC.argmax(axis=1)
    hit_N = (predicted_N == labels_N).astype(np.float64)
    present = np.unique(labels_N)
    one_hot = np.eye(p_NC.shape[1])[labels_N]
    metrics = {
        "accuracy": float(hit_N.mean()),
        "log_loss": float(-log_p_NC[np.arange(len(labels_N)), labels_N].mean()),
        "brier": float(((p_NC - one_hot) ** 2).sum(axis=1).mean()),
        "ace": adaptive_calibration_error(p_NC.max(axis=1), hit_N),
        "macro_f1": float(np.mean([_f1(predicted_N, labels_N, c) for c in present])),
        "worst_class_accuracy": float(min(hit_N[labels_N == c].mean() for c in present)),
    }
    if len(names := np.unique(groups_N)) < len(groups_N):
        metrics["worst_group_accuracy"] = float(min(hit_N[groups_N == name].mean() for name in names))
    return metrics


def adaptive_calibration_error(confidence_N: Array, hit_N: Array, bins: int = ACE_BINS) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal numbers of rows.

    Of the predicted class only (Nixon et al., 2019, with one class and equal-mass bins). Range [0, 1].
    """
    order = np.argsort(confidence_N, kind="stable")
    pieces = [piece for piece in np.array_split(order, bins) if len(piece)]
    gaps = [len(piece) * abs(confidence_N[piece].mean() - hit_N[piece].mean()) for piece in pieces]
    return float(sum(gaps) / len(confidence_N))


def best_temperature(logits_NC: Array, labels_N: Labels) -> float:
    """Return the temperature in [0.05, 20] whose softened probabilities have the least log-loss."""

    def log_loss(log_temperature: float) -> float:
        log_p = log_softmax(logits_NC / np.exp(log_temperature), axis=1)
        return float(-log_p[np.arange(len(labels_N)), labels_N].mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=np.log([0.05, 20.0]), method="bounded").x))


def regression_metrics(predicted_NT: Array, target_NT: Array, names: tuple[str, ...]) -> dict[str, float]:
    """Return the concordance (CCC), Pearson correlation and RMSE of each target, and mean CCC and RMSE."""
    metrics: dict[str, float] = {}
    for t, name in enumerate(names):
        metrics[f"ccc_{name}"] = concordance(predicted_NT[:, t], target_NT[:, t])
        metrics[f"pearson_{name}"] = _pearson(predicted_NT[:, t], target_NT[:, t])
        metrics[f"rmse_{name}"] = float(np.sqrt(np.mean((predicted_NT[:, t] - target_NT[:, t]) ** 2)))
    metrics["ccc"] = float(np.mean([metrics[f"ccc_{name}"] for name in names]))
    metrics["rmse"] = float(np.mean([metrics[f"rmse_{name}"] for name in names]))
    return metrics


def concordance(predicted_N: Array, target_N: Array) -> float:
    """Return Lin's concordance over all rows, population form; a constant prediction scores 0."""
    covariance = np.mean((predicted_N - predicted_N.mean()) * (target_N - target_N.mean()))
    spread = predicted_N.var() + target_N.var() + (predicted_N.mean() - target_N.mean()) ** 2
    return float(2 * covariance / spread) if spread > 0 else 0.0


def _pearson(predicted_N: Array, target_N: Array) -> float:
    if predicted_N.std() == 0 or target_N.std() == 0:
        return 0.0
    return float(np.corrcoef(predicted_N, target_N)[0, 1])


def _f1(predicted_N: Labels, labels_N: Labels, c: int) -> float:
    hits = int(((predicted_N == c) & (labels_N == c)).sum())
    return 2 * hits / int((predicted_N == c).sum() + (labels_N == c).sum())
