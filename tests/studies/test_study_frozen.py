"""Arms that take another's winner, arms that are the same, and which one each is compared with."""

import json

import pytest

from mmdistill.errors import ConfigError
from mmdistill.studies.file import StudyFile
from mmdistill.studies.provenance import study_row
from mmdistill.studies.study import assemble

SEVERAL = {"name": "several", "recipe": "hinton", "edits": {"teachers.pool": ["each", "joint"]}}
FROZEN = {"name": "cold", "recipe": "hinton", "frozen": "several"}


def study(*arms, designs=(), space=None, data=()):
    planted = {"dataset": "planted", "options": {"rows": [64, 32, 32]}, "student": ["face"]}
    run = {"data": planted | {"privileged": ["audio", "decoy"]} | dict(data), "batch_size": 16}
    alone = {"name": "student_only", "recipe": "student_only"}
    tree = {"name": "x", "run": run, "arms": [alone, *arms], "designs": designs}
    return assemble(StudyFile.model_validate(tree | {"search": {"space": space or {}}}), "x.toml")


def refused(*arms, **more):
    with pytest.raises(ConfigError) as caught:
        study(*arms, **more)
    return [str(problem) for problem in caught.value.problems]


def test_a_frozen_arm_is_not_searched_and_takes_what_is_alive_in_it():
    space = {"selection.policy": {"choice": ["sample", "batch"]}}
    found = {arm.name: arm for arm in study(SEVERAL, FROZEN, space=space).arms}
    several, cold = found["several"], found["cold"]
    assert (cold.frozen, dict(cold.space), cold.baseline) == ("several", {}, "student_only")
    # One teacher is left: nothing to choose from.
    assert set(several.space) - set(cold.inherits) == {"selection.policy"}


def test_both_readings_of_an_arm_stand_side_by_side_and_are_not_merged():
    design = {"kind": "leave_one_out", "base": "several", "readings": ["retuned", "frozen"]}
    found = study(SEVERAL, designs=[design | {"parts": ["softened_logits", "teacher.joint"]}]).arms
    assert [(arm.name, arm.frozen) for arm in found] == [
        ("student_only", None),
        ("several", None),
        ("several-softened_logits.frozen", "several"),
        ("several-teacher.joint", None),
        ("several-teacher.joint.frozen", "several"),
    ]
    assert found[0].note == "also several-softened_logits"
    # The student alone with the settings of a method's winner is no baseline of anything.
    assert {arm.baseline for arm in found} == {"student_only"}
    assert set(found[2].inherits) == {
        f"optimiser.{n}" for n in ("label_smoothing", "learning_rate", "weight_decay")
    }


def test_the_whole_base_has_no_frozen_reading():
    design = {"kind": "teacher_subsets", "base": "several", "readings": ["frozen"]}
    found = [arm.name for arm in study(SEVERAL, designs=[design]).arms]
    assert found == ["student_only", "several", "several@audio.frozen", "several@decoy.frozen"]


def test_what_an_arm_changes_itself_is_not_taken_from_the_winner():
    pools = {"choice": [["each", "joint"], ["joint"]]}
    design = {"kind": "network_subsets", "base": "several", "sizes": [2], "readings": ["retuned", "frozen"]}
    arm = SEVERAL | {"space": {"teachers.pool": pools}}
    found = {one.name: one for one in study(arm, designs=[design]).arms}
    assert "teachers.pool" in found["several"].space
    assert "teachers.pool" not in found["several@networks=audio+decoy"].space
    assert "teachers.pool" not in found["several@networks=audio+decoy.frozen"].inherits


def test_a_frozen_arm_of_a_merged_one_names_the_arm_that_was_kept():
    twin = SEVERAL | {"name": "twin"}
    found = {arm.name: arm for arm in study(SEVERAL, twin, FROZEN | {"frozen": "twin"}).arms}
    assert found["cold"].frozen == "several"


def test_equal_frozen_arms_are_merged():
    found = study(SEVERAL, FROZEN, FROZEN | {"name": "cool"}).arms
    assert [(arm.name, arm.note) for arm in found][-1] == ("cold", "also cool")


def test_the_frozen_arm_is_part_of_the_identity_of_a_study():
    one, other = (
        study(SEVERAL, {"name": "h", "recipe": "hinton"} | more) for more in ({}, {"frozen": "several"})
    )
    assert one.resolved()["arms"]["h"]["frozen"] is None
    assert other.resolved()["arms"]["h"]["frozen"] == "several"


def test_the_record_of_a_study_tells_of_its_arms():
    design = {"kind": "leave_one_out", "base": "several", "parts": ["teacher.joint"], "readings": ["frozen"]}
    arms = json.loads(study_row(study(SEVERAL, designs=[design]), []).arms_json)
    assert {key: arms[-1][key] for key in ("name", "dimensions", "baseline", "frozen", "base", "change")} == {
        "name": "several-teacher.joint.frozen",
        "dimensions": 0,
        "baseline": "student_only",
        "frozen": "several",
        "base": "several",
        "change": "without the teacher joint, not re-tuned",
    }


REFUSED = [
    ({"frozen": "sevral"}, "arms.cold.frozen: no arm is called 'sevral'; did you mean 'several'?"),
    (
        {"frozen": "cold"},
        "arms.cold.frozen: 'cold' is frozen itself, and only an arm that is searched has a winner",
    ),
    (
        {"edits": SEVERAL["edits"]},
        "arms.cold.frozen: it is the same run as 'several', whose winner it would repeat",
    ),
    (
        {"space": {"epochs": {"choice": [2, 3]}}},
        "arms.cold.space: a frozen arm is not searched; remove its space",
    ),
]


@pytest.mark.parametrize(("more", "expected"), REFUSED)
def test_a_frozen_arm_that_cannot_be_is_refused(more, expected):
    (found,) = refused(SEVERAL, FROZEN | more)
    assert expected in found


def test_a_winner_of_other_folds_is_none():
    edits = {"data.folds.scheme": "stratified"}
    alone = {"name": "alone", "recipe": "student_only", "edits": edits}
    (found,) = refused(SEVERAL, alone, FROZEN | {"edits": edits})
    assert "'several' has no winner in the folds of this arm; give both arms the same folds" in found


def test_a_winner_that_the_arm_could_not_be_is_refused():
    pools = {"teachers.pool": {"choice": [["audio", "joint"], ["decoy", "joint"]]}}
    lost = FROZEN | {"edits": {"data.privileged": ["audio"], "teachers.pool": ["each", "joint"]}}
    found = refused(SEVERAL | {"space": pools}, lost)
    assert (
        "arms.cold.teachers.pool: ['decoy', 'joint'] is not allowed: teachers.pool: 'decoy' is no teacher"
        in found[0]
    )


def test_a_frozen_arm_is_no_base():
    found = refused(SEVERAL, FROZEN, designs=[{"kind": "leave_one_out", "base": "cold"}])
    assert found == [
        "x.toml: designs.0.base: 'cold' is frozen, which is a reading of another arm; name that arm"
    ]


def test_a_modality_that_no_network_sees_makes_no_arm():
    blind = {"name": "blind", "recipe": "student_only", "edits": {"data.privileged": ["audio"]}}
    assert [arm.note for arm in study(SEVERAL, blind).arms] == ["also blind", None]


def test_a_pool_that_is_spelled_out_is_the_same():
    spelled = {"name": "spelled", "recipe": "hinton", "edits": {"teachers.pool": ["audio", "decoy", "joint"]}}
    assert study(SEVERAL, spelled).arms[1].note == "also spelled"


def test_a_missing_baseline_is_said_once_for_each_kind_of_data():
    arms = [
        {
            "name": f"h{fraction}{n}",
            "recipe": "hinton",
            "edits": {"data.label_fraction": fraction, "epochs": n},
        }
        for fraction in (0.25, 0.5)
        for n in (2, 3)
    ]
    found = refused(*arms)
    assert len(found) == 2
    assert "arms.h0.252: no arm without a teacher has its data (data.label_fraction = 0.25)" in found[0]
    assert 'add "student_only" to the `bases` of its design, or an arm without a teacher on these' in found[0]
