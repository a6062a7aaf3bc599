"""Nine views of the handwritten digits that come with scikit-learn; nothing is downloaded.

Axes: N rows, Y image rows, X image columns, D numbers of a view.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmdistill.data.card import Card, Modality
from mmdistill.data.dataset import DATASETS, Dataset
from mmdistill.data.samples import Samples, Strings, content_fingerprint
from mmdistill.randomness import numpy_generator

Images = npt.NDArray[np.float64]

_VIEWS: dict[str, tuple[tuple[int, ...], str]] = {
    "pixels": ((8, 8), "grey values, 0 to 1"),
    "fourier": ((8, 5), "magnitude of the two-dimensional Fourier transform, non-negative columns, over 8"),
    "gradients": ((2, 2, 8), "8-bin orientation histogram of the gradient magnitude per 4x4 cell"),
    "profile": ((16,), "sums of columns and of rows, over 8"),
    "rows": ((8,), "sums of rows, over 8"),
    "cols": ((8,), "sums of columns, over 8"),
    "coarse": ((2, 2), "means of 4x4 pixel blocks"),
    "top": ((4, 8), "upper half of the pixels"),
    "bottom": ((4, 8), "lower half of the pixels"),
}
_TRAIN_SHARE, _VALIDATION_SHARE = 0.5, 0.2


@DATASETS.register("digits_views")
class DigitsViews(Dataset):
    """1,797 digits of 8 x 8 pixels in ten classes, seen in nine ways."""

    def card(self) -> Card:
        """Return the card."""
        return Card(
            name="digits_views",
            title="Views of the scikit-learn digits",
            task="classification",
            classes=10,
            class_names=tuple("0123456789"),
            modalities={
                name: Modality(shape=shape, description=text) for name, (shape, text) in _VIEWS.items()
            },
            licence="UCI Machine Learning Repository: CC BY 4.0",
            source="sklearn.datasets.load_digits (UCI id 80, test part)",
            citation="E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits. UCI, 1998. "
            "doi:10.24432/C50P49",
            split_rule="stratified 50/20/30 with a fixed generator; every row is its own group",
        )

    def samples(self, *, with_test: bool = True, modalities: Sequence[str] | None = None) -> Samples:
        """Return the rows; a row is called by its index in ``load_digits``."""
        image_NYX, labels = _digits()
        inputs = {
            name: view.reshape(len(labels), -1).astype(np.float32) for name, view in _views(image_NYX).items()
        }
        rows = np.arange(len(labels)).astype(np.str_)
        split = _stratified_split(labels)
        samples = Samples(
            card=self.card(),
            inputs=inputs,
            labels=labels,
            split=split,
            groups=rows,
            rows=rows,
            fingerprint=content_fingerprint(inputs, labels, split, rows),
        )
        return samples.narrowed(with_test=with_test, modalities=modalities)

    def version(self) -> str:
        """Return nothing: the rows are part of scikit-learn."""
        return ""


def _digits() -> tuple[Images, npt.NDArray[np.int64]]:
    """Return images of 8 x 8 pixels, 0 to 1, and labels, as ``load_digits`` does.

    From its file: every process that executes orders would pay a second for importing scikit-learn.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8) / 16.0, table[:, -1].astype(np.int64)


def _views(image_NYX: Images) -> dict[str, Images]:
    row_NY, column_NX = image_NYX.sum(axis=2) / 8, image_NYX.sum(axis=1) / 8
    return {
        "pixels": image_NYX,
        "fourier": np.abs(np.fft.fft2(image_NYX))[:, :, :5] / 8,
        "gradients": _orientation_histograms(image_NYX),
        "profile": np.concatenate([column_NX, row_NY], axis=1),
        "rows": row_NY,
        "cols": column_NX,
        "coarse": _cells(image_NYX).mean(axis=-1),
        "top": image_NYX[:, :4],
        "bottom": image_NYX[:, 4:],
    }


def _cells(image_NYX: Images) -> Images:
    """Return the pixels of the four 4 x 4 cells [N, 4 cells, 16 pixels], upper left cell first."""
    return image_NYX.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 16)


def _orientation_histograms(image_NYX: Images) -> Images:
    down_NYX, right_NYX = np.gradient(image_NYX, axis=(1, 2))
    turn_NYX = np.arctan2(down_NYX, right_NYX) / (2 * np.pi) % 1.0
    bin_NYX = np.minimum((turn_NYX * 8).astype(np.int64), 7)
    size_NYX = np.hypot(down_NYX, right_NYX)
    return np.stack([_cells(size_NYX * (bin_NYX == index)).sum(axis=-1) for index in range(8)], axis=-1)


def _stratified_split(labels: npt.NDArray[np.int64]) -> Strings:
    generator = numpy_generator("digits_views", "split")
    split = np.full(len(labels), "test", dtype="<U5")
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.array([_TRAIN_SHARE, _TRAIN_SHARE + _VALIDATION_SHARE]) * len(rows)).astype(int)
        split[rows[: ends[0]]] = "train"
        split[rows[ends[0] : ends[1]]] = "val"
    return split
