"""What confirmed runs are looked at by: similarities between some rows, and the plan between them.

Axes: K lanes, B rows looked at.
"""

from collections.abc import Sequence

import numpy as np
import torch

from mmdistill.data.opening import Part
from mmdistill.pipeline.cache import Entry
from mmdistill.pipeline.evaluation import Array
from mmdistill.pipeline.fold import Fold
from mmdistill.pipeline.order import Lane
from mmdistill.pipeline.run import canonical
from mmdistill.pipeline.studying import student_objective
from mmdistill.records.rows import MatrixRow
from mmdistill.training.optimiser import load_lanes
from mmdistill.training.runtime import Runtime

MOST_ROWS = 64
# A rounded cosine takes an eighth of the space; a plan has entries of 1 / rows.
_DECIMALS = {"plan": 4}


def rows_to_look_at(part: Part, batch_size: int) -> list[int]:
    """Return up to 64 training rows, at most a batch: spread evenly over all of them sorted by label.

    The same in every run on a fold. A row without a label is not looked at, unless none has one.
    """
    first_N = np.asarray(part.labels, dtype=np.float64).reshape(len(part.rows), -1)[:, 0]
    known_N = np.isfinite(first_N) & (first_N >= 0) if part.labels.ndim == 1 else np.isfinite(first_N)
    sorted_N = np.argsort(first_N, kind="stable")
    kept_N = sorted_N[known_N[sorted_N]] if known_N.any() else sorted_N
    count = min(MOST_ROWS, batch_size, len(kept_N))
    at_B = (np.arange(count) * len(kept_N) + len(kept_N) // 2) // count
    return [int(n) for n in kept_N[at_B]]


def matrices(
    lanes: Sequence[Lane],
    students: Sequence[Entry],
    outputs: Sequence[Entry] | None,
    fold: Fold,
    runtime: Runtime,
) -> list[list[MatrixRow]]:
    """Return the lines of every lane's matrices; none of what is not finite.

    Args:
        lanes: of one cohort key.
        students: the trained student of each.
        outputs: what each lane's frozen teachers said about the training rows; None without any.
        fold: the data.
        runtime: where this runs; nothing is shared out.
    """
    runs = [canonical(lane.run) for lane in lanes]
    objective = student_objective(runs, outputs, fold, runtime)
    load_lanes(objective.student, [student.tensors for student in students])
    rows = rows_to_look_at(fold.arrays.train, runs[0].batch_size)
    rows_KB = torch.tensor(rows, device=fold.device).expand(len(lanes), -1)
    found = objective.structures(rows_KB)
    return [
        [
            row
            for name, matrix_KBB in found.items()
            for row in _lines(lane, name, matrix_KBB[k].cpu().double().numpy(), fold.arrays.train, rows)
        ]
        for k, lane in enumerate(lanes)
    ]


def _lines(lane: Lane, name: str, matrix_BB: Array, part: Part, rows: Sequence[int]) -> list[MatrixRow]:
    if not np.isfinite(matrix_BB).all():
        return []
    shares_BB = matrix_BB * len(rows) if name == "plan" else matrix_BB
    rounded_BB = shares_BB.round(_DECIMALS.get(name, 3)) + 0.0
    return [
        MatrixRow(
            trial_id=lane.trial_id,
            arm=lane.arm,
            pair_id=lane.pair_id,
            seed_index=lane.seed_index or 0,
            fold=lane.run.fold,
            matrix=name,
            place=place,
            row=str(part.rows[row]),
            label=float(np.ravel(part.labels[row])[0]),
            values=rounded_BB[place].tolist(),
        )
        for place, row in enumerate(rows)
    ]
