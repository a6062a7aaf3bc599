"""A whole study of students that hallucinate, mix their teachers and begin with what they saw before."""

from mmdistill.reports.query import query
from mmdistill.studies.file import StudyFile
from mmdistill.studies.study import assemble

EDITS = {"terms.transport.k": 5, "student.init": "visual_only", "selection.policy": "weighted"}
TREE = {
    "name": "tiny",
    "seed": 3,
    "run": {
        "epochs": 2,
        "batch_size": 16,
        "data": {
            "dataset": "planted",
            "options": {"rows": [64, 32, 32]},
            "student": ["face"],
            "privileged": ["audio", "decoy"],
            "label_fraction": 0.5,
        },
        "teachers": {"epochs": 2, "out_of_fold": 2},
        "alignment": {"epochs": 2},
    },
    "arms": [
        {"name": "student_only", "recipe": "student_only"},
        {"name": "complete", "recipe": "mt_pkdot_code", "edits": EDITS},
    ],
    "search": {"trials": 2, "startup": 2, "generation": 1, "top": 1, "seeds": 1},
    "confirm": {"pairs": 1},
}
FIRST = """
    SELECT count(*) FILTER (upstream[2] IN (SELECT stage_key FROM stages WHERE name = 'face')) AS first,
           count(*) AS n
    FROM stages WHERE stage = 'student' AND arm = 'complete'
"""


def test_the_network_a_student_begins_with_is_trained_once_and_before_it(begin, finish, tmp_path):
    root = tmp_path / "study"
    finish(begin(assemble(StudyFile.model_validate(TREE), "tiny.toml"), root))
    sql = "SELECT seed, count(*) AS n FROM stages WHERE stage = 'teacher' AND name = 'face' GROUP BY ALL"
    trained = {row["seed"]: row["n"] for row in query(root, sql).to_pylist()}
    seeds = query(root, "SELECT DISTINCT seed FROM trials WHERE arm = 'complete'").to_pylist()
    assert trained == {row["seed"]: 1 for row in seeds}
    (row,) = query(root, FIRST).to_pylist()
    assert row["first"] == row["n"] > 0
