"""What decides the cost of a training: equal keys, equal cost on one machine.

A key is ``<kind>-<digest>x<lanes>``: the digest of everything but the number of lanes that train together,
and that number, rounded up to a power of two.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mmdistill.pipeline.fold import Fold
from mmdistill.pipeline.order import Order
from mmdistill.pipeline.parts import network_modalities
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.pipeline.studying import cohort_key
from mmdistill.settings import declared_ranges, digest, flattened
from mmdistill.training.race import RaceSettings

# Of a run, what is seen through the sizes of the data, or is too cheap to matter.
_NO_COST = ("data.", "teachers.", "alignment.", "optimiser.", "selection.", "seed", "fold")


class Sizes(NamedTuple):
    """What of a fold decides costs.

    Attributes:
        widths: inputs of each modality.
        outputs: classes or targets.
        rows: training rows.
        labelled: training rows with a label, at the run's label fraction.
        validation: validation rows.
    """

    widths: Mapping[str, int]
    outputs: int
    rows: int
    labelled: int
    validation: int


def sizes_of(fold: Fold, run: RunSettings) -> Sizes:
    """Return the sizes a run has to do with on a fold."""
    labelled = int(fold.labelled(run.data.label_fraction, run.seed).sum())
    widths = fold.widths(run.data.modalities)
    return Sizes(widths, fold.outputs, len(fold.train), labelled, len(fold.validation))


def student_key(
    run: RunSettings, sizes: Sizes, lanes: int, *, race: RaceSettings | None = None, is_test: bool = False
) -> str:
    """Return the key of training one of ``lanes`` students of a cohort, or of reading it on the test rows.

    Settings with a range do not count: they differ inside a cohort, and a price is the mean over a search.
    """
    run = canonical(run)
    varying = set(declared_ranges(run))
    settings = {
        path: value
        for path, value in flattened(run.as_json()).items()
        if path not in varying and not path.startswith(_NO_COST)
    }
    networks: Any = len(run.networks())
    if run.trains_teacher():
        names = [*run.networks(), *(["privileged"] if run.trains_auxiliary() else [])]
        networks = [_widths(name, run, sizes) for name in names]
    missing = run.missing()
    content = [
        settings,
        list(run.terms),
        networks if missing is None else [networks, len(missing.modalities)],
        sorted(sizes.widths[name] for name in run.data.student),
        *_amounts(sizes.rows, run, sizes),
        None if race is None else race.as_json(),
    ]
    return _key("test" if is_test else "student", content, lanes)


def stage_key(kind: str, name: str, run: RunSettings, sizes: Sizes, stages: int) -> str:
    """Return the key of computing one of ``stages`` shared stages that are computed together.

    Args:
        kind: ``teacher``, ``alignment`` or ``teacher_outputs``.
        name: of the network, for a teacher.
        run: whose stage it is.
        sizes: of the fold.
        stages: how many pairs share the cohort.
    """
    run = canonical(run)
    names = [name] if kind == "teacher" else list(run.frozen_networks())
    content: list[Any] = [
        run.network.as_json(),
        run.teachers.out_of_fold,
        [_widths(one, run, sizes) for one in names],
        *_amounts(sizes.labelled, run, sizes),
    ]
    if kind == "teacher":
        content.append(run.teachers.epochs)
    else:
        content += [_rounded(sizes.rows), run.alignment.kind, run.alignment.loss, run.alignment.epochs]
    return _key(kind, content, stages)


def order_keys(order: Order, sizes: Sizes) -> list[str]:
    """Return the key of every row that an order is going to leave: of its lanes, or of its stages."""
    if order.kind != "stages":
        cohorts = [cohort_key(lane.run) for lane in order.lanes]
        is_test = order.kind == "test"
        return [
            student_key(lane.run, sizes, cohorts.count(cohort), race=order.race, is_test=is_test)
            for lane, cohort in zip(order.lanes, cohorts, strict=True)
        ]
    keys = []
    for request in order.stages:
        kinds: list[str] = [request.kind]
        if request.kind == "teacher_outputs" and request.run.alignment.kind != "none":
            kinds.insert(0, "alignment")
        keys += [stage_key(kind, request.name, request.run, sizes, len(order.stages)) for kind in kinds]
    return keys


def same_shape(key: str, others: Iterable[str]) -> dict[int, str]:
    """Return the keys of the same work by the size of their cohort, nearest to that of ``key`` first."""
    lanes = lanes_of(key)
    found = {lanes_of(other): other for other in others if _shape(other) == _shape(key)}
    nearest = sorted(found, key=lambda other: (max(other, lanes) / min(other, lanes), other))
    return {other: found[other] for other in nearest}


def lanes_of(key: str) -> int:
    """Return the size of the cohort of a key."""
    return int(key.rpartition("x")[2])


def _shape(key: str) -> str:
    return key.rpartition("x")[0]


def kind_of(key: str) -> str:
    """Return what a key is the price of: ``student``, ``test``, ``teacher`` ..."""
    return key.partition("-")[0]


def _key(kind: str, content: list[Any], lanes: int) -> str:
    return f"{kind}-{digest(content)}x{1 << (lanes - 1).bit_length()}"


def _widths(name: str, run: RunSettings, sizes: Sizes) -> list[int]:
    return sorted(sizes.widths[modality] for modality in network_modalities(name, run.data))


def _amounts(rows: int, run: RunSettings, sizes: Sizes) -> list[int]:
    """Return steps per epoch and what every step and every epoch has to do with."""
    steps = max(1, rows // run.batch_size)
    return [_rounded(steps), run.batch_size, _rounded(sizes.validation), sizes.outputs]


def _rounded(number: int) -> int:
    """Return a number to two digits: the folds of one study differ by a few rows."""
    return int(float(f"{number:.2g}"))
