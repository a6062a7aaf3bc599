"""Critics of mutual information: what they remember, and what they call a bound.

Axes: K lanes, B batch, D width.
"""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmdistill.losses.base import unit_rows
from mmdistill.losses.noise_contrastive import nce
from mmdistill.models.network import Outputs
from mmdistill.terms import TERMS, Batch, Labels, Shapes

K, B, D = 2, 16, 6
SHAPES = Shapes(D, D, D, "classification", 3)


def outputs(seed):
    generator = torch.Generator().manual_seed(seed)
    return Outputs(torch.randn(K, B, D, generator=generator), torch.randn(K, B, 3, generator=generator))


def batch(seed=0, labels=None):
    return Batch(outputs(seed), outputs(seed + 50), outputs(seed + 90), labels=labels)


def built(task="classification", **settings):
    kind = TERMS["mutual_information"]
    lanes = [kind.settings_type(**settings, temperature=tau) for tau in (0.1, 0.4)]
    return kind(lanes, SHAPES._replace(task=task), range(K))


def projected(term, given):
    return term.project_other(given.student.features_KBD), term.project_teacher(given.teacher.features_KBD)


def test_the_constant_of_the_first_batch_is_kept_and_logged():
    term, tau = built(critic="nce"), torch.tensor([0.1, 0.4])
    other, target = projected(term, batch(0))
    first = ((unit_rows(other) @ unit_rows(target).mT) / tau[:, None, None]).exp().mean(dim=(1, 2)).detach()
    for seed in (0, 1, 2):
        found = term(batch(seed))
        torch.testing.assert_close(found.details["normaliser"], first)
        expected = nce(*projected(term, batch(seed)), temperature=tau, Z=100 * first, n_data=100)
        torch.testing.assert_close(found.value_K, expected)
    assert set(term.state_dict()) - set(built().state_dict()) == {"normaliser_K"}


def test_a_learned_constant_starts_there_and_gets_a_gradient():
    term = built(critic="nce", normaliser="learned")
    fixed = built(critic="nce")
    torch.testing.assert_close(term(batch()).value_K, fixed(batch()).value_K)
    term(batch(1)).value_K.sum().backward()
    assert (term.log_factor_K.grad != 0).all()


@pytest.mark.parametrize(("critic", "negatives"), [("infonce", B), ("nce", B - 1)])
def test_the_bound_is_a_logarithm_less_the_loss(critic, negatives):
    found = built(critic=critic)(batch())
    torch.testing.assert_close(found.details["bound"], math.log(negatives) - found.value_K.detach())
    assert (found.details["bound"] <= math.log(negatives)).all()


def test_without_the_own_class_it_is_called_no_bound_and_unknown_labels_stay_negatives():
    value_KB = torch.arange(B).expand(K, B) % 3
    known_KB = (torch.arange(B) < 9).expand(K, B)
    given = batch(labels=Labels(value_KB, known_KB))
    term = built(exclude_same_class=True)
    other, target = (unit_rows(x) for x in projected(term, given))
    same = (value_KB[0][:, None] == value_KB[0]) & known_KB[0][:, None] & known_KB[0]
    logits = (other @ target.mT) / torch.tensor([0.1, 0.4])[:, None, None]
    logits = logits.masked_fill(same & ~torch.eye(B, dtype=torch.bool), -math.inf)
    at = torch.arange(B)
    both = [cross_entropy(x, at) + cross_entropy(x.T, at) for x in logits]
    expected = torch.stack(both) / 2
    found = term(given)
    torch.testing.assert_close(found.value_K, expected)
    assert set(found.details) == {"not_a_bound"}
    assert (found.value_K < built()(given).value_K).all()


def test_in_regression_there_are_no_classes_to_leave_out():
    found = built(task="regression", exclude_same_class=True)(batch())
    assert set(found.details) == {"bound"}
