"""Designs and controls of students that hallucinate what they do not see."""

from mmdistill.studies.file import StudyFile
from mmdistill.studies.study import assemble

DATA = {
    "dataset": "planted",
    "options": {"rows": [64, 32, 32]},
    "student": ["face"],
    "privileged": ["audio", "decoy"],
    "label_fraction": 0.5,
}
ALONE = {"name": "student_only", "recipe": "student_only"}


def arms(*entries, designs=()):
    tree = {"name": "x", "run": {"data": DATA, "batch_size": 32}, "arms": [ALONE, *entries]}
    return {
        arm.name: arm for arm in assemble(StudyFile.model_validate(tree | {"designs": designs}), "x").arms
    }


def test_a_hallucinator_is_a_part_and_gone_from_the_controls():
    edits = {"terms.transport.k": 5, "hallucinator.kind": "relu", "selection.policy": "weighted"}
    base = {"name": "mt", "recipe": "mt_pkdot", "edits": edits, "controls": True}
    found = arms(base, designs=[{"kind": "leave_one_out", "base": "mt"}])
    assert found["mt-hallucinator"].run.hallucinator.kind == "none"
    assert found["mt-selection"].run.selection.policy == "batch"
    assert found["mt-transport"].run.hallucinator.kind == "relu"
    assert found["mt.permuted_teacher"].run.hallucinator.kind == "relu"
    assert found["mt.same_modality"].run.hallucinator.kind == "none"
    assert found["mt.same_modality"].change.endswith("without hallucinator")
    assert found["mt.supervised"].run.hallucinator.kind == "none"
    assert "mt-teacher.joint" not in found


def test_a_student_that_only_hallucinates_is_not_alone():
    taught = {"hallucinator.kind": "linear", "teachers.pool": ["joint"]}
    found = arms({"name": "imagines", "recipe": "student_only", "edits": taught})
    assert found["imagines"].baseline == "student_only"
    assert found["imagines"].digest != found["student_only"].digest


def test_the_temperature_of_a_mixture_is_searched_where_there_is_one():
    policies = ("sample", "weighted")
    edits = [{"terms.transport.k": 5, "selection.policy": policy} for policy in policies]
    found = arms(*({"name": e["selection.policy"], "recipe": "mt_pkdot", "edits": e} for e in edits))
    assert "selection.temperature" in found["weighted"].space
    assert "selection.temperature" not in found["sample"].space
