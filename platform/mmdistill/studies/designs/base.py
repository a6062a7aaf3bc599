"""What every design is."""

import abc
from collections.abc import Sequence

from mmdistill.registry import Registry
from mmdistill.settings import Settings
from mmdistill.studies.file import ArmEntry


class Design(Settings, abc.ABC):
    """Generates arms from a hand-written one.

    Attributes:
        kind: name of the design.
        base: name of the arm it starts from.
    """

    kind: str
    base: str

    @abc.abstractmethod
    def arms(self, base: ArmEntry, privileged: Sequence[str]) -> list[ArmEntry]:
        """Return the generated arms; ``privileged`` are the modalities of the base's run.

        Raises:
            ValueError: if the design asks for what the base does not have.
        """


DESIGNS: Registry[type[Design]] = Registry("design")
