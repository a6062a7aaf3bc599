"""Proposals of every sampler, without Ray.

A proposal depends on the records and on a seed, never on the order in which results came in: whatever learns
is rebuilt for every generation. Points that do not depend on results are the same for all arms where their
spaces overlap.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from mmdistill.cluster.evolution import evolved
from mmdistill.randomness import derive_seed, numpy_generator
from mmdistill.settings import Choice, Dimension
from mmdistill.studies.protocol import Past, ProposalRequest

DIGITS = 6
Points = npt.NDArray[np.float64]


def propose(request: ProposalRequest) -> list[dict[str, Any]]:
    """Return the next proposals of an arm."""
    if request.sampler in _SAMPLERS:
        return _SAMPLERS[request.sampler](request)
    return _placed(request, _sequence(request))


def _sequence(request: ProposalRequest) -> dict[str, Points]:
    """Return positions in [0, 1) by path: every searched path of the study has its own coordinate.

    The paths that a revision brought have a scrambling of their own, on coordinates that no other has.
    """
    engine = {"sobol": qmc.Sobol, "halton": qmc.Halton}[request.sampler]
    found: dict[str, Points] = {}
    for revision, paths in enumerate(request.columns):
        seed = derive_seed(request.shared_seed, revision) if revision else request.shared_seed
        with warnings.catch_warnings():
            # The start of the sequence is as good as any; a full power of 2 is the study's choice.
            warnings.filterwarnings("ignore", "The balance properties of Sobol", UserWarning)
            sequence = engine(len(found) + len(paths), scramble=True, rng=seed % 2**32)
            points = sequence.random(request.first + request.count)[request.first :]
        found |= {path: points[:, column] for column, path in enumerate(paths, start=len(found))}
    return found


def _placed(request: ProposalRequest, units: Mapping[str, Points]) -> list[dict[str, Any]]:
    return [
        {
            path: _inside(dimension.at(float(units[path][n])), dimension)
            for path, dimension in request.space.items()
        }
        for n in range(request.count)
    ]


def _random(request: ProposalRequest) -> list[dict[str, Any]]:
    numbers = range(request.first, request.first + request.count)
    return _placed(
        request,
        {
            path: np.array([numpy_generator(request.shared_seed, path, n).random() for n in numbers])
            for path in request.space
        },
    )


def _grid(request: ProposalRequest) -> list[dict[str, Any]]:
    """Return points of the grid, the last path fastest; after the last point it begins again."""
    values = [dimension.grid() for dimension in request.space.values()]
    points = itertools.islice(
        itertools.cycle(itertools.product(*values)), request.first, request.first + request.count
    )
    return [
        {path: _inside(v, d) for (path, d), v in zip(request.space.items(), point, strict=True)}
        for point in points
    ]


def _cmaes(request: ProposalRequest) -> list[dict[str, Any]]:
    """Return samples of CMA-ES for the intervals; alternatives are drawn at random."""
    numbered = {path: found for path, found in request.space.items() if not isinstance(found, Choice)}
    generator = numpy_generator(request.seed, "alternatives")
    units = {path: generator.random(request.count) for path in request.space if path not in numbered}
    results = [
        ([found.position(trial.parameters[path]) for path, found in numbered.items()], _rank(trial))
        for trial in request.past
    ]
    start = request.startup
    samples = evolved(results[:start], results[start:], len(numbered), request.count, request.seed % 2**32)
    units |= {path: samples[:, column] for column, path in enumerate(numbered)}
    return _placed(request, units)


def _rank(trial: Past) -> float | None:
    """Return what a trial is ranked by; one that lost a race by its best value until then."""
    return trial.stopped[1] if trial.stopped is not None else trial.value


def _tpe(request: ProposalRequest) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        # `constant_liar` is what spreads proposals made together; Optuna calls it experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        seed = request.seed % 2**32
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, constant_liar=True)
        study = optuna.create_study(sampler=sampler)
        distributions = {path: _distribution(dimension) for path, dimension in request.space.items()}
        study.add_trials([_trial(past, request.space, distributions) for past in request.past])
        asked = [study.ask(distributions) for _ in range(request.count)]
    return [_readable(trial.params, request.space) for trial in asked]


_SAMPLERS: dict[str, Callable[[ProposalRequest], list[dict[str, Any]]]] = {
    "random": _random,
    "grid": _grid,
    "cmaes": _cmaes,
    "tpe": _tpe,
}


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
    known: dict[str, Any] = {"params": parameters, "distributions": dict(distributions)}
    if past.stopped is not None:
        epochs, value = past.stopped
        return create_trial(**known, state=TrialState.PRUNED, intermediate_values={epochs: value})
    if past.value is None:
        return create_trial(**known, state=TrialState.FAIL)
    return create_trial(**known, value=past.value)


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
