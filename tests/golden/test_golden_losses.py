"""Losses against values computed once by the reference code; a change of the file needs a reason."""

import json
from pathlib import Path

import pytest
import torch

from mmdistill.losses import anchors, structural
from mmdistill.losses.base import LOSSES
from mmdistill.registry import import_submodules

import_submodules("mmdistill.losses")
GOLDEN = json.loads((Path(__file__).parent / "losses.json").read_text())


def wave(function, amplitude, frequency, phase, width):
    n = torch.arange(8 * width, dtype=torch.float64)
    return (amplitude * function(frequency * n + phase)).view(8, width)


FEATURES = (wave(torch.sin, 1, 0.37, 0.1, 16), wave(torch.cos, 1, 0.23, 0.2, 16))
LOGITS = (wave(torch.sin, 2, 0.71, 0.3, 5), wave(torch.cos, 3, 0.53, 0.4, 5))
LABELS = torch.arange(8) % 5
INPUTS = {
    "features": FEATURES,
    "labelled_features": (*FEATURES, LABELS),
    "logits": LOGITS,
    "labelled_logits": (*LOGITS, LABELS),
    "maps": tuple(features.view(8, 4, 2, 2) for features in FEATURES),
    "scores": (FEATURES[0].abs() + 0.01,),
}


def close(value):
    return pytest.approx(value, rel=GOLDEN["relative_tolerance"])


@pytest.mark.parametrize("golden", GOLDEN["losses"], ids=lambda golden: golden["name"])
def test_loss_has_its_golden_value(golden):
    value = LOSSES[golden["name"]](*INPUTS[golden["inputs"]], **golden["settings"])
    assert value.item() == close(golden["value"])


def test_structural_transport_has_its_golden_value():
    settings = GOLDEN["pkdot"]["settings"]
    value, details = structural.structural_transport(
        *INPUTS["features"], **settings, tolerance=1e-10, iterations=1000
    )
    assert details["converged"] == 1
    assert value.item() == close(GOLDEN["pkdot"]["value"])


def test_structural_transport_is_close_to_its_golden_value_at_the_training_tolerance():
    value = LOSSES["pkdot"](*INPUTS["features"], **GOLDEN["pkdot"]["settings"])
    assert value.item() == pytest.approx(GOLDEN["pkdot"]["value"], rel=1e-3)


def test_anchors_are_the_golden_ones():
    similarities = anchors.similarities(INPUTS["features"][1])
    indices = anchors.anchor_indices(similarities, "least", GOLDEN["least_anchors"]["k"]).indices_LBA
    for row, expected in GOLDEN["least_anchors"]["rows"].items():
        assert indices[int(row)].tolist() == expected
