"""Losses between outputs against slow references: numpy and loops, one lane after another.

Every case runs with two leading axes and settings that differ between lanes.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import kendalltau, rankdata

from mmdistill.errors import NumericsError
from mmdistill.losses.base import LOSSES
from mmdistill.losses.experts import saliency_weights
from mmdistill.registry import import_submodules

import_submodules("mmdistill.losses")

LEAD, B, C = (2, 3), 7, 5
LANES = list(itertools.product(*map(range, LEAD)))
CLASSES = torch.tensor([3, 0, 4])
VALUES = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0], dtype=torch.float64)


def draw(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*LEAD, *shape, generator=generator, dtype=torch.float64)


def lanes(low, high):
    """Return a setting that differs between lanes."""
    return torch.linspace(low, high, 6, dtype=torch.float64).view(LEAD)


def softmax(row):
    powers = np.exp(row - np.max(row))
    return powers / powers.sum()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mean_over_rows(of_row):
    """Return a slow loss that is the mean of a function of each row of its tensors."""

    def slow(*tensors, **settings):
        return np.mean([of_row(*rows, **settings) for rows in zip(*tensors, strict=True)])

    return slow


@mean_over_rows
def slow_kd(s, t, temperature):
    return temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))


@mean_over_rows
def slow_softce(s, t, temperature):
    return -sum(softmax(t / temperature) * np.log(softmax(s / temperature)))


@mean_over_rows
def slow_skl(s, t):
    p, q = softmax(s), softmax(t)
    return sum(p * np.log(p / q) + q * np.log(q / p))


def slow_mlld(s, t):
    levels = []
    for T in (2, 3, 4, 5, 6):
        p, q = (np.stack([softmax(row / T) for row in z]) for z in (s, t))
        by_class = [(p[:, i] @ p[:, j] - q[:, i] @ q[:, j]) ** 2 for i in range(C) for j in range(C)]
        by_sample = [(p[i] @ p[j] - q[i] @ q[j]) ** 2 for i in range(B) for j in range(B)]
        levels.append((slow_kd(s, t, temperature=T) + np.mean(by_class) + np.mean(by_sample)) / 3)
    return np.mean(levels)


@mean_over_rows
def slow_dkd(s, t, y, temperature, alpha, beta):
    p, q = softmax(t / temperature), softmax(s / temperature)
    rest = [c for c in range(C) if c != y]
    tckd = kl([p[y], p[rest].sum()], [q[y], q[rest].sum()])
    nckd = kl(p[rest] / p[rest].sum(), q[rest] / q[rest].sum())
    return temperature**2 * (alpha * tckd + beta * nckd)


@mean_over_rows
def slow_c2kd(s, t, y, threshold, temperature):
    if not kendalltau(t, s).statistic > threshold:
        return 0.0
    s, t = s.copy(), t.copy()
    s[y] = t[y] = 0.0
    return kl(softmax(t / temperature), softmax(s / temperature))


@mean_over_rows
def slow_skd_gate(s, t, k, temperature):
    first = sorted(range(C), key=lambda c: -t[c])
    if int(np.argmax(s)) in first[: int(k)]:
        return temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))
    return -math.log(softmax(s)[first[0]])


@mean_over_rows
def slow_weak_mutual(s, t, threshold):
    return kl(softmax(t), softmax(s)) if softmax(t).max() >= threshold else 0.0


def slow_peer_advantage(s, t, y, alpha):
    gains = [math.log(softmax(t[i])[y[i]]) - math.log(softmax(s[i])[y[i]]) for i in range(B)]
    weights = np.clip(np.exp(alpha * np.array(gains)), 0.01, 100)
    return sum(w * kl(softmax(t[i]), softmax(s[i])) for i, w in enumerate(weights / weights.sum()))


def slow_peer_advantage_regression(s, t, y, alpha):
    gains = np.abs(s - y).mean(1) - np.abs(t - y).mean(1)
    weights = np.clip(np.exp(alpha * gains), 0.01, 100)
    return sum(weights / weights.sum() * ((s - t) ** 2).mean(1))


@mean_over_rows
def slow_lfme(s, t, temperature):
    return kl(softmax(t / temperature), softmax(s[CLASSES.numpy()] / temperature))


def slow_msd(s, t, temperature):
    return np.mean([slow_kd(s[m], t[m], temperature=temperature) for m in range(len(s))])


def slow_samm_target(s, t, y):
    total = 0.0
    for i in range(B):
        surest = max(range(len(t)), key=lambda m: softmax(t[m][i])[y[i]])
        total += ((s[i] - t[surest][i]) ** 2).mean()
    return total / B


def spearman(s, t, temperature):
    soft = [
        0.5 + sum(expit((b - a) / temperature) for j, b in enumerate(s) if j != i) for i, a in enumerate(s)
    ]
    return 1 - np.corrcoef(soft, rankdata(-t))[0, 1]


@mean_over_rows
def slow_rlkd(s, t, k, temperature):
    union = sorted({*np.argsort(-s)[: int(k)].tolist(), *np.argsort(-t)[: int(k)].tolist()})
    return spearman(s[union], t[union], temperature)


def slow_rlkd_batch(s, t, temperature):
    return np.mean([spearman(s[:, i], t[:, i], temperature) for i in range(s.shape[1])])


def slow_pairwise_order(s, t, threshold):
    costs = []
    for i, j in itertools.permutations(range(B), 2):
        first = expit(t[i, j])
        if max(first, 1 - first) >= threshold:
            costs.append(-math.log(expit(s[i, j]) if first > 0.5 else 1 - expit(s[i, j])))
    return np.mean(costs) if costs else 0.0


def slow_ccc(s, t, ddof):
    values = []
    for p, y in zip(s.T, t.T, strict=True):
        covariance = sum((p - p.mean()) * (y - y.mean())) / (B - ddof)
        scale = p.var(ddof=ddof) + y.var(ddof=ddof) + (p.mean() - y.mean()) ** 2
        values.append(1 - 2 * covariance / scale)
    return np.mean(values)


def slow_prediction_ccc(s, t, unbiased):
    return slow_ccc(s, t, ddof=int(unbiased))


def slow_step_regression(s, t, logits, distance, teacher_weight, student_weight):
    power = {"mse": 2, "l1": 1}[distance]
    expected = np.array([[softmax(row) @ VALUES.numpy() for row in rows] for rows in logits])
    inside, across = np.abs(expected - t) ** power, np.abs(t - s) ** power
    return teacher_weight * inside.mean() + student_weight * across.mean()


LOGITS = (draw(B, C), draw(B, C, seed=1))
NEAR = (LOGITS[1] + draw(B, C, seed=4), LOGITS[1])
LABELS = torch.arange(6 * B).view(*LEAD, B) * 3 % C
NUMBERS = (draw(B, 2), draw(B, 2, seed=1))
TEMPERATURE = {"temperature": lanes(0.7, 6)}
# Key, tensors, settings handed to both, tensors handed to the loss alone, slow reference.
CASES = [
    ("kd", LOGITS, TEMPERATURE, {}, slow_kd),
    ("softce", LOGITS, TEMPERATURE, {}, slow_softce),
    ("skl", LOGITS, {}, {}, slow_skl),
    ("mlld", LOGITS, {}, {}, slow_mlld),
    ("dkd", (*LOGITS, LABELS), TEMPERATURE | {"alpha": lanes(0.5, 2), "beta": lanes(1, 8)}, {}, slow_dkd),
    ("c2kd", (*NEAR, LABELS), TEMPERATURE | {"threshold": lanes(-0.3, 0.7)}, {}, slow_c2kd),
    ("skd_gate", NEAR, TEMPERATURE | {"k": torch.tensor([[1, 2, 3], [4, 1, 2]])}, {}, slow_skd_gate),
    ("weak_mutual", LOGITS, {"threshold": lanes(0.2, 0.95)}, {}, slow_weak_mutual),
    ("peer_advantage", (*LOGITS, LABELS), {"alpha": lanes(0.1, 3)}, {}, slow_peer_advantage),
    (
        "peer_advantage_regression",
        (*NUMBERS, draw(B, 2, seed=2)),
        {"alpha": lanes(0.1, 3)},
        {},
        slow_peer_advantage_regression,
    ),
    ("lfme", (LOGITS[0], draw(B, 3, seed=1)), TEMPERATURE, {"classes_E": CLASSES}, slow_lfme),
    ("msd", (draw(2, B, C), draw(2, B, C, seed=1)), TEMPERATURE, {}, slow_msd),
    ("samm_target", (LOGITS[0], draw(3, B, C, seed=1), LABELS), {}, {}, slow_samm_target),
    ("rlkd", LOGITS, TEMPERATURE | {"k": torch.tensor([[2, 3, 4], [5, 2, 3]])}, {}, slow_rlkd),
    ("rlkd_batch", NUMBERS, TEMPERATURE, {}, slow_rlkd_batch),
    (
        "pairwise_order",
        (draw(B, B), draw(B, B, seed=1)),
        {"threshold": lanes(0.5, 0.98)},
        {},
        slow_pairwise_order,
    ),
    ("prediction_ccc", NUMBERS, {"unbiased": False}, {}, slow_prediction_ccc),
    ("prediction_ccc", NUMBERS, {"unbiased": True}, {}, slow_prediction_ccc),
    *(
        (
            "step_regression",
            (*NUMBERS, draw(B, 2, C, seed=2)),
            {"distance": distance, "teacher_weight": lanes(0, 2), "student_weight": lanes(2, 1)},
            {"class_values_C": VALUES},
            slow_step_regression,
        )
        for distance in ("mse", "l1")
    ),
]


@pytest.mark.parametrize(
    ("name", "tensors", "settings", "extra", "slow"), CASES, ids=[case[0] for case in CASES]
)
def test_equals_its_slow_reference_in_every_lane(name, tensors, settings, extra, slow):
    together = LOSSES[name](*tensors, **settings, **extra)
    assert together.shape == LEAD
    for lane in LANES:
        own = {k: v[lane].item() if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
        expected = slow(*(tensor[lane].numpy() for tensor in tensors), **own)
        assert together[lane].item() == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def test_dkd_is_kd_when_its_parts_are_weighted_by_the_teacher():
    student, teacher = torch.zeros(1, 4).double(), torch.tensor([[1.0, 2.0, 0.0, -1.0]]).double()
    label = torch.tensor([1])
    missed = 1 - teacher.softmax(-1)[0, 1]
    parts = LOSSES["dkd"](student, teacher, label, temperature=1.0, beta=missed)
    torch.testing.assert_close(parts, LOSSES["kd"](student, teacher, temperature=1.0))


def test_lfme_is_the_mean_over_entries_times_the_number_of_classes():
    student, expert = LOGITS[0][0, 0], draw(B, 3, seed=1)[0, 0]
    theirs = torch.nn.functional.kl_div(
        (student[:, CLASSES] / 2).log_softmax(1), (expert / 2).softmax(1), reduction="none"
    )
    torch.testing.assert_close(LOSSES["lfme"](student, expert, classes_E=CLASSES), 3 * theirs.mean())
    everything = LOSSES["lfme"](student, -student, classes_E=torch.arange(student.shape[-1]))
    torch.testing.assert_close(LOSSES["lfme"](student, -student), everything)


@pytest.mark.parametrize("saliency", ["kl", "l1"])
@pytest.mark.parametrize("scope", ["sample", "population"])
def test_saliency_weights_are_shares_of_what_a_modality_changes(saliency, scope):
    full, without = draw(B, C), draw(3, B, C, seed=1)
    weights = saliency_weights(full, without, saliency=saliency, scope=scope)
    for lane in LANES:
        p, q = full[lane].softmax(-1).numpy(), without[lane].softmax(-1).numpy()
        found = np.array(
            [
                [kl(p[i], q[m, i]) if saliency == "kl" else abs(p[i] - q[m, i]).sum() for i in range(B)]
                for m in range(3)
            ]
        )
        if scope == "population":
            found = np.repeat(found.mean(1, keepdims=True), B, axis=1)
        np.testing.assert_allclose(weights[lane], found / found.sum(0), rtol=1e-9)
    even = saliency_weights(full, full[..., None, :, :].expand_as(without), saliency=saliency, scope=scope)
    torch.testing.assert_close(even, torch.full_like(even, 1 / 3))


def test_weights_of_modalities_weigh_their_divergences():
    student, teacher, weights = draw(2, B, C), draw(2, B, C, seed=1), torch.rand(*LEAD, 2, B).double()
    value = LOSSES["msd"](student, teacher, weights_LMB=weights, temperature=1.0)
    slow = sum(
        weights[0, 1, m, i] * kl(softmax(teacher[0, 1, m, i].numpy()), softmax(student[0, 1, m, i].numpy()))
        for m in range(2)
        for i in range(B)
    )
    assert value[0, 1].item() == pytest.approx(slow.item() / B, rel=1e-9)


def test_step_regression_sends_the_teacher_only_its_own_step():
    student, teacher = (tensor.clone().requires_grad_() for tensor in NUMBERS)
    settings = {"class_values_C": VALUES, "teacher_weight": 0.0}
    LOSSES["step_regression"](student, teacher, draw(B, 2, C), **settings).sum().backward()
    assert (teacher.grad == 0).all()
    assert student.grad.abs().sum() > 0


def test_ranking_is_zero_where_the_teacher_ranks_nothing_and_near_zero_for_a_sure_copy():
    student, teacher = LOGITS
    assert (LOSSES["rlkd"](student, torch.zeros_like(teacher)) == 0).all()
    assert (LOSSES["rlkd"](torch.zeros_like(student), teacher) == 1).all()
    assert (LOSSES["rlkd"](teacher, teacher, temperature=1e-3) < 1e-2).all()
    assert (LOSSES["rlkd"](-teacher, teacher, temperature=1e-3, k=C) > 1.99).all()


@pytest.mark.parametrize(
    ("name", "classes", "settings", "message"),
    [
        ("dkd", 2, {}, "`student_LBC` must have >= 3 classes, but has 2: NCKD is always 0"),
        ("rlkd", 2, {}, "`student_LBC` must have >= 3 classes to rank, but has 2"),
        ("rlkd", 4, {"k": 1}, "`k` must be >= 2, but is 1"),
        ("skd_gate", 2, {"k": 2}, "`k` must be >= 1 and below the 2 classes, but is 2"),
        ("skd_gate", 4, {"k": torch.tensor([1, 0])}, "`k` must be >= 1 and below the 4 classes, but is 0"),
        ("lfme", 4, {"classes_E": torch.tensor([1])}, "`classes_E` must name >= 2 classes, but names 1"),
    ],
)
def test_refuses_what_is_empty_by_definition(name, classes, settings, message):
    logits = torch.zeros(2, 3, classes)
    labels = [torch.zeros(2, 3)] if name == "dkd" else []
    with pytest.raises(NumericsError, match=message):
        LOSSES[name](logits, logits, *labels, **settings)
