"""Alignment of teachers, against equation (1) of MT-PKDOT written out."""

import pytest
import torch
from torch.nn.functional import cosine_embedding_loss, cross_entropy, linear

from mmdistill.models.network import Network, NetworkSettings
from mmdistill.training.objectives import AlignedTeachers, AlignmentObjective, Streams, aligned_on

K, N, D, C = 2, 12, 6, 3


@pytest.fixture
def aligned():
    joint = Network({"a": 4, "b": 5}, C, NetworkSettings(width=D, depth=1), [1, 2])
    return AlignedTeachers(("a", "b"), joint, C, [3, 4])


@pytest.fixture
def streams():
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(K, N, D, generator=generator) for _ in range(4)]
    unimodal, joint = dict(zip("ab", drawn[:2], strict=True)), dict(zip("ab", drawn[2:], strict=True))
    return Streams(unimodal, joint, torch.arange(N) % C)


def by_hand(aligned, streams, k, rows, weight):
    def through(layer, x):
        return linear(x, layer.weight_KIO[k].T, layer.bias_K1O[k, 0])

    labels = streams.labels[rows]
    projected = [
        through(p, streams.joint[m][k, rows]) for m, p in zip("ab", aligned.fusion.projections, strict=True)
    ]
    gates = through(aligned.fusion.gate, torch.cat(projected, dim=1)).softmax(dim=1)
    z_joint = sum(gates[:, [s]] * projected[s] for s in range(2))
    task = cross_entropy(through(aligned.joint_head, z_joint), labels)
    align = torch.zeros(())
    for m in "ab":
        adapter = aligned.adapters[m]
        adapted = through(adapter.up, through(adapter.down, streams.unimodal[m][k, rows]))
        task = task + 0.5 * cross_entropy(through(aligned.heads[m], adapted), labels)
        align = align + cosine_embedding_loss(adapted, z_joint, torch.ones(len(rows)))
    return weight * align + (1 - weight) * task


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_objective_is_equation_one(aligned, streams, weight):
    objective = AlignmentObjective(aligned, streams, streams, "classification", weight)
    rows_KB = torch.tensor([[0, 3, 5, 7], [11, 2, 4, 1]])
    total_K = objective.losses(rows_KB).total_K
    for k in range(K):
        torch.testing.assert_close(total_K[k], by_hand(aligned, streams, k, rows_KB[k], weight))


def test_the_joint_teacher_is_pulled_too(aligned, streams):
    aligned.requires_grad_(True)
    objective = AlignmentObjective(aligned, streams, streams, "classification", 1.0)
    objective.losses(torch.arange(8).expand(K, 8)).total_K.sum().backward()
    assert aligned.fusion.projections[0].weight_KIO.grad.abs().sum() > 0
    assert aligned.adapters["a"].up.weight_KIO.grad.abs().sum() > 0


def test_the_joint_teacher_chooses_the_epoch(aligned, streams):
    objective = AlignmentObjective(aligned, streams, streams, "classification", 0.5)
    logits = aligned(streams.unimodal, streams.joint)["joint"].logits_KBC
    expected = torch.stack([cross_entropy(logits[k], streams.labels) for k in range(K)])
    torch.testing.assert_close(objective.validation()["criterion"], expected)


def test_a_large_part_goes_through_alignment_in_pieces(aligned, streams, monkeypatch):
    whole = aligned(streams.unimodal, streams.joint)
    monkeypatch.setattr("mmdistill.training.objectives.CHUNK", 5)
    pieces = aligned_on(aligned, streams)
    assert pieces.keys() == whole.keys()
    for name, expected in whole.items():
        torch.testing.assert_close(pieces[name].features_KBD, expected.features_KBD.detach())
        torch.testing.assert_close(pieces[name].logits_KBC, expected.logits_KBC.detach())


def test_a_joint_teacher_of_one_modality_has_nothing_to_fuse():
    joint = Network({"a": 4}, C, NetworkSettings(width=D, depth=1), [1])
    with pytest.raises(ValueError, match="one modality only"):
        AlignedTeachers(("a",), joint, C, [3])
