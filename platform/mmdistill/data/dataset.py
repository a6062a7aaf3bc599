"""A data set: its card and its rows; its fields are the options a study may set."""

import abc
from collections.abc import Sequence

from mmdistill.data.card import Card
from mmdistill.data.samples import Samples
from mmdistill.registry import Registry
from mmdistill.settings import Settings


class Dataset(Settings, abc.ABC):
    """Where rows come from."""

    @abc.abstractmethod
    def card(self) -> Card:
        """Return what the data set says about itself, without reading its rows."""

    @abc.abstractmethod
    def samples(self, *, with_test: bool = True, modalities: Sequence[str] | None = None) -> Samples:
        """Return the rows.

        Args:
            with_test: False leaves the rows of the test split out; the features of those are not read.
            modalities: names on the card; None means all of them.

        Raises:
            DataError: with every problem that keeps the rows from being read.
        """

    @abc.abstractmethod
    def version(self) -> str:
        """Return a text that changes when files behind the rows do; empty where rows are computed."""


DATASETS: Registry[type[Dataset]] = Registry("data set")
