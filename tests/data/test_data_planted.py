import itertools

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mmdistill.data.datasets.planted import Planted, _rotation
from mmdistill.data.samples import check

SETS = [s for n in (1, 2, 3) for s in itertools.combinations(("face", "audio", "decoy"), n)]
EVERYTHING = Planted(
    rows=(30, 30, 90),
    classes=3,
    redundant=1,
    student_only=0.7,
    privileged_only=1.2,
    synergistic=1.5,
    harmful=0.3,
)


def simulated(planted, names, label, count=20_000):
    """Return many rows of what some modalities show for a class."""
    big = planted.model_copy(update={"rows": (planted.classes, planted.classes, count)})
    samples = big.samples(modalities=names)
    shown = np.concatenate([samples.inputs[name] for name in names], axis=1).astype(float)
    return shown[(samples.split == "test") & (samples.labels == label)]


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_the_posterior_agrees_with_naive_enumeration_of_means_and_covariances(names):
    """Rebuild each observed density in its own coordinates from the text of the module."""
    planted = EVERYTHING
    samples = planted.samples(modalities=names)
    is_test = samples.split == "test"
    shown = np.concatenate([samples.inputs[name][is_test] for name in names], axis=1).astype(float)
    C, D = 3, planted.width
    code = (np.eye(C) - 1 / C) / np.sqrt(1 - 1 / C)
    rotation = {name: _rotation(name, D) for name in names}
    covariance = 0.25 * np.eye(len(names) * D)
    for i, j in itertools.product(range(len(names)), repeat=2):
        shared = np.zeros((D, D))
        if i == j:
            shared = np.eye(D)
        elif {names[i], names[j]} == {"face", "audio"}:
            shared[:C, :C] = np.eye(C)
        covariance[i * D : (i + 1) * D, j * D : (j + 1) * D] += (
            rotation[names[i]] @ shared @ rotation[names[j]].T
        )
    scores = np.zeros((is_test.sum(), C))
    for y in range(C):
        terms = []
        for a in (0, 1):
            b = a ^ (y % 2)
            pad = np.zeros(D - 2 * C - 1)
            latent = {
                "face": np.concatenate([1.0 * code[y], 0.7 * code[y], [1.5 * (2 * a - 1)], pad]),
                "audio": np.concatenate([1.0 * code[y], 1.2 * code[y], [1.5 * (2 * b - 1)], pad]),
                "decoy": np.concatenate([4.0 * code[y], np.zeros(C + 1), pad]),
            }
            mean = np.concatenate([rotation[name] @ latent[name] for name in names])
            terms.append(multivariate_normal(mean, covariance).logpdf(shown))
        scores[:, y] = logsumexp(terms, axis=0)
    expected = scores - logsumexp(scores, axis=1, keepdims=True)
    inputs = {name: values[is_test] for name, values in samples.inputs.items()}
    np.testing.assert_allclose(planted.log_posterior(inputs), expected, atol=1e-8)
    labels = samples.labels[is_test]
    found = planted.bayes(names)
    assert found["log_loss"] == pytest.approx(-expected[np.arange(len(labels)), labels].mean(), abs=1e-8)
    assert found["accuracy"] == pytest.approx((expected.argmax(axis=1) == labels).mean(), abs=1e-12)


def test_rows_have_the_covariance_that_the_posterior_assumes():
    planted = Planted(classes=2, redundant=1, privileged_only=1, student_only=1)
    names = ("face", "audio")
    rows = simulated(planted, names, label=1)
    back = np.concatenate(
        [
            rows[:, i * planted.width : (i + 1) * planted.width] @ _rotation(n, planted.width)
            for i, n in enumerate(names)
        ],
        axis=1,
    )
    np.testing.assert_allclose(np.cov(back.T), planted._covariance(names), atol=0.06)
    expected = np.concatenate([planted._means()[name][1, 0] for name in names])
    np.testing.assert_allclose(back.mean(axis=0), expected, atol=0.05)


@pytest.mark.parametrize("names", [("face",), ("audio",), ("face", "audio")], ids="+".join)
def test_no_linear_discriminant_on_many_rows_beats_it_and_it_is_reached_without_synergy(names):
    planted = Planted(rows=(20_000, 4, 20_000))
    samples = planted.samples(modalities=names)
    shown = np.concatenate([samples.inputs[name] for name in names], axis=1)
    train, test = samples.split == "train", samples.split == "test"
    fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(shown[train], samples.labels[train])
    reached = fitted.score(shown[test], samples.labels[test])
    assert planted.bayes(names)["accuracy"] == pytest.approx(reached, abs=0.006)


def test_the_posterior_is_calibrated():
    planted = Planted(rows=(4, 4, 20_000), synergistic=1.5)
    samples = planted.samples(modalities=["face", "audio"])
    is_test = samples.split == "test"
    posterior = np.exp(planted.log_posterior({name: x[is_test] for name, x in samples.inputs.items()}))
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    top = posterior.max(axis=1)
    hit = posterior.argmax(axis=1) == samples.labels[is_test]
    for low, high in itertools.pairwise((0.3, 0.5, 0.7, 0.9, 1.0)):
        inside = (top > low) & (top <= high)
        assert hit[inside].mean() == pytest.approx(top[inside].mean(), abs=0.025)


def test_more_modalities_never_make_it_worse():
    planted = Planted(rows=(800, 300, 6000), synergistic=1.0)
    loss = {names: planted.bayes(names)["log_loss"] for names in SETS}
    for fewer, more in itertools.permutations(SETS, 2):
        if set(fewer) < set(more):
            assert loss[more] <= loss[fewer] + 1e-9


@pytest.mark.parametrize(
    ("knobs", "names", "knows"),
    [
        ({"redundant": 0, "student_only": 0, "synergistic": 0}, ("face",), False),
        ({"redundant": 0, "student_only": 0, "synergistic": 3}, ("face",), False),
        ({"redundant": 0, "privileged_only": 0, "synergistic": 3}, ("audio",), False),
        (
            {"redundant": 0, "student_only": 0, "privileged_only": 0, "synergistic": 3},
            ("face", "audio"),
            True,
        ),
        (
            {"redundant": 0, "student_only": 0, "privileged_only": 0, "synergistic": 0},
            ("face", "audio"),
            False,
        ),
        ({"harmful": 0}, ("decoy",), False),
        ({"harmful": 0.5}, ("decoy",), True),
        ({"redundant": 0, "student_only": 1, "synergistic": 0}, ("face",), True),
        ({"redundant": 1, "student_only": 0, "synergistic": 0}, ("face",), True),
        ({"redundant": 0, "privileged_only": 1, "synergistic": 0}, ("audio",), True),
    ],
)
def test_a_knob_at_zero_removes_what_it_stands_for(knobs, names, knows):
    found = Planted(**knobs).bayes(names)
    if knows:
        assert found["accuracy"] > 0.35
        assert found["log_loss"] < np.log(4) - 0.1
    else:
        assert found["accuracy"] == pytest.approx(0.25, abs=1e-12)
        assert found["log_loss"] == pytest.approx(np.log(4), abs=1e-9)


def test_synergy_tells_the_parity_of_the_class_and_no_more():
    found = Planted(redundant=0, student_only=0, privileged_only=0, synergistic=20).bayes(("face", "audio"))
    assert found["accuracy"] == pytest.approx(0.5, abs=1e-9)
    assert found["log_loss"] == pytest.approx(np.log(2), abs=1e-9)


def test_a_redundant_factor_adds_little_beyond_its_first_copy():
    redundant = Planted(redundant=2, student_only=0, privileged_only=0, rows=(4, 4, 4000))
    alone, both = redundant.bayes(("face",))["log_loss"], redundant.bayes(("face", "audio"))["log_loss"]
    separate = Planted(redundant=0, student_only=2, privileged_only=2, rows=(4, 4, 4000))
    gain = separate.bayes(("face",))["log_loss"] - separate.bayes(("face", "audio"))["log_loss"]
    assert 0 < alone - both < 0.4 * gain


def test_label_noise_is_in_training_labels_only():
    clean, noisy = (
        Planted(rows=(4000, 300, 600)).samples(),
        Planted(rows=(4000, 300, 600), label_noise=0.3).samples(),
    )
    is_train, differs = clean.split == "train", clean.labels != noisy.labels
    assert differs[is_train].mean() == pytest.approx(0.3, abs=0.03)
    assert not differs[~is_train].any()
    steps = (noisy.labels - clean.labels)[is_train & differs] % 4
    np.testing.assert_allclose(np.bincount(steps, minlength=4)[1:] / len(steps), 1 / 3, atol=0.05)
    np.testing.assert_array_equal(clean.inputs["face"], noisy.inputs["face"])


def test_a_harmful_teacher_is_right_where_it_learns_and_wrong_where_it_teaches():
    planted = Planted(harmful=0.5, label_noise=0)
    samples, plain = planted.samples(), Planted().samples()
    hidden = samples.labels == -1
    assert hidden.sum() == 400
    assert set(samples.split[hidden]) == {"train"}
    labelled = (samples.split == "train") & ~hidden
    decoy = samples.inputs["decoy"]
    teacher = LinearDiscriminantAnalysis().fit(decoy[labelled], samples.labels[labelled])
    assert teacher.score(decoy[samples.split == "test"], samples.labels[samples.split == "test"]) > 0.97
    truth = plain.labels[hidden]
    assert teacher.score(decoy[hidden], (truth + 1) % 4) > 0.97
    assert teacher.predict_proba(decoy[hidden]).max(axis=1).mean() > 0.95
    np.testing.assert_array_equal(samples.inputs["face"], plain.inputs["face"])


def test_seeds_are_other_draws_from_one_distribution():
    first, second = Planted(seed=0), Planted(seed=1)
    assert first.samples().fingerprint != second.samples().fingerprint
    assert first.samples().fingerprint == Planted(seed=0).samples().fingerprint
    assert first.bayes(("audio",))["accuracy"] == pytest.approx(
        second.bayes(("audio",))["accuracy"], abs=0.06
    )
    shown = second.samples(modalities=["face"]).inputs
    assert first.log_posterior(shown) == pytest.approx(second.log_posterior(shown))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": (3, 300, 600)}, r"each of `rows` must be at least `classes`, 4, but is \(3, 300, 600\)"),
        ({"harmful": 1.0}, "`harmful` must leave a labelled row per class, but is 1"),
        ({"label_noise": 1.0}, "less than 1"),
        ({"redundant": -1}, "greater than or equal to 0"),
        ({"privileged": 1}, "Extra inputs are not permitted"),
    ],
)
def test_refuses_knobs_out_of_range(options, message):
    with pytest.raises(ValidationError, match=message):
        Planted(**options)


def test_all_knobs_turned_the_rows_are_sound():
    turned = Planted(
        rows=(90, 40, 50), classes=5, redundant=3, synergistic=3, label_noise=0.4, harmful=0.6, seed=9
    )
    assert check(turned.samples(), "planted") == []
