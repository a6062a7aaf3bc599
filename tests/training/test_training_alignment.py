"""Alignment of teachers, against equation (1) of MT-PKDOT written out."""

import pytest
import torch
from torch.nn.functional import cosine_embedding_loss, cross_entropy, kl_div, linear, mse_loss

from mmdistill.losses.discrepancy import mmd
from mmdistill.models.network import Network, NetworkSettings
from mmdistill.training.objectives import (
    AlignedTeachers,
    AlignmentLoss,
    AlignmentObjective,
    Streams,
    aligned_on,
)

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


def pull_by_hand(kind, other, joint):
    """Return the distance of one lane's outputs to the joint teacher's."""
    if kind == "mse":
        return mse_loss(other.features_KBD, joint.features_KBD)
    if kind == "mmd":
        return mmd(other.features_KBD, joint.features_KBD)
    softened = [(outputs.logits_KBC / 3).log_softmax(dim=-1) for outputs in (other, joint)]
    return 9 * kl_div(*softened, reduction="batchmean", log_target=True)


@pytest.mark.parametrize("kind", ["mmd", "mse", "kl"])
@pytest.mark.parametrize("adapters", [True, False])
def test_the_other_losses_pull_as_they_say(streams, kind, adapters):
    joint = Network({"a": 4, "b": 5}, C, NetworkSettings(width=D, depth=1), [1, 2])
    aligned = AlignedTeachers(("a", "b"), joint, C, [3, 4], adapters=adapters)
    loss = AlignmentLoss(kind, temperature=3.0)
    objective = AlignmentObjective(aligned, streams, streams, "classification", 1.0, loss)
    total_K = objective.losses(torch.arange(8).expand(K, 8)).total_K
    found = aligned(*({n: x[:, :8] for n, x in group.items()} for group in (streams.unimodal, streams.joint)))
    if not adapters:
        assert torch.equal(found["a"].features_KBD, streams.unimodal["a"][:, :8])
    for k in range(K):
        lane = {name: type(said)(*(x[k] for x in said)) for name, said in found.items()}
        expected = sum(pull_by_hand(kind, lane[name], lane["joint"]) for name in "ab")
        torch.testing.assert_close(total_K[k], expected)


def test_in_a_regression_outputs_are_pulled_by_their_squares(aligned, streams):
    found = aligned(streams.unimodal, streams.joint)
    pulled_K = AlignmentLoss("kl")("regression", found["a"], found["joint"])
    expected = (found["a"].logits_KBC - found["joint"].logits_KBC).square().mean(dim=(1, 2))
    torch.testing.assert_close(pulled_K, expected)


@pytest.mark.parametrize("kind", ["cosine", "mmd", "mse", "kl"])
def test_a_detached_joint_teacher_stays_where_it_is(aligned, streams, kind):
    aligned.requires_grad_(True)
    loss = AlignmentLoss(kind, detach_joint=True)
    objective = AlignmentObjective(aligned, streams, streams, "classification", 1.0, loss)
    objective.losses(torch.arange(8).expand(K, 8)).total_K.sum().backward()
    gradient = aligned.fusion.projections[0].weight_KIO.grad
    assert gradient is None or not gradient.any()
    assert aligned.adapters["a"].up.weight_KIO.grad.abs().sum() > 0


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
