"""What stands in for the modalities a student does not have.

Axes: K lanes, B batch, D width.
"""

import pytest
import torch
from torch.nn.functional import linear

from mmdistill.models.cost import multiply_accumulates, parameters_per_lane
from mmdistill.models.hallucinator import Hallucinator, Missing
from mmdistill.models.network import Network, NetworkSettings

K, B, D = 2, 7, 8
SIZE = NetworkSettings(width=D, depth=1)
PUBLISHED = {
    "linear": [512, 2048, 1024, 512, 256, 512, 1024, 2048, 512],
    "relu": [512, 256, 128, 256, 512],
}


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def student(kind, seeds=(1, 2), missing=("b", "c"), names=("a",)):
    widths = dict.fromkeys(names, 4)
    return Network(widths, 3, SIZE, list(seeds), None if kind is None else Missing(kind, missing))


@pytest.mark.parametrize("kind", PUBLISHED)
def test_has_the_published_sizes_at_the_published_width(kind):
    network = Hallucinator(kind, 512, 512, [1], "role")
    sizes = [tuple(layer.weight_KIO.shape[1:]) for layer in network.layers]
    assert sizes == list(zip(PUBLISHED[kind][:-1], PUBLISHED[kind][1:], strict=True))


def test_one_has_no_activation_and_the_other_ends_in_a_sigmoid():
    x, y, zero = drawn(K, B, D), drawn(K, B, D).flip(0), torch.zeros(K, B, D)
    plain = Hallucinator("linear", D, D, [1, 2], "role")
    torch.testing.assert_close(plain(x + y) - plain(y), plain(x) - plain(zero), atol=1e-5, rtol=1e-4)
    bent = Hallucinator("relu", D, D, [1, 2], "role")
    assert ((bent(10 * x) > 0) & (bent(10 * x) < 1)).all()
    assert not torch.allclose(bent(x + y) - bent(y), bent(x) - bent(zero), atol=1e-3)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_begins_as_ordinary_layers_do(kind):
    layer = Hallucinator(kind, D, D, [1], "role").layers[0]
    assert (layer.weight_KIO / 10).abs().max() <= D**-0.5
    assert (layer.weight_KIO / 10).abs().max() > 0.8 * D**-0.5


@pytest.mark.parametrize("kind", ["zeros", "linear", "relu"])
def test_a_student_needs_its_own_modalities_only(kind):
    network, x = student(kind), drawn(K, B, 4)
    assert network.modalities == ("a",)
    alone = network({"a": x})
    beside = network({"a": x, "b": drawn(K, B, 9), "c": drawn(K, B, 1)})
    assert torch.equal(alone.logits_KBC, beside.logits_KBC)


def test_zeros_are_fused_like_any_features():
    network, x = student("zeros"), drawn(K, B, 4)
    features, _ = network({"a": x})
    for k in range(K):
        seen = network.encoders["a"]({"a": x}["a"])[k]
        streams = [seen, torch.zeros_like(seen), torch.zeros_like(seen)]
        projected = [
            linear(s, p.weight_KIO[k].T, p.bias_K1O[k, 0])
            for s, p in zip(streams, network.fusion.projections, strict=True)
        ]
        gate = network.fusion.gate
        gates = linear(torch.cat(projected, dim=1), gate.weight_KIO[k].T, gate.bias_K1O[k, 0]).softmax(dim=1)
        expected = sum(gates[:, [s]] * projected[s] for s in range(3))
        torch.testing.assert_close(features[k], expected)


@pytest.mark.parametrize("kind", ["linear", "relu"])
def test_a_hallucinator_learns_from_its_own_loss_alone(kind):
    network = student(kind)
    outputs, missing = network.with_missing({"a": drawn(K, B, 4)})
    assert [tuple(stream.shape) for stream in missing] == [(K, B, D)] * 2
    parameters = dict(network.named_parameters())
    for loss, learner in (
        (outputs.logits_KBC.square().sum(), lambda name: not name.startswith("hallucinators")),
        (sum(stream.square().sum() for stream in missing), lambda name: name.startswith("hallucinators")),
    ):
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
        moved = {name for name, g in zip(parameters, found, strict=True) if g is not None and g.any()}
        assert moved
        assert all(learner(name) for name in moved)


@pytest.mark.parametrize("kind", ["zeros", "linear", "relu"])
def test_a_lane_is_the_same_alone(kind):
    x = drawn(K, B, 8)
    both = student(kind, names=("a", "d"))({"a": x[..., :4], "d": x[..., 4:]})
    for k in range(K):
        one = student(kind, seeds=[k + 1], names=("a", "d"))({"a": x[[k], :, :4], "d": x[[k], :, 4:]})
        torch.testing.assert_close(one.logits_KBC[0], both.logits_KBC[k])


def test_what_stands_in_is_paid_for():
    plain, bent = student(None), student("relu")
    assert multiply_accumulates(student("zeros")) == multiply_accumulates(plain) + 3 * D * D + 3 * D * 3
    extra = 2 * (8 * 4 + 4 * 2 + 2 * 4 + 4 * 8)
    assert multiply_accumulates(bent) == multiply_accumulates(student("zeros")) + extra
    assert parameters_per_lane(bent) == parameters_per_lane(student("zeros")) + extra + 2 * (4 + 2 + 4 + 8)
