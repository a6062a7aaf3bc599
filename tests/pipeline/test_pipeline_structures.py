"""What confirmed runs are looked at by."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mmdistill.data.opening import Part
from mmdistill.pipeline.execute import execute
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.stages import Pipeline
from mmdistill.pipeline.structures import rows_to_look_at
from mmdistill.pipeline.studying import student_network
from mmdistill.training.objectives import outputs_on
from mmdistill.training.optimiser import load_lanes
from mmdistill.training.runtime import LocalRuntime

HERE = LocalRuntime()


def part(labels):
    names = np.array([f"r{n}" for n in range(len(labels))])
    return Part({}, np.array(labels), names, names)


def matrices(final):
    """Return each run's matrices by name, from the rows of the order."""
    found = {}
    for row in sorted(final.matrices, key=lambda row: row.place):
        found.setdefault(row.trial_id, {}).setdefault(row.matrix, []).append(row.values)
    return {trial: {name: np.array(lines) for name, lines in mine.items()} for trial, mine in found.items()}


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        ("student_only", {"student"}),
        ("hinton", {"student", "teacher"}),
        ("mt_pkdot", {"student", "teacher", "plan"}),
        ("complete", {"student", "teacher", "plan"}),
        ("amid", {"student"}),
    ],
)
def test_a_confirmed_run_leaves_the_matrices_it_has(run, order, cache, recipe, names):
    runs = [run(recipe, seed=seed) for seed in (5, 6)]
    final = execute(order("confirm", *runs), cache, HERE)
    found = matrices(final)
    assert set(found) == {"confirm0", "confirm1"}
    for mine in found.values():
        assert set(mine) == names
        for name, matrix in mine.items():
            assert matrix.shape == (24, 24)
            if name == "plan":
                # Shares of a line's mass; rounding may take half a unit of each.
                np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=24 * 1e-4)
            else:
                assert (matrix == matrix.T).all()
                assert np.abs(matrix).max() <= 1
                assert set(np.diag(matrix)) <= {0, 1}
    assert execute(order("confirm", *runs), cache, HERE).matrices == final.matrices


@pytest.mark.parametrize("kind", ["search", "validate", "test"])
def test_no_other_run_does(run, order, cache, kind):
    assert execute(order(kind, run("hinton")), cache, HERE).matrices == []


def cosines(features):
    """Return them by their definition; 0 with a row of zeros."""
    lengths = [np.linalg.norm(row) or 1.0 for row in features]
    return np.array(
        [
            [a @ b / m / n for b, n in zip(features, lengths, strict=True)]
            for a, m in zip(features, lengths, strict=True)
        ]
    )


def test_they_are_those_of_the_student_that_was_kept_and_of_its_teacher(run, order, cache):
    one = run("hinton")
    final = execute(order("confirm", one), cache, HERE)
    fold = opened(one.data, 0, False, "cpu")
    stages = Pipeline(one, fold.arrays.fingerprint)
    (student, _), (taught, _) = cache.read(stages.student), cache.read(stages.outputs)
    network = student_network([one], fold)
    load_lanes(network, [student.tensors])
    rows = rows_to_look_at(fold.arrays.train, 24)
    features = outputs_on(network, fold.train, 1).features_KBD[0, rows].numpy()
    (found,) = matrices(final).values()
    np.testing.assert_allclose(found["student"], cosines(features), atol=0.00051)
    np.testing.assert_allclose(
        found["teacher"], cosines(taught.tensors["features"][0, rows].numpy()), atol=0.00051
    )
    lines = [row for row in final.matrices if row.matrix == "student"]
    assert [row.row for row in lines] == [fold.arrays.train.rows[n] for n in rows]
    assert [row.label for row in lines] == sorted(fold.arrays.train.labels[rows])


def test_the_rows_looked_at_are_spread_over_the_sorted_labels():
    labels = [2, 0, 1, 0, 2, 1, 0, 0, -1, 1, 2, 2]
    rows = rows_to_look_at(part(labels), 6)
    assert [labels[n] for n in rows] == sorted(labels[n] for n in rows)
    assert set(Counter(labels[n] for n in rows)) == {0, 1, 2}
    assert len(set(rows)) == 6
    assert 8 not in rows
    assert len(rows_to_look_at(part(labels), 100)) == 11
    assert len(rows_to_look_at(part(np.arange(1000) % 7), 1000)) == 64
    targets = np.array([[0.3, 9.0], [-2.0, 1.0], [np.nan, 0.0], [1.0, 0.0]], dtype=np.float32)
    assert rows_to_look_at(replace(part([0] * 4), labels=targets), 64) == [1, 0, 3]
