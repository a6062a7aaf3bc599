"""Point-to-point distillation and its gate.

Axes: K lanes, B batch, D width, C classes.
"""

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from mmdistill.losses.task import ccc_loss
from mmdistill.models.network import Outputs
from mmdistill.terms import TERMS, Batch, Labels, Shapes

K, B, D, C = 3, 10, 6, 4
SCALES_K = torch.tensor([8.0, 0.2, 0.1])
THETAS = (0.2, 0.1, 0.9)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def term(gate, task="classification"):
    kind = TERMS["feature_cosine"]
    settings = [kind.settings_type(gate=gate, theta=theta) for theta in THETAS]
    return kind(settings, Shapes(D, D, D, task, C), [0, 1, 2])


@pytest.fixture
def batch():
    """Return a batch whose teacher is good, middling and poor in the three lanes."""
    classes = torch.arange(B) % C
    hits = torch.nn.functional.one_hot(classes, C).float()
    logits = SCALES_K[:, None, None] * (hits + 0.1 * drawn(3, K, B, C))
    known = torch.arange(B).expand(K, B) < 6
    teacher = Outputs(drawn(1, K, B, D), logits)
    student = Outputs(drawn(2, K, B, D), drawn(4, K, B, C))
    return Batch(student, teacher, labels=Labels(classes.expand(K, B), known))


def distances(batch):
    pairs = zip(batch.student.features_KBD, batch.teacher.features_KBD, strict=True)
    return [float(1 - cosine_similarity(s.flatten(), t.flatten(), dim=0)) for s, t in pairs]


def gates(kind, losses):
    pairs = zip(losses, THETAS, strict=True)
    if kind == "inverse":
        return [theta / (theta + loss) for loss, theta in pairs]
    return [theta + loss if loss <= theta or loss > 1 else 1.0 for loss, theta in pairs]


def test_without_a_gate_it_is_one_cosine_of_the_flattened_batch(batch):
    assert term("none")(batch).value_K.tolist() == pytest.approx(distances(batch), rel=1e-5)
    same = Batch(batch.teacher, batch.teacher)
    torch.testing.assert_close(term("none")(same).value_K, torch.zeros(K), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["m2pkd_code", "inverse"])
def test_the_gate_reads_the_teachers_loss_on_the_labelled_rows(batch, kind):
    known = slice(0, 6)
    losses = [float(cross_entropy(x[known], batch.labels.value[0, known])) for x in batch.teacher.logits_KBC]
    assert losses[0] < 0.2
    assert losses[1] > 1.1
    found = term(kind)(batch)
    expected = gates(kind, losses)
    assert found.details["gate"].tolist() == pytest.approx(expected, rel=1e-5)
    values = [gate * distance for gate, distance in zip(expected, distances(batch), strict=True)]
    assert found.value_K.tolist() == pytest.approx(values, rel=1e-5)


def test_the_gate_between_its_bounds_is_open(batch):
    found = term("m2pkd_code")(batch).details["gate"]
    middling = Outputs(batch.teacher.features_KBD, batch.teacher.logits_KBC * 8)
    again = term("m2pkd_code")(Batch(batch.student, middling, labels=batch.labels)).details["gate"]
    assert 0.2 <= found[0] < 0.4
    assert found[1] > 1
    assert again[1] == 1


@pytest.mark.parametrize("kind", ["m2pkd_code", "inverse"])
def test_in_a_regression_the_gate_reads_the_concordance(batch, kind):
    labels = Labels(drawn(9, K, B, C), batch.labels.known_KB)
    found = term(kind, "regression")(Batch(batch.student, batch.teacher, labels=labels))
    losses = ccc_loss(batch.teacher.logits_KBC, labels.value, labels.known_KB).tolist()
    assert found.details["gate"].tolist() == pytest.approx(gates(kind, losses), rel=1e-5)


def test_a_batch_without_a_label_counts_as_taught_without_fault(batch):
    labels = Labels(batch.labels.value, torch.zeros(K, B, dtype=torch.bool))
    blind = Batch(batch.student, batch.teacher, labels=labels)
    assert term("m2pkd_code")(blind).details["gate"].tolist() == pytest.approx(THETAS)
    assert term("inverse")(blind).details["gate"].tolist() == [1.0] * K
