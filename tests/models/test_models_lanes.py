"""Layers and networks whose parameters carry a lane axis."""

import math

import pytest
import torch
from torch.nn.functional import linear

from mmdistill.models.cost import latency_ms, multiply_accumulates, parameters_per_lane
from mmdistill.models.lanes import LaneLinear, lane_values
from mmdistill.models.network import Adapter, GatedFusion, Network, NetworkSettings, Outputs

SMALL = NetworkSettings(width=6, depth=2)


def lane_of(state, k):
    return {name: value[k : k + 1] for name, value in state.items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_lane_is_an_ordinary_linear_map():
    layer = LaneLinear(5, 3, [1, 2, 3, 4], "any")
    x_KBI = torch.randn(4, 7, 5)
    for k in range(4):
        expected = linear(x_KBI[k], layer.weight_KIO[k].T, layer.bias_K1O[k, 0])
        torch.testing.assert_close(layer(x_KBI)[k], expected)


def test_weights_fill_the_interval_that_torch_uses():
    layer = LaneLinear(16, 4000, [0], "any")
    bound = 1 / math.sqrt(16)
    for drawn in (layer.weight_KIO, layer.bias_K1O):
        assert drawn.abs().max() <= bound
        assert drawn.abs().max() > 0.99 * bound
        assert abs(drawn.mean()) < 0.02 * bound


def test_initialisation_of_a_lane_depends_on_its_own_seed_and_role_only():
    cohort = LaneLinear(5, 3, [9, 8, 7, 6, 5], "encoder").state_dict()
    assert_same(lane_of(cohort, 2), LaneLinear(5, 3, [7], "encoder").state_dict())
    other_role = LaneLinear(5, 3, [7], "head").state_dict()
    assert not torch.equal(other_role["weight_KIO"], cohort["weight_KIO"][2:3])


def test_drawing_weights_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    LaneLinear(5, 3, [1], "any")
    assert torch.equal(before, torch.get_rng_state())


def test_networks_of_two_arms_share_the_initialisation_where_shapes_agree():
    alone = Network({"a": 4}, 3, SMALL, [11]).state_dict()
    joint = Network({"b": 7, "a": 4}, 3, SMALL, [5, 11]).state_dict()
    shared = set(alone) & set(joint)
    assert {name.split(".")[0] for name in shared} == {"encoders", "head"}
    assert_same({n: alone[n] for n in shared}, lane_of({n: joint[n] for n in shared}, 1))


def test_gated_fusion_agrees_with_a_slow_loop():
    fusion = GatedFusion(("a", "b", "c"), 4, [1, 2], "fusion")
    streams = [torch.randn(2, 5, 4) for _ in range(3)]
    fused = fusion(streams)
    for k in range(2):
        for b in range(5):
            projected = [
                linear(s[k, b], p.weight_KIO[k].T, p.bias_K1O[k, 0])
                for s, p in zip(streams, fusion.projections, strict=True)
            ]
            scores = linear(torch.cat(projected), fusion.gate.weight_KIO[k].T, fusion.gate.bias_K1O[k, 0])
            gates = scores.exp() / scores.exp().sum()
            expected = sum(g * p for g, p in zip(gates, projected, strict=True))
            torch.testing.assert_close(fused[k, b], expected)


def test_gates_sum_to_one():
    fusion = GatedFusion(("a", "b", "c"), 4, [3], "fusion")
    with torch.no_grad():
        for project in fusion.projections:
            project.weight_KIO.zero_()
            project.bias_K1O.fill_(1.0)
    torch.testing.assert_close(fusion([torch.randn(1, 6, 4)] * 3), torch.ones(1, 6, 4))


def test_fusion_refuses_another_number_of_streams():
    with pytest.raises(ValueError, match="shorter"):
        GatedFusion(("a", "b"), 4, [3], "fusion")([torch.zeros(1, 2, 4)])


def test_a_network_looks_at_its_own_modalities_only_and_not_at_their_order():
    network = Network({"b": 7, "a": 4}, 3, SMALL, [1, 2])
    assert network.modalities == ("a", "b")
    inputs = {"b": torch.randn(2, 5, 7), "a": torch.randn(2, 5, 4)}
    said = network(inputs)
    assert said.features_KBD.shape == (2, 5, 6)
    assert said.logits_KBC.shape == (2, 5, 3)
    again = network({"other": torch.full((2, 5, 1), math.nan), "a": inputs["a"], "b": inputs["b"]})
    assert torch.equal(said.logits_KBC, again.logits_KBC)


def test_lanes_of_a_network_do_not_see_each_other():
    network = Network({"a": 4, "b": 7}, 3, SMALL, [1, 2])
    inputs = {"a": torch.randn(2, 5, 4), "b": torch.randn(2, 5, 7)}
    spoiled = {name: x.clone() for name, x in inputs.items()}
    spoiled["a"][1] = math.nan
    assert torch.equal(network(inputs).logits_KBC[0], network(spoiled).logits_KBC[0])
    assert network(spoiled).logits_KBC[1].isnan().all()


def test_features_of_an_encoder_are_not_negative():
    features = Network({"a": 4}, 3, SMALL, [1])({"a": torch.randn(1, 50, 4)}).features_KBD
    assert features.min() >= 0


def test_an_adapter_is_linear():
    adapter = Adapter(6, [1], "adapter")
    x, y = torch.randn(2, 1, 3, 6)
    sum_of_two = adapter(x) + adapter(y) - adapter(torch.zeros(1, 3, 6))
    torch.testing.assert_close(adapter(x + y), sum_of_two)


def test_detached_outputs_have_no_history():
    outputs = Network({"a": 4}, 3, SMALL, [1])({"a": torch.randn(1, 2, 4)})
    assert not any(part.requires_grad for part in outputs.detach())
    assert isinstance(outputs.detach(), Outputs)


def test_parameters_and_multiply_accumulates_count_as_by_hand():
    lanes = [1, 2, 3]
    alone = Network({"a": 4}, 3, SMALL, lanes)
    assert multiply_accumulates(alone) == 4 * 6 + 6 * 6 + 6 * 3
    assert parameters_per_lane(alone) == multiply_accumulates(alone) + 6 + 6 + 3
    both = Network({"a": 4, "b": 7}, 3, SMALL, lanes)
    encoders, fusion = (4 * 6 + 6 * 6) + (7 * 6 + 6 * 6), 2 * 6 * 6 + 12 * 2
    assert multiply_accumulates(both) == encoders + fusion + 6 * 3
    assert parameters_per_lane(both) == multiply_accumulates(both) + 4 * 6 + (6 + 6 + 2) + 3


def test_latency_is_a_positive_number_of_milliseconds():
    assert 0 < latency_ms(Network({"a": 4}, 3, SMALL, [1]), {"a": 4, "other": 9}, repeats=3) < 1000


def test_lane_values_take_dtype_and_order():
    values = lane_values([0.1, 2.0], torch.zeros(1, dtype=torch.float64))
    assert values.dtype == torch.float64
    assert values.tolist() == [0.1, 2.0]
