"""Proposals: scrambled Sobol points first, then Optuna in generations. No Ray.

The sampler is rebuilt from the records for every generation, so a proposal depends on the records and on a
seed, never on the order in which results came in.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from mmdistill.settings import Choice, Dimension
from mmdistill.studies.protocol import Past, ProposalRequest

DIGITS = 6


def propose(request: ProposalRequest) -> list[dict[str, Any]]:
    """Return the next proposals of an arm.

    A start of Sobol points is shared: every searched path of the study has its own coordinate, so two arms
    that search the same path over the same interval try the same values in it.
    """
    if request.sampler == "sobol":
        return _sobol(request)
    sampler = _sampler(request)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        # `constant_liar` is what spreads proposals made together; Optuna calls it experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=sampler)
        distributions = {path: _distribution(dimension) for path, dimension in request.space.items()}
        study.add_trials([_trial(past, request.space, distributions) for past in request.past])
        asked = [study.ask(distributions) for _ in range(request.count)]
    return [_readable(trial.params, request.space) for trial in asked]


def _sobol(request: ProposalRequest) -> list[dict[str, Any]]:
    engine = qmc.Sobol(len(request.columns), scramble=True, rng=request.shared_seed % 2**32)
    with warnings.catch_warnings():
        # The start of the sequence is as good as any; a full power of 2 is the study's choice.
        warnings.filterwarnings("ignore", "The balance properties of Sobol", UserWarning)
        points = engine.random(request.first + request.count)[request.first :]
    at = {path: column for column, path in enumerate(request.columns)}
    return [
        {
            path: _inside(dimension.at(float(point[at[path]])), dimension)
            for path, dimension in request.space.items()
        }
        for point in points
    ]


def _sampler(request: ProposalRequest) -> optuna.samplers.BaseSampler:
    seed = request.seed % 2**32
    if request.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, constant_liar=True)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        # Optuna wants scalars; the position stands for the alternative.
        return CategoricalDistribution(list(range(len(dimension.choice))))
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _trial(
    past: Past, space: Mapping[str, Dimension], distributions: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    parameters = {path: _coded(past.parameters[path], space[path]) for path in distributions}
    if past.value is None:
        return create_trial(params=parameters, distributions=dict(distributions), state=TrialState.FAIL)
    return create_trial(params=parameters, distributions=dict(distributions), value=past.value)


def _coded(value: Any, dimension: Dimension) -> Any:
    if not isinstance(dimension, Choice):
        return value
    options: Sequence[Any] = dimension.choice
    return next(n for n, option in enumerate(options) if _plain(option) == _plain(value))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _readable(parameters: Mapping[str, Any], space: Mapping[str, Dimension]) -> dict[str, Any]:
    return {
        path: _plain(dimension.choice[parameters[path]])
        if isinstance(dimension, Choice)
        else _inside(parameters[path], dimension)
        for path, dimension in space.items()
    }


def _inside(value: Any, dimension: Dimension) -> Any:
    """Round, but never out of the interval: Optuna would refuse it as a past value."""
    if isinstance(dimension, Choice) or not isinstance(value, float):
        return _plain(value)
    return min(max(float(f"{value:.{DIGITS}g}"), dimension.low), dimension.high)
