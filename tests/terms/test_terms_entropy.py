"""Conditional entropy with an adversary: who learns from what.

Axes: K lanes, B batch, D width.
"""

import pytest
import torch

from mmdistill.models.network import Outputs
from mmdistill.pipeline.studying import saturated_notes
from mmdistill.settings import declared_ranges
from mmdistill.terms import TERMS, Batch, Shapes

K, B, D, EPOCHS = 2, 16, 6, 10
SHAPES = Shapes(D, D, D, "regression", 3, epochs=EPOCHS)
FORMS = ("gaussian", "alice", "cgan")
ADVERSARIAL = FORMS[1:]


def outputs(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(K, B, D, generator=generator)
    return Outputs(features.requires_grad_(), torch.randn(K, B, 3, generator=generator))


def batch(epoch=0, scale=1.0):
    return Batch(outputs(0, scale), outputs(1, scale), epoch=epoch)


def built(form, lanes=K, **settings):
    kind = TERMS["conditional_entropy"]
    return kind([kind.settings_type(form=form, **settings)] * lanes, SHAPES, list(range(lanes)))


@pytest.mark.parametrize("form", ADVERSARIAL)
def test_the_value_is_the_generators_and_the_student_learns_from_it_alone(form):
    term, given = built(form, instance_noise=0.0), batch()
    state = [generator.get_state() for generator in term.generators]
    value_K = term(given).value_K
    slope = torch.autograd.grad(value_K.sum(), given.student.features_KBD)[0]
    for parameter in term.discriminator.parameters():
        parameter.requires_grad_(False)
    for generator, where in zip(term.generators, state, strict=True):
        generator.set_state(where)
    alone_K = term(given).value_K
    torch.testing.assert_close(value_K, alone_K)
    torch.testing.assert_close(slope, torch.autograd.grad(alone_K.sum(), given.student.features_KBD)[0])


@pytest.mark.parametrize("form", ADVERSARIAL)
def test_a_discriminator_that_steps_tells_more_pairs_apart(form):
    term = built(form, instance_noise=0.0)
    judge = torch.optim.Adam(term.discriminator.parameters(), 0.02)
    seen = []
    for _ in range(40):
        found = term(batch())
        seen.append(found.details["discriminator_accuracy"])
        judge.zero_grad()
        found.value_K.sum().backward()
        judge.step()
    assert ((seen[0] >= 0) & (seen[-1] <= 1)).all()
    assert (torch.stack(seen[-5:]).mean(dim=0) > 0.7).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("teacher_gradient", [False, True])
def test_the_teacher_learns_where_asked_alone(form, teacher_gradient):
    given = batch()
    built(form, teacher_gradient=teacher_gradient)(given).value_K.sum().backward()
    slope = given.teacher.features_KBD.grad
    assert (slope is not None and bool(slope.abs().sum() > 0)) is teacher_gradient


@pytest.mark.parametrize("form", FORMS)
def test_a_smaller_teacher_gains_nothing(form):
    given = batch()
    smaller = Batch(given.student, Outputs(1e-2 * given.teacher.features_KBD, given.teacher.logits_KBC))
    values = [built(form)(one).value_K for one in (given, smaller)]
    torch.testing.assert_close(*values, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("form", ADVERSARIAL)
def test_instance_noise_is_gone_in_the_end(form):
    terms = [built(form, instance_noise=noise, noise_width=1) for noise in (0.0, 0.9)]
    values = [[term(batch(epoch)).value_K for term in terms] for epoch in (0, EPOCHS)]
    assert not torch.allclose(*values[0])
    if form == "alice":  # the noise into the other generator is drawn from the same stream
        torch.testing.assert_close(*values[1])


@pytest.mark.parametrize("form", FORMS)
def test_warming_up_scales_the_gradient_and_not_the_value(form):
    slow, usual = built(form, warm_up=3), built(form)
    for epoch, share in ((0, 0.25), (2, 0.75), (3, 1.0), (7, 1.0)):
        slopes, values = [], []
        for term in (slow, usual):
            given = batch(epoch)
            value_K = term(given).value_K
            values.append(value_K.detach())
            slopes.append(torch.autograd.grad(value_K.sum(), given.student.features_KBD)[0])
        torch.testing.assert_close(*values)
        torch.testing.assert_close(slopes[0], share * slopes[1])


@pytest.mark.parametrize("form", ADVERSARIAL)
def test_a_lane_with_an_adversary_equals_its_solo_run(form):
    kind = TERMS["conditional_entropy"]
    ranges = declared_ranges(kind.settings_type())
    lanes = [kind.settings_type(form=form, **{n: r.at(u) for n, r in ranges.items()}) for u in (0.2, 0.8)]
    given, together = batch(3), kind(lanes, SHAPES, [0, 1])(batch(3)).value_K
    for k in range(K):
        parts = [Outputs(*(x[k : k + 1] for x in part)) for part in (given.student, given.teacher) if part]
        alone = kind([lanes[k]], SHAPES, [k])(Batch(*parts, epoch=3)).value_K
        torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ADVERSARIAL)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_an_adversary_is_finite_at_extremes(form, scale):
    term, given = built(form), batch(scale=scale)
    value_K = term(given).value_K
    found = torch.autograd.grad(value_K.sum(), [given.student.features_KBD, *term.parameters()])
    assert value_K.isfinite().all()
    assert all(slope.isfinite().all() for slope in found)


def test_only_an_adversary_that_won_for_long_is_stamped():
    name = "detail/conditional_entropy/discriminator_accuracy"
    won = {name: [0.6, 0.995, 1.0, 1.0, 1.0]}
    assert saturated_notes(won, 50) == ["adversary saturated"]
    assert saturated_notes(won, 49) == []
    assert saturated_notes({name: [1.0, 1.0, 0.99, 1.0, 1.0]}, 50) == []
    assert saturated_notes({"validation/accuracy": [1.0] * 9}, 50) == []
