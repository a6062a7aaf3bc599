"""What every term keeps; a new one is found by discovery.

Axes: K lanes, B batch, D width, C outputs, M teachers.
"""

import itertools
import math
from typing import Literal, get_args, get_origin

import pytest
import torch

from mmdistill.models.network import Outputs
from mmdistill.settings import declared_ranges
from mmdistill.terms import TERMS, Batch, Labels, Layers, Masked, Pool, Shapes

K, B, C = 3, 24, 4
TEACHERS = ("a", "b", "joint")
ROWS = 40
SHAPES = Shapes(8, 12, 6, "classification", C, TEACHERS, ROWS, epochs=10)
# Terms that are least where the student says what the teacher says, at 0 or at a value of the teacher's own.
LEAST = {
    "centroid": 0.0,
    "concordance": 0.0,
    "correlation_matrix": 0.0,
    "decoupled": 0.0,
    "discrepancy": 0.0,
    "information_flow": 0.0,
    "multi_level": 0.0,
    "mutual_guidance": 0.0,
    "peer_advantage": 0.0,
    "probabilistic": 0.0,
    "rank_gate": 0.0,
    "relational": 0.0,
    "selective_logits": 0.0,
    "similarity": 0.0,
    "soft_cross_entropy": None,
    "softened_logits": 0.0,
    "symmetric_kl": 0.0,
    "transport": 0.0,
}
# Terms whose value depends on the order of the rows, and why.
ORDERED = {
    "correlation": "as RepDistiller codes it, embeddings are compared with those of the next row",
    "conditional_entropy:form=alice": "what the discriminator judges has noise, drawn row by row",
    "conditional_entropy:form=cgan": "noise is drawn row by row",
    "contrastive:negatives=bank": "negatives are drawn row by row, and the bank remembers earlier batches",
}
EXTREMES = [0.0, 1e-6, 1e-3, 1.0, 1e2, 1e4]


@pytest.fixture(params=TERMS)
def name(request):
    return request.param


def settings_of(name, **changes):
    kind = TERMS[name].settings_type
    return kind(**({"k": 8} if "k" in kind.model_fields else {}) | changes)


def task_of(name):
    """Return a task a term is defined for, classification if it can be."""
    return "classification" if "classification" in TERMS[name].tasks else "regression"


def shapes_of(name, task=None):
    return SHAPES._replace(task=task or task_of(name))


def built(name, settings=None, task=None, lanes=K):
    settings = [settings_of(name)] * lanes if settings is None else settings
    return TERMS[name](settings, shapes_of(name, task), list(range(len(settings))))


def outputs(seed, width, scale=1.0, lanes=K):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(lanes, B, width, generator=generator) * scale
    logits = torch.randn(lanes, B, C, generator=generator) * scale
    return Outputs(features.requires_grad_(), logits.requires_grad_())


def labels(task):
    """Return the labels of some rows, at least two of every class known."""
    targets = torch.randn(K, B, C, generator=torch.Generator().manual_seed(4))
    value = targets if task == "regression" else (torch.arange(B) % C).repeat(K, 1)
    return Labels(value, torch.arange(B).repeat(K, 1) < B // 2)


def batch(student=1.0, teacher=1.0, auxiliary=1.0, task="classification"):
    """Return a batch with everything there is; the chosen teacher is the last of the pool."""
    parts = [outputs(1, SHAPES.student, student), outputs(2, SHAPES.teacher, teacher)]
    others = [outputs(5 + m, SHAPES.teacher, teacher) for m in range(len(TEACHERS) - 1)]
    features, logits = (torch.stack(found, dim=2).detach() for found in zip(*others, parts[1], strict=True))
    known = labels(task)
    evidence = logits.square().mean(dim=3) * known.known_KB[..., None]
    rows_KB = torch.stack([torch.randperm(ROWS)[:B] for _ in range(K)])
    pool = Pool(TEACHERS, features.requires_grad_(), logits.requires_grad_(), evidence)
    layers = Layers((outputs(8, 9, student)[0],), (outputs(9, 15, teacher)[0],))
    wide = [outputs(11 + n, 2 * C, x)[0].detach() for n, x in enumerate((student, teacher, teacher))]
    masked = Masked(*(x.view(K, B, 2, C).requires_grad_() for x in wide))
    further = {"layers": layers, "masked": masked, "average": outputs(17, 6, teacher)}
    return Batch(*parts, outputs(3, 6, auxiliary), pool, known, rows_KB, **further)


def given_to(name, *scales):
    """Return a batch of the term's own task."""
    return batch(*scales, task=task_of(name))


def picked(given, index):
    """Return a batch of some lanes (a slice) and rows (a permutation)."""
    lanes, rows = index

    def taken(x):
        return x.detach()[lanes][:, rows].requires_grad_(x.requires_grad)

    parts = (given.student, given.teacher, given.auxiliary)
    pool = Pool(TEACHERS, *(taken(x) for x in given.pool[1:]))
    known = Labels(*(taken(x) for x in given.labels))
    return Batch(
        *(Outputs(*(taken(x) for x in part)) for part in parts),
        pool,
        known,
        taken(given.rows_KB),
        given.epoch,
        Layers(*(tuple(taken(x) for x in side) for side in given.layers)),
        Masked(*(taken(x) for x in given.masked)),
        Outputs(*(taken(x) for x in given.average)),
    )


def inputs(given):
    """Return all there may be a gradient to."""
    return [*given.student, *given.auxiliary, *given.layers.student, given.masked[0], *frozen(given)]


def frozen(given):
    """Return all that teachers say, which is constant where they are frozen."""
    return [*given.teacher, *given.pool[1:3], *given.layers.teacher, *given.masked[1:], *given.average]


def learner(name, given):
    """Return who learns from a term: the student, or whatever else of the batch the term is about."""
    if "masked" in TERMS[name].needs:
        return given.masked[:1]
    return given.auxiliary if "auxiliary" in TERMS[name].needs else given.student


def gradients(term, given):
    wanted = [*inputs(given), *term.parameters()]
    value_K = term(given).value_K
    found = torch.autograd.grad(value_K.sum(), wanted, allow_unused=True)
    return value_K.detach(), [g for g in found if g is not None]


def literals(kind):
    for field, info in kind.model_fields.items():
        if get_origin(info.annotation) is Literal:
            yield field, get_args(info.annotation)
        elif info.annotation is bool:
            yield field, (False, True)


def variants(name):
    """Return settings with each alternative of each structural field that is not dead, and with infinity."""
    kind, found = TERMS[name].settings_type, [{}]
    for field, options in literals(kind):
        found = [{**have, field: option} for have in found for option in options]
    for field in kind.model_fields:
        try:
            found += [{**have, field: math.inf} for have in found if settings_of(name, **{field: math.inf})]
        except ValueError:
            continue
    every, first = [settings_of(name, **changes) for changes in found], settings_of(name)
    structural = {field for field, _ in literals(kind)}
    return [s for s in every if all(getattr(s, f) == getattr(first, f) for f in structural & s.dead())]


def alternatives(name):
    """Return settings that differ from the defaults in one structural field, by what they are."""
    defaults = TERMS[name].settings_type()
    for field, options in literals(TERMS[name].settings_type):
        for option in options:
            if option != getattr(defaults, field):
                yield f"{name}:{field}={option}", settings_of(name, **{field: option})


def another(value):
    if isinstance(value, bool):
        return not value
    if value is None:
        return 0.5
    return 7.0 if isinstance(value, float) and math.isinf(value) else 2 * value


def test_settings_survive_json(name):
    for settings in variants(name):
        again = type(settings).model_validate_json(settings.model_dump_json())
        assert again == settings
        assert again.digest == settings.digest
        assert type(settings).model_validate(settings.as_json()) == settings


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_gives_one_value_per_lane(name, task):
    if task not in TERMS[name].tasks:
        pytest.skip("this term is not defined for this task")
    found = built(name, task=task)(batch(task=task))
    assert found.value_K.shape == (K,)
    assert all(detail.shape == (K,) and not detail.requires_grad for detail in found.details.values())


def assert_finite(term, given, case):
    value_K, found = gradients(term, given)
    assert value_K.isfinite().all(), case
    assert all(gradient.isfinite().all() for gradient in found), case


def test_values_and_gradients_are_finite_in_float32(name):
    for student, teacher in itertools.product(EXTREMES, EXTREMES):
        assert_finite(built(name), given_to(name, student, teacher, teacher), (student, teacher))


def test_every_alternative_is_finite_in_float32(name):
    for case, settings in alternatives(name):
        for student, teacher in [(0.0, 0.0), (1e-6, 1e4), (1e4, 1e-6), (1e4, 1e4)]:
            assert_finite(built(name, [settings] * K), given_to(name, student, teacher, teacher), case)


def test_every_alternative_teaches_every_lane_and_leaves_frozen_teachers_alone(name):
    for case, settings in alternatives(name):
        given = given_to(name)
        built(name, [settings] * K)(given).value_K.sum().backward()
        (found,) = [part.grad for part in learner(name, given) if part.grad is not None]
        assert (found.abs().sum(dim=(1, 2)) > 0).all(), case
        if "teacher_gradient=True" not in case:
            assert all(part.grad is None for part in frozen(given)), case


def test_is_finite_where_some_rows_are_zero(name):
    given = given_to(name)
    with torch.no_grad():
        for part in inputs(given):
            part[:, ::3] = 0.0
    assert_finite(built(name), given, name)


def test_a_frozen_teacher_gets_no_gradient(name):
    given = given_to(name)
    built(name)(given).value_K.sum().backward()
    assert all(part.grad is None for part in frozen(given))


def test_a_teacher_that_trains_along_gets_one_where_asked(name):
    if "teacher_gradient" not in TERMS[name].settings_type.model_fields:
        pytest.skip("this term never sends its teacher a gradient")
    given = given_to(name)
    built(name, [settings_of(name, teacher_gradient=True)] * K)(given).value_K.sum().backward()
    found = [part.grad for part in given.teacher if part.grad is not None]
    assert found
    assert all((gradient.abs().sum(dim=(1, 2)) > 0).all() for gradient in found)


def test_the_learner_of_every_lane_gets_a_gradient(name):
    given = given_to(name)
    built(name)(given).value_K.sum().backward()
    grads = [part.grad for part in learner(name, given) if part.grad is not None]
    assert len(grads) == 1
    assert (grads[0].abs().sum(dim=(1, 2)) > 0).all()


def test_the_order_of_rows_does_not_matter(name):
    given, order = given_to(name), torch.randperm(B, generator=torch.Generator().manual_seed(0))
    shuffled = picked(given, (slice(None), order))
    for case, settings in [(name, settings_of(name)), *alternatives(name)]:
        pair = [built(name, [settings] * K)(rows).value_K for rows in (given, shuffled)]
        assert torch.allclose(*pair, rtol=1e-4, atol=1e-6) == (case not in ORDERED), case


def test_a_lane_equals_its_solo_run(name):
    ranges = declared_ranges(TERMS[name].settings_type())
    lanes = [
        settings_of(name, **{f: r.at(u) for f, r in ranges.items() if f != "k"}) for u in (0.1, 0.5, 0.9)
    ]
    if "k" in ranges:
        lanes = [s.model_copy(update={"k": k}) for s, k in zip(lanes, (5, 8, 20), strict=True)]
    given, together = given_to(name), built(name, lanes)
    value_K, _ = gradients(together, given)
    for k in range(K):
        solo = TERMS[name]([lanes[k]], shapes_of(name), [k])
        alone, found = gradients(solo, picked(given, (slice(k, k + 1), slice(None))))
        torch.testing.assert_close(alone[0], value_K[k], rtol=1e-4, atol=1e-6)
        assert all(gradient.isfinite().all() for gradient in found)


def test_a_lane_of_every_alternative_equals_its_solo_run(name):
    given = given_to(name)
    for case, settings in alternatives(name):
        value_K = built(name, [settings] * K)(given).value_K
        alone = [
            TERMS[name]([settings], shapes_of(name), [k])(picked(given, ([k], slice(None)))) for k in range(K)
        ]
        found_K = torch.cat([found.value_K for found in alone])
        torch.testing.assert_close(found_K, value_K, rtol=1e-4, atol=1e-6, msg=case)


def test_some_of_its_lanes_are_the_same_lanes(name):
    ranges = declared_ranges(TERMS[name].settings_type())
    lanes = [
        settings_of(name, **{f: r.at(u) for f, r in ranges.items() if f != "k"}) for u in (0.1, 0.5, 0.9)
    ]
    term, given, kept = built(name, lanes), given_to(name), torch.tensor([0, 2])
    expected = term(given).value_K[kept]
    narrowed = term.only(kept)
    for held in (*narrowed.parameters(), *narrowed.buffers()):
        held.data = held.data[kept]
    found = narrowed(picked(given, (kept, slice(None)))).value_K
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_holds_nothing_that_a_snapshot_would_miss(name):
    term = built(name)
    assert all(held.shape[0] == K for held in (*term.parameters(), *term.buffers()))
    assert len(term.generators) in {0, K}
    assert term.solo is None or term.solo.strip()


def test_a_batch_limits_what_the_term_says_it_does(name):
    kind = TERMS[name].settings_type
    limits = kind().most(B)
    assert limits.keys() <= kind.model_fields.keys()
    assert_finite(built(name, [settings_of(name, **limits)] * K), given_to(name), limits)


def test_a_lane_that_is_not_finite_does_not_disturb_the_others(name):
    given, spoiled = given_to(name), given_to(name)
    with torch.no_grad():
        for part in learner(name, spoiled):
            part[1] = math.nan
    expected, found = gradients(built(name), given)[0], built(name)(spoiled).value_K
    assert not found[1].isfinite()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-6)


def test_a_step_against_the_gradient_lowers_it(name):
    term, given = built(name), given_to(name)
    before = term(given).value_K
    mine = list(learner(name, given))
    found = torch.autograd.grad(before.sum(), mine, allow_unused=True)
    with torch.no_grad():
        for part, gradient in zip(mine, found, strict=True):
            if gradient is not None:
                part -= 0.002 * gradient / gradient.square().mean(dim=(1, 2), keepdim=True).sqrt()
    assert (term(given).value_K < before).all()


@pytest.mark.parametrize("name", LEAST)
def test_is_least_where_the_student_is_the_teacher(name):
    # As wide as each other, so that nothing learned stands between them.
    term = TERMS[name]([settings_of(name)] * K, shapes_of(name)._replace(student=SHAPES.teacher), range(K))
    teacher = outputs(2, SHAPES.teacher)
    below = (outputs(3, 9).features_KBD,)
    least_K = term(Batch(teacher, teacher, labels=labels(task_of(name)), layers=Layers(below, below))).value_K
    if LEAST[name] is not None:
        torch.testing.assert_close(least_K, torch.full((K,), LEAST[name]), atol=2e-5, rtol=0)
    for seed in range(5):
        student, others = outputs(seed + 10, SHAPES.teacher), (outputs(seed + 20, 9).features_KBD,)
        given = Batch(student, teacher, labels=labels(task_of(name)), layers=Layers(others, below))
        assert (term(given).value_K > least_K + 1e-4).all()


def test_dead_fields_change_nothing(name):
    checked, given = 0, given_to(name)
    for settings in variants(name):
        changes = {field: another(getattr(settings, field)) for field in settings.dead()}
        # An infinite value may have made its own field dead.
        changes = {f: v for f, v in changes.items() if f in settings.model_copy(update={f: v}).dead()}
        checked += bool(changes)
        value, found = gradients(built(name, [settings] * K), given)
        changed = built(name, [settings.model_copy(update=changes)] * K)
        value_then, found_then = gradients(changed, given)
        assert torch.equal(value, value_then), (settings, changes)
        assert all(torch.equal(a, b) for a, b in zip(found, found_then, strict=True)), (settings, changes)
    assert checked or not any(settings.dead() for settings in variants(name))


def test_fields_for_classification_only_change_nothing_in_regression(name):
    for field in TERMS[name].classification_only:
        given, settings = batch(task="regression"), settings_of(name)
        changed = settings.model_copy(update={field: another(getattr(settings, field))})
        values = [built(name, [s] * K, task="regression")(given).value_K for s in (settings, changed)]
        assert torch.equal(*values)
        values = [built(name, [s] * K)(given_to(name)).value_K for s in (settings, changed)]
        assert not torch.equal(*values)


def test_a_missing_teacher_is_a_bug_that_is_named(name):
    with pytest.raises(ValueError, match=r"this term needs a (teacher|auxiliary|pool), and the run has none"):
        built(name)(Batch(outputs(1, SHAPES.student)))
