"""What features still know: a linear map fitted on training rows, judged on validation rows.

Axes: K lanes, N training rows, V validation rows, D width, T targets.
"""

import torch
from torch import Tensor

from mmdistill.models.network import Network
from mmdistill.training.objectives import TensorPart, outputs_on

# What is looked at, evenly spread: rows of each part and numbers of the inputs; it is done every epoch.
PROBE_ROWS, PROBE_NUMBERS = 500, 256
# Of the mean variance of the features: keeps the map finite where features repeat each other.
RIDGE = 1e-2


def input_r2(network: Network, modalities: tuple[str, ...], parts: tuple[TensorPart, TensorPart]) -> Tensor:
    """Return per lane how much of the inputs of some modalities a linear map of the features tells.

    Of long parts and wide inputs it looks at some rows and numbers only.

    Args:
        network: whose features are asked.
        modalities: whose inputs are to be told.
        parts: training and validation rows.

    Returns:
        1 - squared error / variance over all numbers of the inputs of the validation rows [K]; at most 1,
        below 0 where the map misleads.
    """
    lanes = len(next(network.parameters()))
    few = [_few_rows(part) for part in parts]
    features = [outputs_on(network, part, lanes).features_KBD for part in few]
    targets = [torch.cat([part.inputs[name].flatten(1) for name in modalities], dim=1) for part in few]
    numbers = _spread(targets[0].shape[1], PROBE_NUMBERS, targets[0])
    targets = [target[:, numbers] for target in targets]
    return ridge_r2(features[0], targets[0], features[1], targets[1])


def ridge_r2(train_KND: Tensor, target_NT: Tensor, seen_KVD: Tensor, wanted_VT: Tensor) -> Tensor:
    """Return the held-out R2 [K] of the ridge regression of targets on features, in closed form."""
    mean_K1D, mean_T = train_KND.double().mean(dim=1, keepdim=True), target_NT.double().mean(dim=0)
    train_KND, seen_KVD = train_KND - mean_K1D, seen_KVD - mean_K1D
    target_NT, wanted_VT = target_NT - mean_T, wanted_VT - mean_T
    gram_KDD = train_KND.mT @ train_KND
    penalty_K = RIDGE * gram_KDD.diagonal(dim1=1, dim2=2).mean(dim=1) + 1e-30
    gram_KDD = gram_KDD + torch.diag_embed(penalty_K[:, None].expand(gram_KDD.shape[:2]))
    # No check: a lane that is not finite has no R2, and is no error.
    map_KDT, _ = torch.linalg.solve_ex(gram_KDD, train_KND.mT @ target_NT)
    # |y - z W|^2 = |y|^2 - 2 <W, z'y> + <W, z'z W>, without the predictions of every lane.
    squared_KDT = (seen_KVD.mT @ seen_KVD) @ map_KDT
    told_K: Tensor = (map_KDT * (2 * (seen_KVD.mT @ wanted_VT) - squared_KDT)).sum(dim=(1, 2))
    missed_K = wanted_VT.square().sum() - told_K
    spread = (wanted_VT - wanted_VT.mean(dim=0)).square().sum().clamp_min(1e-30)
    return (1 - missed_K / spread).float()


def _spread(count: int, most: int, like: Tensor) -> Tensor:
    return torch.linspace(0, count - 1, min(most, count), device=like.device).long()


def _few_rows(part: TensorPart) -> TensorPart:
    rows = _spread(len(part), PROBE_ROWS, part.labels)
    return TensorPart({name: x[rows] for name, x in part.inputs.items()}, part.labels[rows])
