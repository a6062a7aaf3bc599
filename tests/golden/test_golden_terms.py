"""Every term against a value on inputs of closed form; a change of the file needs a reason.

A new term needs its value here: what the test finds, once it has been checked by other means.

Axes: K lanes (one), B batch, C outputs, M teachers, S modalities.
"""

import json
from pathlib import Path

import pytest
import torch

from mmdistill.models.network import Outputs
from mmdistill.terms import TERMS, Batch, Labels, Layers, Masked, Pool, Shapes

GOLDEN = json.loads((Path(__file__).parent / "terms.json").read_text(encoding="utf-8"))
B, C = 8, 5


def wave(function, amplitude, frequency, phase, *shape):
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (amplitude * function(frequency * n + phase)).view(1, *shape).float()


def outputs(number, function=torch.sin):
    """Return features and logits that differ from those of other numbers."""
    return Outputs(
        wave(function, 1, 0.37 - 0.05 * number, 0.1 + number, B, 16),
        wave(function, 2, 0.71 - 0.05 * number, 0.3 + number, B, C),
    )


def given_to(task):
    student, teacher, first, average = outputs(0), outputs(1, torch.cos), outputs(2), outputs(3)
    features, logits = (torch.stack(both, dim=2) for both in zip(first, teacher, strict=True))
    known_KB = torch.arange(B)[None] < 6
    targets = wave(torch.sin, 1, 0.9, 0.2, B, C)
    pool = Pool(("first", "joint"), features, logits, logits.square().mean(dim=3) * known_KB[..., None])
    return Batch(
        student,
        teacher,
        outputs(4),
        pool,
        Labels(targets if task == "regression" else torch.arange(B)[None] % C, known_KB),
        torch.arange(B)[None],
        layers=Layers((first.features_KBD,), (average.features_KBD,)),
        masked=Masked(*(wave(torch.cos, 2, 0.3 + n, 0.1, B, 2, C) for n in range(3))),
        average=average,
    )


@pytest.mark.parametrize("name", TERMS)
def test_every_term_has_its_golden_value(name):
    task = min(TERMS[name].tasks)
    shapes = Shapes(16, 16, 16, task, C, ("first", "joint"), rows=B, epochs=10)
    found = TERMS[name]([TERMS[name].settings_type()], shapes, [0])(given_to(task)).value_K.item()
    assert name in GOLDEN["terms"], f"add the value of {name} to tests/golden/terms.json: it is {found:.8g}"
    assert found == pytest.approx(GOLDEN["terms"][name], rel=GOLDEN["relative_tolerance"])


def test_there_is_no_value_of_a_term_that_is_gone():
    assert set(GOLDEN["terms"]) == set(TERMS)
