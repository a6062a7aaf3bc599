"""The evaluation stage: every metric of a split, and the predictions behind them.

Axes: K lanes, N rows, C outputs.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from mmdistill.data.opening import Part
from mmdistill.models.cost import latency_ms, multiply_accumulates, parameters_per_lane
from mmdistill.models.network import Network
from mmdistill.pipeline.fold import Fold
from mmdistill.training.metrics import (
    adaptive_calibration_error,
    best_temperature,
    classification_metrics,
    regression_metrics,
)
from mmdistill.training.objectives import TensorPart, outputs_on

Array = npt.NDArray[np.float64]


def evaluate(
    student: Network, fold: Fold, part: Part, tensors: TensorPart, lanes: int
) -> list[dict[str, float]]:
    """Return the metrics of every lane on a part of the fold.

    The temperature of ``ace_scaled`` is fitted on the validation rows, whatever the part.
    """
    predicted_KNC = outputs_in_units(student, fold, tensors, lanes)
    validation_KNC = outputs_in_units(student, fold, fold.validation, lanes)
    price = _price(student, fold)
    return [_lane(predicted_KNC[k], validation_KNC[k], fold, part) | price for k in range(lanes)]


def outputs_in_units(student: Network, fold: Fold, tensors: TensorPart, lanes: int) -> Array:
    """Return the logits, or the predicted targets in their own units, [K, N, C] in float64."""
    logits_KNC = outputs_on(student, tensors, lanes).logits_KBC
    return fold.in_units(logits_KNC.cpu().double().numpy())


def probabilities(fold: Fold, logits_NC: Array) -> Array:
    """Return class probabilities, or the predicted targets themselves."""
    found: Array = logits_NC if fold.task == "regression" else softmax(logits_NC, axis=-1)
    return found


def _lane(predicted_NC: Array, validation_NC: Array, fold: Fold, part: Part) -> dict[str, float]:
    if not np.isfinite(predicted_NC).all():
        return {}
    if fold.task == "regression":
        return regression_metrics(predicted_NC, part.labels.astype(np.float64), fold.card.targets)
    metrics = classification_metrics(predicted_NC, part.labels, part.groups)
    temperature = best_temperature(validation_NC, fold.arrays.validation.labels)
    scaled = softmax(predicted_NC / temperature, axis=1)
    hit = (scaled.argmax(axis=1) == part.labels).astype(np.float64)
    metrics["ace_scaled"] = adaptive_calibration_error(scaled.max(axis=1), hit)
    metrics["temperature"] = temperature
    return metrics


def _price(student: Network, fold: Fold) -> dict[str, float]:
    widths = fold.widths(student.modalities)
    solo = Network(widths, fold.outputs, student.settings, [0], student.missing)
    return {
        "parameters": float(parameters_per_lane(student)),
        "macs": float(multiply_accumulates(student)),
        "latency_ms": latency_ms(solo, widths),
    }
