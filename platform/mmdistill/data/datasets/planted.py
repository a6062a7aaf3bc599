"""A generator with known truth: what each modality knows about the class, and the best score it allows.

The class y is uniform in {0 ... C-1}; e(y) is the centred one-hot code of y with unit length. The factors are

=============  ====================================================  ========  ========
factor         latent value                                          in face   in audio
=============  ====================================================  ========  ========
redundant      redundant * e(y) + N(0, I)                            the same values
student_only   student_only * e(y) + N(0, I)                         yes       no
privileged     privileged_only * e(y) + N(0, I)                      no        yes
synergistic    synergistic * (2a - 1) + N(0, 1), a a fair coin       yes       no
               synergistic * (2b - 1) + N(0, 1), b = a xor (y mod 2) no        yes
=============  ====================================================  ========  ========

so a and b say nothing about y alone, and its parity together. Each modality adds coordinates of pure noise
N(0, 1), is rotated by a fixed random orthogonal matrix, and observed with noise N(0, 0.25) per number.
``decoy`` is pure noise, unless ``harmful`` makes it a teacher that misleads; ``static`` is pure noise always.

Given y and a, what any set of modalities shows is Gaussian with one covariance for all y and a; so the
posterior of y is a softmax over sums of two Gaussian densities, computed here exactly.

Axes: N rows, C classes, A values of the coin (2), D numbers of a modality.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt, model_validator

from mmdistill.data.card import Card, Modality
from mmdistill.data.dataset import DATASETS, Dataset
from mmdistill.data.samples import SPLITS, UNLABELLED, Integers, Samples, Strings, content_fingerprint
from mmdistill.randomness import numpy_generator

Doubles = npt.NDArray[np.float64]
Strength = Annotated[float, Field(ge=0, le=20)]

MODALITIES = ("face", "audio", "decoy", "static")
OBSERVATION_VARIANCE = 0.25
DECOY_STRENGTH = 4.0
_NOISE_COORDINATES = 7


@DATASETS.register("planted")
class Planted(Dataset):
    """Class-conditional Gaussian factors with knobs; a row is its own group.

    Attributes:
        rows: of the train, val and test splits.
        classes: equally frequent in every split.
        redundant: strength of what face and audio both show, with the same noise.
        student_only: strength of what only face shows.
        privileged_only: strength of what only audio shows.
        synergistic: strength of the two halves that tell the parity of the class together.
        label_noise: probability that a training label is replaced by another class.
        harmful: share of training rows without a label. There, decoy shows class y + 1 (mod C); in all other
            rows of all splits it shows y: a teacher trained on the labelled rows is sure of itself, and wrong
            on the others. 0 leaves decoy pure noise.
        seed: of the rows; the rotations are the same for every seed.
    """

    rows: tuple[PositiveInt, PositiveInt, PositiveInt] = (800, 300, 600)
    classes: Annotated[int, Field(ge=2, le=20)] = 4
    redundant: Strength = 1.0
    student_only: Strength = 0.5
    privileged_only: Strength = 1.5
    synergistic: Strength = 0.0
    label_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    harmful: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _every_class_has_a_row(self) -> Self:
        if min(self.rows) < self.classes:
            raise ValueError(f"each of `rows` must be at least `classes`, {self.classes}, but is {self.rows}")
        if round((1 - self.harmful) * self.rows[0]) < self.classes:
            raise ValueError(f"`harmful` must leave a labelled row per class, but is {self.harmful:g}")
        return self

    @property
    def width(self) -> int:
        """Return how many numbers each modality has."""
        return 2 * self.classes + 1 + _NOISE_COORDINATES

    def card(self) -> Card:
        """Return the card."""
        texts = (
            "what the student sees",
            "what is there in training only",
            "noise, or a misleading teacher",
            "noise",
        )
        return Card(
            name="planted",
            title="Gaussian factors with known truth",
            task="classification",
            classes=self.classes,
            modalities={
                name: Modality(shape=(self.width,), description=text)
                for name, text in zip(MODALITIES, texts, strict=True)
            },
            licence="Apache-2.0",
            source="computed",
            split_rule="independent rows, classes equally frequent",
        )

    def samples(self, *, with_test: bool = True, modalities: Sequence[str] | None = None) -> Samples:
        """Return the rows; a row is called by its index."""
        split = np.repeat(SPLITS, self.rows).astype(np.str_)
        true_N = np.concatenate(
            [self._classes_of(name, n) for name, n in zip(SPLITS, self.rows, strict=True)]
        )
        is_hidden_N = np.full(len(split), False)
        order = self._generator("hidden rows").permutation(self.rows[0])
        is_hidden_N[order[: round(self.harmful * self.rows[0])]] = True
        coin_N = self._generator("coin").integers(2, size=len(split))
        inputs = {
            name: (latent_ND @ _rotation(name, self.width).T).astype(np.float32)
            for name, latent_ND in self._latents(true_N, coin_N, is_hidden_N).items()
        }
        labels = np.where(is_hidden_N, UNLABELLED, self._noisy(true_N, split))
        rows = np.arange(len(split)).astype(np.str_)
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
        """Return nothing: the rows follow from the settings."""
        return ""

    def bayes(self, modalities: Sequence[str]) -> dict[str, float]:
        """Return ``accuracy`` (0 to 1; ties share) and ``log_loss`` (nats) of the posterior on test rows.

        No method that sees only ``modalities`` does better, but for the luck of these test rows.
        """
        samples = self.samples(modalities=modalities)
        is_test_N = samples.split == "test"
        labels = samples.labels[is_test_N]
        log_NC = self.log_posterior({name: x_ND[is_test_N] for name, x_ND in samples.inputs.items()})
        is_best_NC = log_NC >= log_NC.max(axis=1, keepdims=True) - 1e-12
        index = np.arange(len(labels))
        return {
            "accuracy": float((is_best_NC[index, labels] / is_best_NC.sum(axis=1)).mean()),
            "log_loss": float(-log_NC[index, labels].mean()),
        }

    def log_posterior(self, inputs: Mapping[str, npt.NDArray[np.floating]]) -> Doubles:
        """Return log P(y | the given modalities) [N, C] of rows in which decoy shows their class.

        log sum_a N(x; m(y, a), S) with the joint covariance S of all given modalities, normalised over y.
        """
        means_CA = self._means()
        x_ND = np.concatenate(
            [x.astype(np.float64) @ _rotation(name, self.width) for name, x in inputs.items()], 1
        )
        mean_CAD = np.concatenate([means_CA[name] for name in inputs], axis=2)
        factor_DD = np.linalg.cholesky(self._covariance(list(inputs)))
        white_ND = np.linalg.solve(factor_DD, x_ND.T).T
        white_CAD = np.linalg.solve(factor_DD, mean_CAD.reshape(-1, x_ND.shape[1]).T).T
        square_NC2 = ((white_ND[:, None, :] - white_CAD) ** 2).sum(axis=2).reshape(-1, self.classes, 2)
        log_NC: Doubles = np.logaddexp.reduce(-0.5 * square_NC2, axis=2)
        return log_NC - np.logaddexp.reduce(log_NC, axis=1, keepdims=True)

    def _generator(self, role: str) -> np.random.Generator:
        # One generator per role: turning a knob leaves every other draw as it was.
        return numpy_generator("planted", role, self.seed)

    def _classes_of(self, split: str, count: int) -> Integers:
        return self._generator(f"classes of {split}").permutation(np.arange(count) % self.classes)

    def _noisy(self, true_N: Integers, split: Strings) -> Integers:
        generator = self._generator("label noise")
        is_flipped_N = (generator.random(len(true_N)) < self.label_noise) & (split == "train")
        step_N = generator.integers(1, self.classes, size=len(true_N))
        return np.where(is_flipped_N, (true_N + step_N) % self.classes, true_N)

    def _latents(
        self, true_N: Integers, coin_N: Integers, is_hidden_N: npt.NDArray[np.bool_]
    ) -> dict[str, Doubles]:
        """Return what each modality shows before it is rotated, observation noise included."""
        shape = (len(true_N), self.width)
        noise = {name: self._generator(f"factors of {name}").standard_normal(shape) for name in MODALITIES}
        noise["audio"][:, : self.classes] = noise["face"][:, : self.classes]
        shown_N = np.where(is_hidden_N, (true_N + 1) % self.classes, true_N)
        classes = {"face": true_N, "audio": true_N, "decoy": shown_N, "static": true_N}
        scale = math.sqrt(OBSERVATION_VARIANCE)
        return {
            name: mean_CAD[classes[name], coin_N]
            + noise[name]
            + scale * self._generator(f"observation of {name}").standard_normal(shape)
            for name, mean_CAD in self._means().items()
        }

    def _means(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the mean of each modality before it is rotated [C, A, D], given the class and the coin."""
        count = self.classes
        code_CC = (np.eye(count) - 1 / count) / math.sqrt(1 - 1 / count)
        means = {name: np.zeros((count, 2, self.width)) for name in MODALITIES}
        for name, own in (("face", self.student_only), ("audio", self.privileged_only)):
            means[name][:, :, :count] = self.redundant * code_CC[:, None, :]
            means[name][:, :, count : 2 * count] = own * code_CC[:, None, :]
        coin_CA = np.tile([0, 1], (count, 1))
        means["face"][:, :, 2 * count] = self.synergistic * (2 * coin_CA - 1)
        partner_CA = coin_CA ^ (np.arange(count)[:, None] % 2)
        means["audio"][:, :, 2 * count] = self.synergistic * (2 * partner_CA - 1)
        means["decoy"][:, :, :count] = (DECOY_STRENGTH if self.harmful > 0 else 0.0) * code_CC[:, None, :]
        return means

    def _covariance(self, names: Sequence[str]) -> Doubles:
        """Return the covariance [D, D] of some modalities together, before rotation, given class and coin."""
        covariance_DD = (1 + OBSERVATION_VARIANCE) * np.eye(len(names) * self.width)
        if "face" in names and "audio" in names:
            index = np.arange(self.classes)
            face, audio = (names.index(name) * self.width + index for name in ("face", "audio"))
            covariance_DD[face, audio] = covariance_DD[audio, face] = 1.0
        return covariance_DD


def _rotation(modality: str, width: int) -> Doubles:
    """Return a random orthogonal matrix (Haar measure), the same for every seed."""
    matrix = numpy_generator("planted", "rotation", modality, width).standard_normal((width, width))
    orthogonal, triangular = np.linalg.qr(matrix)
    # Without the signs QR is not unique (Mezzadri, 2007).
    return np.asarray(orthogonal * np.sign(np.diag(triangular)))
