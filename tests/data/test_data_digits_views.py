import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from mmdistill.data.datasets.digits_views import DigitsViews


@pytest.fixture(scope="module")
def digits():
    return DigitsViews().samples()


@pytest.fixture(scope="module")
def image():
    return load_digits().images / 16


def test_has_the_sizes_of_its_recipe(digits):
    widths = {name: values.shape[1] for name, values in digits.inputs.items()}
    assert widths == {
        "pixels": 64,
        "fourier": 40,
        "gradients": 32,
        "profile": 16,
        "rows": 8,
        "cols": 8,
        "coarse": 4,
        "top": 32,
        "bottom": 32,
    }
    assert len(digits) == 1797


def test_rows_are_those_of_scikit_learn(digits, image):
    np.testing.assert_array_equal(digits.inputs["pixels"], image.reshape(-1, 64).astype(np.float32))
    np.testing.assert_array_equal(digits.labels, load_digits().target)


def test_views_follow_their_definitions(digits, image):
    row, inputs = 123, {name: values[123] for name, values in digits.inputs.items()}
    one = image[row]
    np.testing.assert_allclose(inputs["pixels"], one.ravel(), rtol=1e-6)
    np.testing.assert_allclose(inputs["rows"], [line.sum() / 8 for line in one], rtol=1e-6)
    np.testing.assert_allclose(inputs["cols"], [line.sum() / 8 for line in one.T], rtol=1e-6)
    np.testing.assert_allclose(inputs["profile"], [*inputs["cols"], *inputs["rows"]], rtol=1e-6)
    blocks = [one[:4, :4].mean(), one[:4, 4:].mean(), one[4:, :4].mean(), one[4:, 4:].mean()]
    np.testing.assert_allclose(inputs["coarse"], blocks, rtol=1e-6)
    np.testing.assert_allclose([*inputs["top"], *inputs["bottom"]], one.ravel(), rtol=1e-6)


def test_the_fourier_view_follows_the_sum_that_defines_it(digits, image):
    y, x = np.mgrid[:8, :8]
    expected = [
        abs((image[7] * np.exp(-2j * np.pi * (u * y + v * x) / 8)).sum()) / 8
        for u in range(8)
        for v in range(5)
    ]
    np.testing.assert_allclose(digits.inputs["fourier"][7], expected, atol=1e-6)


def test_the_gradient_view_agrees_with_numpys_histogram(digits, image):
    down, right = np.gradient(image[42])
    angle, size = np.arctan2(down, right) % (2 * np.pi), np.hypot(down, right)
    expected = [
        np.histogram(angle[cell], bins=8, range=(0, 2 * np.pi), weights=size[cell])[0]
        for cell in (np.s_[:4, :4], np.s_[:4, 4:], np.s_[4:, :4], np.s_[4:, 4:])
    ]
    np.testing.assert_allclose(digits.inputs["gradients"][42], np.concatenate(expected), atol=1e-6)


def test_the_split_is_half_a_fifth_and_the_rest_of_every_class(digits):
    for label in range(10):
        split = digits.split[digits.labels == label]
        assert (split == "train").mean() == pytest.approx(0.5, abs=0.01)
        assert (split == "val").mean() == pytest.approx(0.2, abs=0.01)


def test_the_student_view_knows_less_than_the_pixels(digits):
    train, test = digits.split == "train", digits.split == "test"
    score = {}
    for name in ("rows", "pixels"):
        nearest = KNeighborsClassifier(3).fit(digits.inputs[name][train], digits.labels[train])
        score[name] = nearest.score(digits.inputs[name][test], digits.labels[test])
    assert 0.6 < score["rows"] < 0.9 < score["pixels"]
