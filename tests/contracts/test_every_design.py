import inspect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdistill.pipeline.run import RunSettings
from mmdistill.settings import edited
from mmdistill.studies.designs import DESIGNS
from mmdistill.studies.designs.teacher_subsets import TeacherSubsets
from mmdistill.studies.file import ArmEntry, StudyFile
from mmdistill.studies.study import assemble

BASE = ArmEntry(name="base", recipe="hinton", edits={"teachers.pool": ["each", "joint"], "epochs": 3})
NAMES = st.lists(st.sampled_from(list("abcdefg")), unique=True, min_size=1, max_size=6)


@pytest.mark.parametrize("name", list(DESIGNS))
def test_every_design_says_what_it_is(name):
    design = DESIGNS[name]
    assert design.model_fields["kind"].default == name
    assert inspect.getdoc(design)
    assert design(base="base").kind == name


@pytest.mark.parametrize("name", list(DESIGNS))
def test_every_design_generates_different_arms_from_its_base(name):
    arms = DESIGNS[name](base="base").arms(BASE, ["a", "b", "c"])
    assert arms
    assert len({arm.name for arm in arms}) == len(arms)
    assert all(arm.name.startswith("base@") and arm.recipe == BASE.recipe for arm in arms)
    assert all(ArmEntry.model_validate(arm.as_json()) == arm for arm in arms)


@given(names=NAMES, data=st.data())
def test_subsets_are_all_of_the_sizes_asked_for(names, data):
    sizes = data.draw(st.lists(st.integers(1, len(names)), max_size=4))
    arms = TeacherSubsets(base="base", sizes=sizes).arms(BASE, names)
    wanted = set(sizes) or set(range(1, len(names) + 1))
    assert len(arms) == sum(math.comb(len(names), size) for size in wanted)
    subsets = [tuple(arm.edits["data.privileged"]) for arm in arms]
    assert len(set(subsets)) == len(arms)
    assert {len(subset) for subset in subsets} == wanted
    assert [len(subset) for subset in subsets] == sorted(len(subset) for subset in subsets)
    assert all(arm.edits | BASE.edits == arm.edits for arm in arms)


@given(names=NAMES, data=st.data())
def test_a_modality_that_is_left_out_is_in_no_network_of_the_arm(names, data):
    pool = data.draw(
        st.lists(st.sampled_from(["each", "joint", "privileged", "student"]), unique=True, min_size=1)
    )
    base = BASE.model_copy(update={"edits": {"teachers.pool": pool}})
    plain = {
        "data": {"dataset": "planted", "student": ["s"], "privileged": names},
        "terms": {"softened_logits": {}},
    }
    for arm in TeacherSubsets(base="base").arms(base, names):
        run = RunSettings.model_validate(edited(plain, arm.edits))
        kept = set(arm.edits["data.privileged"]) | {"s"}
        assert all(set(modalities) <= kept for modalities in run.networks().values())


@pytest.mark.parametrize(("names", "sizes"), [(["a"], [2]), ([], []), (["a", "b"], [1, 3])])
def test_subsets_that_do_not_exist_are_refused(names, sizes):
    with pytest.raises(ValueError, match=f"the base has {len(names)} privileged modalities"):
        TeacherSubsets(base="base", sizes=sizes).arms(BASE, names)


def test_the_whole_set_is_merged_with_the_base_and_noted():
    file = StudyFile.model_validate(
        {
            "name": "x",
            "run": {
                "data": {
                    "dataset": "planted",
                    "options": {"rows": [64, 32, 32]},
                    "student": ["face"],
                    "privileged": ["audio", "decoy"],
                }
            },
            "arms": [
                {"name": "student_only", "recipe": "student_only"},
                {"name": "several", "recipe": "hinton", "edits": {"teachers.pool": ["each", "joint"]}},
            ],
            "designs": [{"kind": "teacher_subsets", "base": "several"}],
        }
    )
    study = assemble(file, "x.toml")
    notes = {arm.name: arm.note for arm in study.arms}
    assert notes == {
        "student_only": None,
        "several": "also several@audio+decoy",
        "several@audio": None,
        "several@decoy": None,
    }
