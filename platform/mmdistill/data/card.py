"""What a data set says about itself."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from mmdistill.errors import DataError, Problem
from mmdistill.registry import unknown_name
from mmdistill.settings import Settings, problems_of

# Names travel into file names, dotted paths and TensorBoard tags.
ModalityName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=40)]
LARGEST_CARD_BYTES = 1 << 20
# Keys that a card may have for its readers, and that nothing here needs; `notes` may be anything.
DOCUMENTED_EXTRAS = frozenset({"target", "metric", "pairing", "official_split", "notes"})


class Modality(Settings):
    """One input stream of a sample.

    Attributes:
        shape: true shape of one sample; stored and trained on flattened, row-major.
        description: what the numbers are.
        column: its column in a table; None means ``x_<name of the modality>``.
    """

    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    description: str = ""
    column: str | None = None


class Card(Settings):
    """What a data set holds, where it is from, and what it may be used for."""

    name: str
    title: str = ""
    task: Literal["classification", "regression"]
    classes: Annotated[int, Field(ge=2)] | None = None
    class_names: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    modalities: Annotated[dict[ModalityName, Modality], Field(min_length=1)]
    licence: str = ""
    source: str = ""
    citation: str = ""
    split_rule: str = ""

    @model_validator(mode="after")
    def _task_has_outputs(self) -> Self:
        if self.task == "classification" and self.classes is None:
            raise ValueError("`classes` is required when `task` is 'classification'")
        if self.task == "regression" and not self.targets:
            raise ValueError("`targets` must name the label columns when `task` is 'regression'")
        if self.class_names and len(self.class_names) != self.classes:
            count = len(self.class_names)
            raise ValueError(f"`class_names` must have {self.classes} names, one per class, but has {count}")
        return self

    @property
    def outputs(self) -> int:
        """Return how many numbers a network gives per sample: classes, or regression targets."""
        return len(self.targets) if self.classes is None or self.task == "regression" else self.classes

    def width(self, modality: str) -> int:
        """Return how many numbers one sample of a modality has."""
        return math.prod(self.modalities[modality].shape)

    def column(self, modality: str) -> str:
        """Return the name of a modality's column in a table."""
        return self.modalities[modality].column or f"x_{modality}"


class FileFacts(Settings):
    """What a card promises about its Parquet file; what is None is not promised."""

    file: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    n_samples: int | None = None
    split_counts: dict[str, int] | None = None


class CardFile(NamedTuple):
    """A card that was read, with what it promises about the file beside it."""

    path: Path
    card: Card
    facts: FileFacts


def read_card(path: Path) -> CardFile:
    """Return the card at a path, which may also be the folder that holds ``card.json``.

    Raises:
        DataError: with every problem of the card.
    """
    file = path / "card.json" if path.is_dir() else path
    tree = _json_object(file)
    facts, cards = set(FileFacts.model_fields), set(Card.model_fields)
    problems = _misspelt_keys(file, set(tree), facts | cards)
    read: list[Any] = []
    for model, keys in ((Card, cards), (FileFacts, facts)):
        try:
            read.append(model.model_validate({key: tree[key] for key in keys & set(tree)}))
        except ValidationError as error:
            problems += problems_of(error, str(file), model)
    if problems:
        raise DataError(sorted(problems))
    return CardFile(file, *read)


def _json_object(file: Path) -> dict[str, Any]:
    where = str(file)
    if not file.is_file():
        raise DataError(
            [Problem(where, "there is no such card", "give the path of a card.json or its folder")]
        )
    if file.stat().st_size > LARGEST_CARD_BYTES:
        raise DataError([Problem(where, "a card must be smaller than 1 MiB", "give the card, not the data")])
    try:
        tree = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError:
        mend = "give the path of a card.json or its folder, not that of the data"
        raise DataError([Problem(where, "not readable as JSON: it is no text", mend)]) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError([Problem(where, f"not readable as JSON: {error}", "correct the file")]) from error
    if not isinstance(tree, dict):
        raise DataError([Problem(where, "a card must be a JSON object", "put its keys between braces")])
    return tree


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return tree


def _misspelt_keys(file: Path, keys: set[str], known: set[str]) -> list[Problem]:
    """Return the keys that are nearly known; any other is for other readers of the card."""
    found = [
        unknown_name("key of a card", key, f"{file}: {key}", sorted(known))
        for key in sorted(keys - known - DOCUMENTED_EXTRAS)
    ]
    return [problem for problem in found if problem.mend.startswith("did you mean")]
