"""Losses between features and maps against slow references: numpy and loops, one lane after another.

Every case runs with two leading axes and settings that differ between lanes.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from mmdistill.losses.base import LOSSES, unit_rows
from mmdistill.losses.noise_contrastive import normaliser
from mmdistill.registry import import_submodules

import_submodules("mmdistill.losses")

LEAD, B = (2, 3), 7
LANES = list(itertools.product(*map(range, LEAD)))


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*LEAD, *shape, generator=generator, dtype=torch.float64)


def lanes(low, high):
    """Return a setting that differs between lanes."""
    return torch.linspace(low, high, 6, dtype=torch.float64).view(LEAD)


def length(x):
    return math.sqrt(sum(float(v) ** 2 for v in np.ravel(x)))


def matrix(of_pair, first, second=None):
    """Return a function of every pair of rows."""
    second = first if second is None else second
    return np.array([[of_pair(a, b) for b in second] for a in first])


def cosine(a, b):
    return a @ b / length(a) / length(b)


def huber(a, b):
    d = np.abs(a - b)
    return np.mean(np.where(d < 1, d * d / 2, d - 0.5))


def slow_fitnet(s, t):
    return sum((a - b) ** 2 for a, b in zip(s.ravel(), t.ravel(), strict=True)) / s.size


def slow_pkd_cos(s, t):
    return 1 - cosine(s.ravel(), t.ravel())


def slow_class_prototypes(s, prototypes, y):
    return np.mean([np.mean((row - prototypes[label]) ** 2) for row, label in zip(s, y, strict=True)])


def halved(x):
    """Return maps with blocks of 2 x 2 positions averaged."""
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def attention(maps):
    square = sum(channel**2 for channel in maps) / len(maps)
    return square.ravel() / length(square)


def slow_at(s, t):
    return np.mean([(attention(a) - attention(halved(b))) ** 2 for a, b in zip(s, t, strict=True)])


def slow_ft(s, t):
    return np.mean([abs(attention(halved(a)) - attention(b)) for a, b in zip(s, t, strict=True)])


def slow_nst(s, t):
    total = 0.0
    for first, second in zip(s, t, strict=True):
        x, y = ([c.ravel() / length(c) for c in maps] for maps in (first, second))
        total += np.mean(matrix(np.dot, x) ** 2) + np.mean(matrix(np.dot, y) ** 2)
        total -= 2 * np.mean(matrix(np.dot, x, y) ** 2)
    return total / B


def slow_ab(s, t, margin):
    total = 0.0
    for a, b in zip(s.ravel(), t.ravel(), strict=True):
        if b > 0 and a <= margin:
            total += (a - margin) ** 2
        if b <= 0 and a > -margin:
            total += (a + margin) ** 2
    return total / B / 1000 * 3


def slow_sp(s, t):
    G_s, G_t = matrix(np.dot, s), matrix(np.dot, t)
    rows = [length(a / length(a) - b / length(b)) ** 2 for a, b in zip(G_s, G_t, strict=True)]
    return sum(rows) / B**2


def shares(kernel):
    return [row / sum(row) for row in kernel]


def slow_pkt(s, t):
    q, p = (
        shares(matrix(lambda a, b: (a @ b / (length(a) + 1e-7) / (length(b) + 1e-7) + 1) / 2, z))
        for z in (s, t)
    )
    return np.mean(
        [a * math.log((a + 1e-7) / (b + 1e-7)) for a, b in zip(np.ravel(p), np.ravel(q), strict=True)]
    )


def slow_ifd(s, t):
    def angle(a, b):
        return (a @ b / (length(a) + 1e-6) / (length(b) + 1e-6) + 1) / 2

    def nearness(a, b):
        return 1 / (1 + math.sqrt(length(a - b) ** 2 + 1e-6))

    total = 0.0
    for kernel in (angle, nearness):
        q, p = (np.array(shares(matrix(kernel, z))) for z in (s, t))
        total += np.mean((p - q) * (np.log(p) - np.log(q)))
    return total


def slow_cc(s, t):
    delta = abs(s - t)
    return np.mean([delta[i] @ delta[i + 1] for i in range(B - 1)])


def slow_cckd(s, t, kernel, gamma, order, squared):
    def taylor(a, b):
        return sum(
            math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * (a @ b) ** p
            for p in range(order + 1)
        )

    correlation = np.dot if kernel == "bilinear" else taylor
    distance = length(matrix(correlation, s) - matrix(correlation, t))
    return (distance**2 if squared else distance) / B**2


def slow_mmd(s, t, ratio, kernels):
    both = [*s, *t]
    squares = [length(a - b) ** 2 for i, a in enumerate(both) for j, b in enumerate(both) if i != j]
    widths = [np.mean(squares) * ratio ** (i - kernels // 2) for i in range(kernels)]

    def kernel(a, b):
        return sum(math.exp(-(length(a - b) ** 2) / width) for width in widths)

    return np.mean(matrix(kernel, s)) + np.mean(matrix(kernel, t)) - 2 * np.mean(matrix(kernel, s, t))


def slow_rkd(s, t, distance_weight, angle_weight):
    def relative(z):
        d = matrix(lambda a, b: length(a - b), z)
        return d / np.mean([d[i, j] for i, j in itertools.permutations(range(B), 2)])

    def angles(z):
        found = np.zeros((B, B, B))
        for i, j, k in itertools.product(range(B), repeat=3):
            if i not in (j, k):
                found[i, j, k] = cosine(z[j] - z[i], z[k] - z[i])
        return found

    return distance_weight * huber(relative(s), relative(t)) + angle_weight * huber(angles(s), angles(t))


def slow_samm(s, t):
    def relative(z):
        unit = [row / length(row) for row in z]
        d = matrix(lambda a, b: max(length(a - b), 1e-6), unit)
        return d / (d.mean() + 1e-8)

    return huber(relative(s), relative(t))


def slow_darkrank(s, t, alpha, beta):
    total = 0.0
    for i in range(B):
        near = sorted((j for j in range(B) if j != i), key=lambda j, i=i: length(t[i] - t[j]))[:4]
        scores = [-alpha * length(s[i] - s[j]) ** beta for j in near]
        for n, score in enumerate(scores):
            total -= score - math.log(sum(math.exp(x) for x in scores[n:]))
    return total / B


def slow_infonce(s, t, y, temperature):
    total = 0.0
    for i in range(B):
        others = [j for j in range(B) if j == i or y[j] != y[i]]
        here = math.exp(cosine(s[i], t[i]) / temperature)
        total += math.log(sum(math.exp(cosine(s[i], t[j]) / temperature) for j in others) / here) / 2
        total += math.log(sum(math.exp(cosine(s[j], t[i]) / temperature) for j in others) / here) / 2
    return total / B


def slow_nce(s, t, n_data, Z, temperature, y=None):
    total, noise = 0.0, (B - 1) / n_data
    for i, j in itertools.product(range(B), repeat=2):
        P = math.exp(cosine(s[i], t[j]) / temperature) / Z
        h = P / (P + noise)
        if i == j:
            total -= math.log(h)
        elif y is None or y[i] != y[j]:
            total -= math.log(1 - h)
    return total / B


def slow_nce_labelled(s, t, y, **settings):
    return slow_nce(s, t, y=y, **settings)


def slow_crd_contrast(scores, n_data):
    total, noise = 0.0, (scores.shape[1] - 1) / n_data
    for positive, *negatives in scores:
        total += math.log(positive / (positive + noise + 1e-7))
        total += sum(math.log(noise / (P + noise + 1e-7)) for P in negatives)
    return -total / B


def slow_crd(s, bank, n_data, Z, temperature):
    scores = [[math.exp(m @ v / temperature) / Z for m in rows] for v, rows in zip(s, bank, strict=True)]
    return slow_crd_contrast(np.array(scores), n_data)


def slow_ccl_nce(s, t, y, temperature):
    total = 0.0
    for i in range(B):
        powers = [math.exp(cosine(s[i], t[j]) / temperature) for j in range(B)]
        p = [power / sum(powers) for power in powers]
        total += np.mean([-math.log(p[j] + 1e-10) for j in range(B) if y[j] == y[i]])
        total += np.mean([-math.log(1 - p[j] + 1e-10) for j in range(B) if y[j] != y[i]])
    return total / B


PAIR, MAPS = (draw(B, 4), draw(B, 4, seed=1)), (draw(B, 3, 4, 4), draw(B, 5, 4, 4, seed=1))
WIDER = (draw(B, 4), draw(B, 6, seed=1))
LABELS = torch.arange(6 * B).view(*LEAD, B) * 2 % 3
NOISE = {"n_data": lanes(20, 5000), "Z": lanes(1, 3000), "temperature": lanes(0.1, 1)}
TAYLOR = {"gamma": lanes(0.1, 0.9), "order": 3}
# Key, tensors, settings, slow reference.
CASES = [
    ("fitnet", PAIR, {}, slow_fitnet),
    ("pkd_cos", PAIR, {}, slow_pkd_cos),
    ("class_prototypes", (PAIR[0], draw(3, 4, seed=2), LABELS), {}, slow_class_prototypes),
    ("at", (MAPS[0][..., :2, :2], MAPS[1]), {}, slow_at),
    ("ft", (MAPS[0], MAPS[1][..., :2, :2]), {}, slow_ft),
    ("nst", MAPS, {}, slow_nst),
    ("ab", (MAPS[0], MAPS[1][..., :3, :, :]), {"margin": lanes(0.2, 2)}, slow_ab),
    ("sp", WIDER, {}, slow_sp),
    ("pkt", WIDER, {}, slow_pkt),
    ("ifd", WIDER, {}, slow_ifd),
    ("cc", PAIR, {}, slow_cc),
    ("cckd", WIDER, {"kernel": "gaussian", "squared": False} | TAYLOR, slow_cckd),
    ("cckd", WIDER, {"kernel": "bilinear", "squared": True} | TAYLOR, slow_cckd),
    ("mmd", PAIR, {"ratio": lanes(1.5, 3), "kernels": 4}, slow_mmd),
    ("rkd", WIDER, {"distance_weight": lanes(0, 30), "angle_weight": lanes(50, 0)}, slow_rkd),
    ("samm", PAIR, {}, slow_samm),
    ("darkrank", WIDER, {"alpha": lanes(0.5, 3), "beta": lanes(1, 3)}, slow_darkrank),
    ("nce", PAIR, NOISE, slow_nce),
    ("crd_contrast", (draw(B, 5).exp(),), {"n_data": lanes(20, 5000)}, slow_crd_contrast),
    ("crd", (PAIR[0], draw(B, 5, 4, seed=1)), NOISE, slow_crd),
    ("ccl_nce", (*PAIR, LABELS), {"temperature": lanes(0.2, 1)}, slow_ccl_nce),
]


@pytest.mark.parametrize(("name", "tensors", "settings", "slow"), CASES, ids=[case[0] for case in CASES])
def test_equals_its_slow_reference_in_every_lane(name, tensors, settings, slow):
    together = LOSSES[name](*tensors, **settings)
    assert together.shape == LEAD
    for lane in LANES:
        own = {k: v[lane].item() if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
        expected = slow(*(tensor[lane].numpy() for tensor in tensors), **own)
        assert together[lane].item() == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "slow"),
    [("infonce", {"temperature": lanes(0.2, 1)}, slow_infonce), ("nce", NOISE, slow_nce_labelled)],
)
def test_members_of_a_class_are_no_negatives_if_labels_say_so(name, settings, slow):
    together = LOSSES[name](*PAIR, labels_LB=LABELS, **settings)
    for lane in LANES:
        own = {key: value[lane].item() for key, value in settings.items()}
        expected = slow(*(tensor[lane].numpy() for tensor in (*PAIR, LABELS)), **own)
        assert together[lane].item() == pytest.approx(float(expected), rel=1e-9)


def test_normaliser_makes_the_mean_score_one_row_of_the_data():
    similarities = draw(B, 9)
    Z = normaliser(similarities.requires_grad_(), n_data=50, temperature=lanes(0.2, 1))
    for lane in LANES:
        tau = lanes(0.2, 1)[lane].item()
        mean = np.mean([math.exp(x / tau) for x in similarities[lane].flatten().tolist()])
        assert Z[lane].item() == pytest.approx(50 * mean, rel=1e-9)
    assert not Z.requires_grad


def test_nce_tells_the_teacher_from_a_stranger_only_with_its_normaliser():
    teacher = torch.nn.functional.normalize(
        torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    stranger = teacher.roll(1, 0)
    Z = normaliser(stranger @ teacher.T, n_data=64, temperature=0.07)
    with_Z, without = (
        [LOSSES["nce"](z, teacher, n_data=64, Z=constant).item() for z in (teacher, stranger)]
        for constant in (Z, 1.0)
    )
    assert with_Z[0] < 0.6 * with_Z[1]
    assert without[0] > 0.8 * without[1]


def test_angles_and_distances_of_equal_samples_push_nothing():
    student, teacher = PAIR[0][0, 0].clone(), PAIR[1][0, 0]
    student[3] = student[5]
    student.requires_grad_()
    LOSSES["rkd"](student, teacher, angle_weight=0.0).backward()
    assert student.grad.isfinite().all()
    one_point = torch.ones(B, 4, dtype=torch.float64, requires_grad=True)
    LOSSES["rkd"](one_point, teacher).backward()
    assert (one_point.grad == 0).all()


def test_ccl_nce_of_one_class_is_its_positive_part():
    value = LOSSES["ccl_nce"](*(z[0, 0] for z in PAIR), torch.zeros(B), temperature=0.5)
    sim = torch.nn.functional.cosine_similarity(PAIR[0][0, 0][:, None], PAIR[1][0, 0][None], dim=2) / 0.5
    torch.testing.assert_close(value, -(sim.softmax(1) + 1e-10).log().mean())


def test_mt_pkdot_adds_its_two_parts():
    student, teacher = PAIR
    parts = LOSSES["pkdot"](student, teacher, eps=0.1, k=3), LOSSES["centroid"](student, teacher)
    torch.testing.assert_close(
        LOSSES["mt_pkdot"](student, teacher, eps=0.1, k=3, transport_weight=lanes(0, 1), centroid_weight=0.3),
        lanes(0, 1) * parts[0] + 0.3 * parts[1],
    )


def test_what_is_learned_or_frozen_elsewhere_has_the_reference_s_beginning_as_default():
    student, teacher = draw(B, 4), draw(B, 4, seed=1)
    variance = torch.full((4,), 5.0, dtype=torch.float64)
    expected = 0.5 * ((student - teacher).square() / variance + variance.log()).mean(dim=(-2, -1))
    torch.testing.assert_close(LOSSES["vid"](student, teacher), expected)
    constant = normaliser(unit_rows(student) @ unit_rows(teacher).mT, n_data=B, temperature=0.07)
    torch.testing.assert_close(
        LOSSES["nce"](student, teacher), LOSSES["nce"](student, teacher, n_data=B, Z=constant)
    )
