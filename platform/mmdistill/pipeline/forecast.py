"""Is there anything to distil: what soft labels say beyond the label, seen from the student's side.

The teacher is the network on the privileged modalities. Its soft labels on a row of class y are taken from
the copy that did not train on that row; what is left of them minus their mean over class y is what they know
beyond the label. A student can learn of that what its own modalities predict. So it is fitted from the
student's input, on some rows, and judged on others: R^2 is 1 where the student's modalities tell it all, and
0 or less where they tell nothing, however good the teacher is. (A teacher that sees the student's input too
would always be predictable, by what it has from there.)

Where labels are missing, the teacher on all modalities also stands in for them: label supply.

Axes: N rows, C outputs, D inputs of the student, F features, L penalties.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.spatial.distance import pdist
from scipy.special import log_softmax

from mmdistill.data.folds import held_out_folds
from mmdistill.data.samples import Labels
from mmdistill.pipeline.fold import Fold
from mmdistill.pipeline.run import RunSettings
from mmdistill.pipeline.teaching import teacher_outputs, train_teachers
from mmdistill.randomness import derive_seed, numpy_generator
from mmdistill.settings import edited
from mmdistill.training.metrics import regression_metrics
from mmdistill.training.runtime import LocalRuntime

Array = npt.NDArray[np.float64]

FOLDS, INNER = 5, 5
# More change nothing in the order of data sets.
MOST_EPOCHS = 15
FEATURES = 256
# Bandwidths in medians of the distance between two rows; None is the input itself.
BANDWIDTHS = (None, 0.5, 1.0, 2.0)
# Per row, features being of unit size.
PENALTIES_L = np.logspace(-4, 1, 11)
_TEACHER, _STUDENT, _BOTH = "privileged", "student", "joint"


class Forecast(NamedTuple):
    """What can be expected of distillation in one data context.

    Attributes:
        student, privileged: modalities.
        label_fraction: share of the training rows that keep their label.
        labelled: these rows.
        beyond_label: cross-validated R^2 of the teacher's soft labels beyond the label from the student's
            input; at most 1, and 0 or less where nothing of them can be predicted.
        spread: standard deviation of that R^2 over the folds.
        folds: how many there were.
        unlabelled: share of the training rows without a label.
        label_supply: that share times what the teacher on all modalities scores above a plain student: what
            it could add by standing in for labels.
        student_score: accuracy or CCC of a plain student on labelled rows it was not trained on.
        privileged_score: the same of the teacher on the privileged modalities.
        joint_score: the same of the teacher on all modalities.
    """

    student: tuple[str, ...]
    privileged: tuple[str, ...]
    label_fraction: float
    labelled: int
    beyond_label: float
    spread: float
    folds: int
    unlabelled: float
    label_supply: float
    student_score: float
    privileged_score: float
    joint_score: float


def forecast(run: RunSettings, fold: Fold, seed: int) -> Forecast:
    """Return the forecast for the data and the teacher settings of a run; some seconds of training.

    Args:
        run: with privileged modalities.
        fold: its data.
        seed: of the label rows, the folds and the networks.
    """
    held_out, labelled_N = _held_out(run, fold, seed)
    part = fold.arrays.train
    # Targets are standardised here, as what the networks say: each weighs alike.
    labels, rows = fold.train.labels.cpu().numpy()[labelled_N], np.flatnonzero(labelled_N)
    x_ND = np.concatenate([part.inputs[name][rows] for name in run.data.student], axis=1).astype(np.float64)
    target_NC = beyond(held_out[_TEACHER], labels)
    fold_N = held_out_folds(part, labelled_N, FOLDS, derive_seed(seed, "forecast folds"))[rows]
    inner_N = held_out_folds(part, labelled_N, INNER, derive_seed(seed, "forecast inner folds"))[rows]
    found = np.array(list(_judged(x_ND, target_NC, labels, fold_N, inner_N)))
    left_F, total_F = found[:, 0], found[:, 1]
    scores = {name: _score(outputs, labels) for name, outputs in held_out.items()}
    unlabelled = 1 - len(rows) / len(part)
    return Forecast(
        student=run.data.student,
        privileged=run.data.privileged,
        label_fraction=run.data.label_fraction,
        labelled=len(rows),
        beyond_label=float(1 - left_F.sum() / total_F.sum()),
        spread=float(np.std(1 - left_F / total_F, ddof=1)),
        folds=len(found),
        unlabelled=unlabelled,
        label_supply=unlabelled * (scores[_BOTH] - scores[_STUDENT]),
        student_score=scores[_STUDENT],
        privileged_score=scores[_TEACHER],
        joint_score=scores[_BOTH],
    )


def _held_out(run: RunSettings, fold: Fold, seed: int) -> tuple[dict[str, Array], npt.NDArray[np.bool_]]:
    """Return what each network says on labelled rows that it was not trained on, and which rows these are."""
    names = (_TEACHER, _STUDENT, _BOTH)
    edits = {"teachers.pool": names, "teachers.training": "frozen", "alignment.kind": "none", "seed": seed}
    edits |= {"selection.policy": "sample", "hallucinator.kind": "none"}
    edits["teachers.epochs"] = min(run.teachers.epochs, MOST_EPOCHS)
    tree = edited({**run.as_json(), "terms": {}}, edits)
    plain, runtime = RunSettings.model_validate(tree), LocalRuntime(fold.device)
    teachers = {name: train_teachers([plain], name, fold, runtime) for name in names}
    (entry,) = teacher_outputs([plain], teachers, None, fold)
    labelled_N = fold.labelled(run.data.label_fraction, seed)
    outputs = entry.tensors["held_out"].cpu().double().numpy()[:, labelled_N]
    return dict(zip(entry.facts["teachers"], outputs, strict=True)), labelled_N


def beyond(outputs_NC: Array, labels: Labels) -> Array:
    """Return soft labels as centred log-probabilities; of a regression the outputs minus the targets [N, C].

    Their mean over a class is taken off where they are fitted: it must come from other rows.
    """
    if labels.ndim > 1:
        return np.asarray(outputs_NC - labels)
    log_p_NC = log_softmax(outputs_NC, axis=1)
    return np.asarray(log_p_NC - log_p_NC.mean(axis=1, keepdims=True))


def _judged(
    x_ND: Array,
    target_NC: Array,
    labels: Labels,
    fold_N: npt.NDArray[np.int64],
    inner_N: npt.NDArray[np.int64],
) -> Iterator[tuple[float, float]]:
    """Return per fold the squares that are left after the fit, and those that were there."""
    for fold in range(int(fold_N.max()) + 1):
        train_N, test_N = fold_N != fold, fold_N == fold
        features = {width: _features(x_ND, train_N, width) for width in BANDWIDTHS}
        best = _best(features, target_NC, labels, train_N, inner_N)
        width, penalty = best or (None, 0)
        left_L, there = _errors(features[width], target_NC, labels, train_N, test_N)
        yield (float(left_L[penalty]) if best else there), there


def _best(
    features: Mapping[float | None, Array],
    target_NC: Array,
    labels: Labels,
    train_N: npt.NDArray[np.bool_],
    inner_N: npt.NDArray[np.int64],
) -> tuple[float | None, int] | None:
    """Return bandwidth and penalty of the best fit; None if no fit is clearly better than none.

    By the rule of one standard error over inner folds (Breiman et al., 1984).
    """
    gains = {}
    for width, z_NF in features.items():
        found = []
        for inner in range(int(inner_N.max()) + 1):
            fit_N, see_N = train_N & (inner_N != inner), train_N & (inner_N == inner)
            left_L, there = _errors(z_NF, target_NC, labels, fit_N, see_N)
            found.append(there - left_L)
        gains[width] = np.array(found)
    width = max(gains, key=lambda width: float(gains[width].mean(axis=0).max()))
    gain_L = gains[width].mean(axis=0)
    penalty = int(gain_L.argmax())
    error = float(gains[width][:, penalty].std(ddof=1)) / math.sqrt(len(gains[width]))
    return (width, penalty) if gain_L[penalty] > error else None


def _features(x_ND: Array, train_N: npt.NDArray[np.bool_], width: float | None) -> Array:
    """Return the input, or random Fourier features of a Gaussian kernel (Rahimi and Recht, 2007)."""
    if width is None:
        return np.asarray(x_ND / np.sqrt(x_ND.shape[1]))
    some = x_ND[train_N][:: max(1, int(train_N.sum()) // 300)]
    scale = width * max(float(np.median(pdist(some))), 1e-9)
    generator = numpy_generator("random Fourier features", x_ND.shape[1])
    frequency_DF = generator.standard_normal((x_ND.shape[1], FEATURES)) / scale
    phase_F = generator.uniform(0, 2 * np.pi, FEATURES)
    return np.asarray(np.sqrt(2 / FEATURES) * np.cos(x_ND @ frequency_DF + phase_F))


def _errors(
    z_NF: Array,
    target_NC: Array,
    labels: Labels,
    fit_N: npt.NDArray[np.bool_],
    see_N: npt.NDArray[np.bool_],
) -> tuple[Array, float]:
    """Return the squares left on the rows seen for each penalty, and those that were there."""
    known_NC = _without_class_means(target_NC, labels, fit_N)
    centre_F = z_NF[fit_N].mean(axis=0)
    fitted_NF, seen_NF = z_NF[fit_N] - centre_F, z_NF[see_N] - centre_F
    value_F, vector_FF = eigh(fitted_NF.T @ fitted_NF)
    inner_FC = vector_FF.T @ (fitted_NF.T @ known_NC[fit_N])
    turned_NF = seen_NF @ vector_FF
    rows = int(fit_N.sum())
    left_L = [
        np.square(known_NC[see_N] - turned_NF @ (inner_FC / (value_F + rows * penalty)[:, None])).sum()
        for penalty in PENALTIES_L
    ]
    return np.array(left_L), float(np.square(known_NC[see_N]).sum())


def _without_class_means(target_NC: Array, labels: Labels, fit_N: npt.NDArray[np.bool_]) -> Array:
    """Return the target minus the mean of its class, or of all rows in regression, over the rows fitted."""
    if labels.ndim > 1:
        return np.asarray(target_NC - target_NC[fit_N].mean(axis=0))
    left_NC = target_NC - target_NC[fit_N].mean(axis=0)
    for label in np.unique(labels[fit_N]):
        here = labels == label
        left_NC[here] = target_NC[here] - target_NC[here & fit_N].mean(axis=0)
    return np.asarray(left_NC)


def _score(outputs_NC: Array, labels: Labels) -> float:
    if labels.ndim == 1:
        return float((outputs_NC.argmax(axis=1) == labels).mean())
    names = tuple(str(t) for t in range(labels.shape[1]))
    return regression_metrics(outputs_NC, labels.astype(np.float64), names)["ccc"]
