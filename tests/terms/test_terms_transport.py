"""The transport term: scale, and absolute regularisation."""

import pytest
import torch

from mmdistill.losses.structural import pkdot, structural_plan
from mmdistill.models.network import Outputs
from mmdistill.terms import TERMS, Batch, Shapes

K, B, D = 2, 24, 8


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return Outputs(torch.randn(K, B, D, generator=generator), torch.zeros(K, B, 3))


def value(**settings):
    kind = TERMS["transport"]
    term = kind([kind.settings_type(k=6, **settings)] * K, Shapes(D, D, D, "classification", 3), [0, 1])
    return term(Batch(drawn(1), drawn(2))).value_K


def test_is_that_of_the_released_code_at_its_blur():
    student, teacher = (drawn(seed).features_KBD for seed in (1, 2))
    expected = pkdot(student, teacher, eps=0.01, k=6)
    torch.testing.assert_close(value(eps=0.01), expected, rtol=1e-3, atol=1e-6)


def test_takes_the_place_of_the_relative_one():
    assert torch.equal(value(eps=0.02), value(eps=0.02, eps_rel=3.0))
    assert not torch.allclose(value(eps=0.02), value(eps=0.2))
    settings = TERMS["transport"].settings_type(eps=0.02)
    assert settings.dead() == TERMS["transport"].settings_type().dead() | {"eps_rel"}
    assert "eps" in settings.model_copy(update={"coupling": "identity"}).dead()


@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_is_above_zero(eps):
    with pytest.raises(ValueError, match="greater than 0"):
        TERMS["transport"].settings_type(eps=eps)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_transport_to_rescaled_features_is_nothing(scale):
    features = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(2))
    student, teacher = (Outputs(x, torch.zeros(2, 16, 4)) for x in (scale * features, features))
    settings = [TERMS["transport"].settings_type(k=8)] * 2
    term = TERMS["transport"](settings, Shapes(8, 8, 8, "classification", 4), [0, 1])
    torch.testing.assert_close(term(Batch(student, teacher)).value_K, torch.zeros(2), atol=2e-5, rtol=0)


def test_has_the_plan_of_its_settings_and_other_terms_have_none():
    kind, batch = TERMS["transport"], Batch(drawn(1), drawn(2))
    shapes = Shapes(D, D, D, "classification", 3)
    lanes = [kind.settings_type(k=k, eps_rel=eps) for k, eps in ((4, 0.1), (8, 0.3))]
    expected = structural_plan(
        batch.student.features_KBD,
        batch.teacher.features_KBD,
        k=torch.tensor([4, 8]),
        eps_rel=torch.tensor([0.1, 0.3]),
    )
    assert torch.equal(kind(lanes, shapes, [0, 1]).plan(batch), expected)
    centroid = TERMS["centroid"]
    assert centroid([centroid.settings_type()] * K, shapes, [0, 1]).plan(batch) is None
