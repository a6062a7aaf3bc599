"""The losses by name, what is known of each, and what they share.

Axes: L leading axes (lanes; any number), B batch, D width.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import torch
from torch import Tensor

from mmdistill.registry import Registry

Need = Literal["logits", "features", "maps", "labels"]
Tasks = Literal["classification", "regression", "both"]
Function = TypeVar("Function", bound=Callable[..., Any])


class Setting(NamedTuple):
    """A setting of a loss.

    Attributes:
        required: whether it has to be given.
        default: its default; None if it has to be given.
        range: the least and the greatest value worth trying; None if it is no number.
        choices: the words it may be; empty if it is no word.
    """

    required: bool
    default: Any
    range: tuple[float, float] | None
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Loss:
    """A loss and what is known of it; calling it calls the function.

    Attributes:
        function: from the student's tensor, the teacher's tensor and settings to one value per lane.
        source: paper and path of the reference code.
        needs: what its tensors are; predictions of a regression count as logits.
        tasks: where it fits.
        ranges: the least and the greatest value worth trying of its numeric settings.
    """

    function: Callable[..., Any]
    source: str
    needs: tuple[Need, ...]
    tasks: Tasks
    ranges: Mapping[str, tuple[float, float]]

    def __call__(self, *tensors: Tensor, **settings: Any) -> Tensor:
        """Return the value of each lane."""
        value: Tensor = self.function(*tensors, **settings)
        return value

    @property
    def path(self) -> str:
        """Return where the function is imported from."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    @property
    def tensors(self) -> dict[str, bool]:
        """Return the names of the tensors the function takes, in order, and whether each is required."""
        return {
            name: parameter.default is parameter.empty
            for name, parameter in inspect.signature(self.function).parameters.items()
            if _is_tensor(parameter.annotation)
        }

    @property
    def settings(self) -> dict[str, Setting]:
        """Return the settings by name: the arguments of the function that are no mere tensors."""
        return {
            name: Setting(
                parameter.default is parameter.empty,
                None if parameter.default is parameter.empty else parameter.default,
                self.ranges.get(name),
                _words(parameter.annotation),
            )
            for name, parameter in inspect.signature(self.function).parameters.items()
            if not _is_tensor(parameter.annotation)
        }


def _is_tensor(annotation: Any) -> bool:
    return set(get_args(annotation) or [annotation]) <= {Tensor, NoneType}


def _words(annotation: Any) -> tuple[str, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


LOSSES: Registry[Loss] = Registry("loss function")


def loss(
    name: str,
    *,
    source: str,
    needs: tuple[Need, ...],
    tasks: Tasks = "both",
    **ranges: tuple[float, float],
) -> Callable[[Function], Function]:
    """Return a decorator that files a function as the loss ``name`` and leaves it as it is.

    Args:
        name: key in the registry.
        source: paper and path of the reference code.
        needs: what its tensors are.
        tasks: where it fits.
        **ranges: of each numeric setting the least and the greatest value worth trying.
    """

    def file(function: Function) -> Function:
        LOSSES.register(name)(Loss(function, source, needs, tasks, ranges))
        return function

    return file


# A row whose largest entry is below this has no direction.
NO_DIRECTION_BELOW = 1e-8


def unit_scale(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the values divided by the largest magnitude along some axes; zeros stay and get no gradient.

    The divisor is a constant as far as the gradient is concerned: for losses that do not depend on scale.
    """
    largest = values.detach().abs().amax(dim=axes, keepdim=True)
    counts = ~(largest < NO_DIRECTION_BELOW)
    return values / torch.where(counts, largest, 1.0) * counts


def unit_rows(features_LBD: Tensor) -> Tensor:
    """Return the rows scaled to Euclidean length 1; a row of zeros stays zero and gets no gradient.

    Exact for entries of any magnitude the number format holds.
    """
    scaled_LBD = unit_scale(features_LBD, (-1,))
    square_LB1 = scaled_LBD.square().sum(dim=-1, keepdim=True)
    # At least 1 for every row with a direction, so that the bound changes nothing but rows of zeros.
    return scaled_LBD * square_LB1.clamp_min(0.5).rsqrt()


def per_lane(setting: float | Tensor, like_L: Tensor, trailing: int) -> Tensor:
    """Return a setting with ``trailing`` axes of length 1 behind its lanes, in the dtype of ``like_L``."""
    value = torch.as_tensor(setting, dtype=like_L.dtype, device=like_L.device)
    return value[(..., *[None] * trailing)]


def weighted_mean(values_LB: Tensor, weights_LB: Tensor | None) -> Tensor:
    """Return the mean over the batch, weighted if there are weights >= 0; 0 where no weight is above 0.

    A row of weight 0 has no influence and no gradient, even if its value is not finite.
    """
    if weights_LB is None:
        return values_LB.mean(dim=-1)
    weights_LB = weights_LB.to(values_LB.dtype)
    counted_LB = torch.where(weights_LB > 0, values_LB, 0.0) * weights_LB
    total_L = weights_LB.sum(dim=-1)
    return counted_LB.sum(dim=-1) / torch.where(total_L > 0, total_L, 1.0)


def known_labels(labels_LB: Tensor, row_weights_LB: Tensor | None) -> Tensor:
    """Return the class indices; 0 on rows without weight, where there may be anything."""
    labels_LB = labels_LB.long()
    return labels_LB if row_weights_LB is None else torch.where(row_weights_LB > 0, labels_LB, 0)
