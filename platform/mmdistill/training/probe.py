"""What features still know: a linear map fitted on training rows, judged on validation rows.

Axes: K lanes, N training rows, V validation rows, D width, T targets.
"""

import torch
from torch import Tensor

from mmdistill.models.network import Network
from mmdistill.training.objectives import TensorPart, outputs_on

# Training rows the map is fitted on: evenly spread, enough for a map from some hundred features.
PROBE_ROWS = 1000
# Of the mean variance of the features: keeps the map finite where features repeat each other.
RIDGE = 1e-2


def input_r2(network: Network, modalities: tuple[str, ...], parts: tuple[TensorPart, TensorPart]) -> Tensor:
    """Return per lane how much of the inputs of some modalities a linear map of the features tells.

    Args:
        network: whose features are asked.
        modalities: whose inputs are to be told.
        parts: training and validation rows.

    Returns:
        1 - squared error / variance over all numbers of the inputs of the validation rows [K]; at most 1,
        below 0 where the map misleads.
    """
    train, validation = parts
    rows = torch.linspace(0, len(train) - 1, min(PROBE_ROWS, len(train))).long()
    few = TensorPart({name: x[rows] for name, x in train.inputs.items()}, train.labels[rows])
    lanes = len(next(network.parameters()))
    features = [outputs_on(network, part, lanes).features_KBD for part in (few, validation)]
    targets = [torch.cat([part.inputs[n].flatten(1) for n in modalities], 1) for part in (few, validation)]
    return ridge_r2(features[0], targets[0], features[1], targets[1])


def ridge_r2(train_KND: Tensor, target_NT: Tensor, seen_KVD: Tensor, wanted_VT: Tensor) -> Tensor:
    """Return the held-out R2 [K] of the ridge regression of targets on features, in closed form."""
    train, target, seen, wanted = (x.double() for x in (train_KND, target_NT, seen_KVD, wanted_VT))
    mean_K1D, mean_T = train.mean(dim=1, keepdim=True), target.mean(dim=0)
    centred_KND = train - mean_K1D
    gram_KDD = centred_KND.mT @ centred_KND / train.shape[1]
    penalty_K = RIDGE * gram_KDD.diagonal(dim1=1, dim2=2).mean(dim=1) + 1e-12
    gram_KDD = gram_KDD + torch.diag_embed(penalty_K[:, None].expand(gram_KDD.shape[:2]))
    # No check: a lane that is not finite has no R2, and is no error.
    map_KDT, _ = torch.linalg.solve_ex(gram_KDD, centred_KND.mT @ (target - mean_T) / train.shape[1])
    error_KVT = (seen - mean_K1D) @ map_KDT + mean_T - wanted
    spread = (wanted - wanted.mean(dim=0)).square().sum().clamp_min(1e-30)
    missed_K: Tensor = error_KVT.square().sum(dim=(1, 2)) / spread
    return (1 - missed_K).float()
