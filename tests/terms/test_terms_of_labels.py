"""Terms that look at the class of a row.

Axes: K lanes, B batch, D width, C classes.
"""

import pytest
import torch

from mmdistill.models.network import Outputs
from mmdistill.pipeline.run import RunSettings, unfit_terms
from mmdistill.terms import TERMS, Batch, Labels, Shapes

K, B, D, C = 2, 6, 4, 3
SHAPES = Shapes(D, D, D, "classification", C, ("joint",), 20)
OF_LABELS = ["class_contrast", "decoupled", "selective_logits"]


def drawn(seed, *shape):
    return torch.randn(K, B, *shape, generator=torch.Generator().manual_seed(seed))


def batch(known=(True,) * B, epoch=100, wrong=0):
    """Return a batch in which some rows have a label; where they have none any value stands for it."""
    known_KB = torch.tensor(known).repeat(K, 1)
    value_KB = (torch.arange(B).repeat(K, 1) + wrong * ~known_KB) % C
    return Batch(
        Outputs(drawn(1, D), drawn(2, C)),
        Outputs(drawn(3, D), drawn(4, C)),
        labels=Labels(value_KB, known_KB),
        epoch=epoch,
    )


def value(name, given, **settings):
    return TERMS[name]([TERMS[name].settings_type(**settings)] * K, SHAPES, range(K))(given).value_K


@pytest.mark.parametrize("name", OF_LABELS)
def test_what_stands_in_for_a_missing_label_does_not_matter(name):
    some = (True, True, False, True, False, True)
    for unlabelled in ("skip", "teacher"):
        pair = [value(name, batch(some, wrong=wrong), unlabelled=unlabelled) for wrong in (0, 1)]
        assert torch.equal(*pair)


@pytest.mark.parametrize("name", OF_LABELS)
def test_rows_without_a_label_may_be_skipped_or_take_the_choice_of_the_teacher(name):
    half, given = (True,) * 3 + (False,) * 3, batch()
    first = [Outputs(*(x[:, :3] for x in part)) for part in (given.student, given.teacher)]
    alone = Batch(*first, labels=Labels(*(x[:, :3] for x in given.labels)), epoch=100)
    torch.testing.assert_close(value(name, batch(half)), value(name, alone))
    chosen_KB = given.labels.value.clone()
    chosen_KB[:, 3:] = given.teacher.logits_KBC[:, 3:].argmax(dim=-1)
    told = Batch(given.student, given.teacher, labels=Labels(chosen_KB, given.labels.known_KB), epoch=100)
    torch.testing.assert_close(value(name, batch(half), unlabelled="teacher"), value(name, told))


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.05), (9, 0.5), (19, 1.0), (30, 1.0)])
def test_decoupled_logits_are_warmed_up_over_twenty_epochs(epoch, share):
    torch.testing.assert_close(
        value("decoupled", batch(epoch=epoch)), share * value("decoupled", batch(), warm_up=0)
    )


def test_terms_that_say_nothing_of_a_task_or_of_two_classes_are_refused_by_name():
    data = {"dataset": "digits_views", "student": ["rows"], "privileged": ["pixels"]}
    tree = {"data": data, "teachers": {"pool": ["joint"]}, "terms": {"decoupled": {}, "concordance": {}}}
    run = RunSettings.model_validate(tree)
    assert unfit_terms(run, "classification", 2) == [
        "terms.concordance is not defined for classification",
        "terms.decoupled needs at least 3 classes to say anything, and there are 2",
    ]
    assert unfit_terms(run, "regression", None) == ["terms.decoupled is not defined for regression"]
