"""What a linear map of features tells, against scikit-learn.

Axes: K lanes, N training rows, V validation rows, D width, T targets, I inputs of one modality.
"""

import math

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from mmdistill.models.network import Network, NetworkSettings
from mmdistill.training.objectives import TensorPart, outputs_on
from mmdistill.training.probe import PROBE_ROWS, RIDGE, input_r2, ridge_r2

K, N, V, D, T = 3, 80, 40, 6, 4


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def part(seed, rows):
    inputs = {"a": drawn(seed, rows, 5), "b": drawn(seed + 1, rows, 3)}
    return TensorPart(inputs, torch.zeros(rows, dtype=torch.long))


def test_is_the_held_out_r2_of_a_ridge_regression():
    features, more = drawn(0, K, N, D) + 2, drawn(1, K, V, D) + 2
    mixing = drawn(2, D, T)
    target, wanted = features[0] @ mixing + drawn(3, N, T), more[0] @ mixing + drawn(4, V, T)
    found = ridge_r2(features, target, more, wanted)
    for k in range(K):
        centred = features[k] - features[k].mean(dim=0)
        penalty = RIDGE * centred.square().sum().item() / D
        fitted = Ridge(alpha=penalty).fit(features[k].numpy(), target.numpy())
        told = fitted.predict(more[k].numpy())
        error = ((told - wanted.numpy()) ** 2).sum()
        expected = 1 - error / (wanted - wanted.mean(dim=0)).square().sum().item()
        assert found[k].item() == pytest.approx(expected, abs=1e-5)
    assert found[0] > 0.5
    assert found[1] < 0.2
    one = ridge_r2(features, target[:, :1], more, wanted[:, :1])[0].item()
    fitted = Ridge(alpha=RIDGE * (features[0] - features[0].mean(dim=0)).square().sum().item() / D)
    fitted.fit(features[0].numpy(), target[:, 0].numpy())
    assert one == pytest.approx(r2_score(wanted[:, 0].numpy(), fitted.predict(more[0].numpy())), abs=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_the_scale_of_features_does_not_matter(scale):
    features, more = drawn(0, K, N, D), drawn(1, K, V, D)
    target, wanted = features[0, :, :T] + 1, more[0, :, :T] + 1
    found, scaled = (ridge_r2(s * features, target, s * more, wanted) for s in (1.0, scale))
    torch.testing.assert_close(found, scaled, rtol=1e-3, atol=1e-3)
    assert found[0] > 0.95


def test_features_that_say_nothing_tell_nothing_and_a_lost_lane_disturbs_nobody():
    features, more = drawn(0, K, N, D), drawn(1, K, V, D)
    target, wanted = features[2, :, :T], more[2, :, :T]
    features[0], more[0] = 3.0, 3.0
    features[1, 4, 2] = math.nan
    nothing, lost, known = ridge_r2(features, target, more, wanted).tolist()
    assert nothing == pytest.approx(0, abs=0.1)
    assert math.isnan(lost)
    assert known > 0.95


def test_a_network_knows_the_inputs_it_sees():
    size = NetworkSettings(width=24, depth=1)
    seeing = Network({"a": 5, "b": 3}, 2, size, [0, 1])
    blind = Network({"a": 5}, 2, size, [0, 1])
    parts = part(0, 2 * PROBE_ROWS), part(9, 200)
    assert (input_r2(seeing, ("b",), parts) > 0.5).all()
    assert (input_r2(blind, ("b",), parts).abs() < 0.1).all()
    assert (input_r2(seeing, ("a", "b"), parts) > 0.5).all()


def test_rows_are_spread_over_the_whole_part():
    size = NetworkSettings(width=24, depth=1)
    network = Network({"a": 5, "b": 3}, 2, size, [0])
    whole, few = part(0, 3 * PROBE_ROWS - 2), part(9, 200)
    chosen = TensorPart({n: x[::3] for n, x in whole.inputs.items()}, whole.labels[::3])
    assert len(chosen) == PROBE_ROWS
    features = [outputs_on(network, given, 1).features_KBD for given in (chosen, few)]
    expected = ridge_r2(features[0], chosen.inputs["b"], features[1], few.inputs["b"])
    torch.testing.assert_close(input_r2(network, ("b",), (whole, few)), expected, rtol=0, atol=2e-3)
