"""What each design does with its base, and what it refuses."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdistill.errors import ConfigError
from mmdistill.pipeline.run import RunSettings
from mmdistill.records.revisions import normal, refusals
from mmdistill.settings import edited
from mmdistill.studies.designs import Base
from mmdistill.studies.designs.controls import CONTROLS
from mmdistill.studies.designs.teacher_subsets import TeacherSubsets
from mmdistill.studies.file import ArmEntry, StudyFile
from mmdistill.studies.study import assemble

NAMES = st.lists(st.sampled_from(list("abcdefg")), unique=True, min_size=1, max_size=6)
ENTRY = ArmEntry(name="base", recipe="hinton", edits={"epochs": 3})
POOL = {"teachers.pool": ["each", "joint"]}
MT = {"name": "mt", "recipe": "mt_pkdot", "edits": {"terms.transport.k": 5, **POOL}}
ALONE = {"name": "student_only", "recipe": "student_only"}


def base_of(privileged, pool=("each", "joint")):
    plain = {
        "data": {"dataset": "planted", "student": ["s"], "privileged": privileged},
        "teachers": {"pool": list(pool)},
        "terms": {"softened_logits": {}},
        "epochs": 3,
    }
    return Base(ENTRY, RunSettings.model_validate(plain))


def study(*arms, designs=(), data=(), **more):
    """Return the study of some arms beside ``student_only`` on planted data."""
    planted = {"dataset": "planted", "options": {"rows": [64, 32, 32]}, "student": ["face"]}
    data = planted | {"privileged": ["audio", "decoy"], "label_fraction": 0.5} | dict(data)
    run = {"data": data, "batch_size": 32}
    tree = {"name": "x", "run": run, "arms": [ALONE, *arms], "designs": designs}
    return assemble(StudyFile.model_validate(tree | more), "x.toml")


def made(*arms, **more):
    """Return the arms of a study by name, without the hand-written ones."""
    hand = {"student_only", *(arm["name"] for arm in arms)}
    return {arm.name: arm for arm in study(*arms, **more).arms if arm.name not in hand}


def problems(*arms, **more):
    with pytest.raises(ConfigError) as caught:
        study(*arms, **more)
    return [str(problem) for problem in caught.value.problems]


@settings(max_examples=30, deadline=None)
@given(names=NAMES, data=st.data())
def test_subsets_are_all_of_the_sizes_asked_for(names, data):
    sizes = data.draw(st.lists(st.integers(1, len(names)), max_size=4))
    arms = TeacherSubsets(bases=["base"], sizes=sizes).arms(base_of(names))
    wanted = set(sizes) or set(range(1, len(names) + 1))
    assert len(arms) == sum(math.comb(len(names), size) for size in wanted)
    subsets = [tuple(arm.edits["data.privileged"]) for arm in arms]
    assert len(set(subsets)) == len(arms)
    assert {len(subset) for subset in subsets} == wanted
    assert [len(subset) for subset in subsets] == sorted(len(subset) for subset in subsets)
    assert all(arm.edits | ENTRY.edits == arm.edits for arm in arms)


@settings(max_examples=30, deadline=None)
@given(names=NAMES, data=st.data())
def test_a_modality_that_is_left_out_is_in_no_network_of_the_arm(names, data):
    pools = st.lists(st.sampled_from(["each", "joint", "privileged", "student"]), unique=True, min_size=1)
    base = base_of(names, data.draw(pools))
    for arm in TeacherSubsets(bases=["base"]).arms(base):
        run = RunSettings.model_validate(edited(base.run.as_json(), arm.edits))
        kept = set(arm.edits["data.privileged"]) | {"s"}
        assert all(set(modalities) <= kept for modalities in run.networks().values())


@pytest.mark.parametrize(("names", "sizes"), [(["a"], [2]), ([], []), (["a", "b"], [1, 3])])
def test_subsets_that_do_not_exist_are_refused(names, sizes):
    base = base_of(names, ["each", "joint"] if names else ["student"])
    with pytest.raises(ValueError, match=f"the base has {len(names)} privileged modalities"):
        TeacherSubsets(bases=["base"], sizes=sizes).arms(base)


def test_the_whole_of_a_lattice_is_merged_with_the_base_and_noted():
    found = study(MT, designs=[{"kind": k, "base": "mt", **m} for k, m in LATTICES.items()])
    notes = {arm.name: arm.note for arm in found.arms if arm.note}
    assert notes == {"mt": "also mt@audio+decoy, mt@networks=audio+decoy+joint"}


LATTICES = {"teacher_subsets": {}, "network_subsets": {"keep": ["joint"]}}


def test_a_lattice_of_networks_keeps_every_network_as_it_is():
    found = made(MT, designs=[{"kind": "network_subsets", "base": "mt", "keep": ["joint"]}])
    assert {name: dict(arm.run.networks()) for name, arm in found.items()} == {
        "mt@networks=audio+joint": {"audio": ("audio",), "joint": ("audio", "decoy", "face")},
        "mt@networks=decoy+joint": {"decoy": ("decoy",), "joint": ("audio", "decoy", "face")},
    }
    alone = made(MT, designs=[{"kind": "network_subsets", "base": "mt", "keep": ["joint"], "sizes": [0]}])
    assert list(alone) == ["mt@networks=joint"]


def test_leave_one_out_takes_out_every_part_that_no_other_needs():
    found = made(MT, designs=[{"kind": "leave_one_out", "base": "mt"}])
    assert {name: arm.change for name, arm in found.items()} == {
        "mt-centroid": "without centroid",
        "mt-transport": "without transport",
        "mt-alignment": "without alignment",
        "mt-selection": "one teacher per batch instead of one per row",
        "mt-teacher.audio": "without the teacher audio",
        "mt-teacher.decoy": "without the teacher decoy",
    }
    assert set(found["mt-transport"].run.active_terms()) == {"centroid"}
    assert found["mt-alignment"].run.alignment.kind == "none"
    assert found["mt-selection"].run.selection.policy == "batch"
    assert set(found["mt-teacher.audio"].run.networks()) == {"decoy", "joint"}
    assert {arm.baseline for arm in found.values()} == {"student_only"}


def test_an_arm_does_not_change_a_table_that_its_base_gave():
    arm = {"name": "both", "recipe": "hinton", "edits": {"terms.centroid": {}}}
    found = study(arm, designs=[{"kind": "leave_one_out", "base": "both"}])
    terms = {one.name: list(one.run.active_terms()) for one in found.arms}
    assert terms == {
        "student_only": [],
        "both": ["centroid", "softened_logits"],
        "both-centroid": ["softened_logits"],
        "both-softened_logits": ["centroid"],
    }


def test_without_its_only_term_a_method_is_the_student_alone():
    found = study({"name": "h", "recipe": "hinton"}, designs=[{"kind": "leave_one_out", "base": "h"}])
    assert found.arms[0].note == "also h-softened_logits"


def test_add_one_begins_with_the_student_alone_and_adds_each_term():
    designs = [{"kind": "add_one", "base": "mt"}]
    found = study(MT, designs=designs)
    assert found.arms[0].note == "also mt@none"
    terms = {name: list(arm.run.active_terms()) for name, arm in made(MT, designs=designs).items()}
    assert terms == {"mt@centroid": ["centroid"], "mt@transport": ["transport"]}


def test_add_one_adds_teachers_where_it_starts_with_one():
    start = {"start": ["transport", "teacher.joint"]}
    found = made(MT, designs=[{"kind": "add_one", "base": "mt"} | start])
    first = "mt@transport+teacher.joint"
    networks = {name.removeprefix(first): list(arm.run.networks()) for name, arm in found.items()}
    assert networks == {
        "": ["joint"],
        "+centroid": ["joint"],
        "+teacher.audio": ["audio", "joint"],
        "+teacher.decoy": ["decoy", "joint"],
    }


def test_a_factorial_is_the_whole_product_and_fixes_its_factors():
    factors = {"network": {"width": [16, 32]}, "terms.transport.weight": [0.1, 1.0]}
    labels = {"terms.transport.weight": "w"}
    found = made(MT, designs=[{"kind": "factorial", "base": "mt", "factors": factors, "labels": labels}])
    assert list(found) == [f"mt@network.width={n}+w={w}" for n in (16, 32) for w in ("0.1", "1")]
    for name, arm in found.items():
        assert f"width={arm.run.network.width}+w={arm.run.terms['transport'].weight:g}" in name
        assert "terms.transport.weight" not in arm.space
        assert "terms.centroid.weight" in arm.space


def test_an_axis_carries_its_own_baselines():
    axis = {"kind": "axis", "bases": ["student_only", "mt"], "path": "data.label_fraction"}
    found = made(MT, designs=[axis | {"values": [0.25, 0.5, 1.0]}])
    assert {name: arm.baseline for name, arm in found.items()} == {
        "student_only@label_fraction=0.25": "student_only",
        "student_only@label_fraction=1": "student_only",
        "mt@label_fraction=0.25": "student_only@label_fraction=0.25",
        "mt@label_fraction=1": "student_only@label_fraction=1",
    }


def test_an_axis_takes_several_edits_under_one_label():
    swap = {"label": "ears", "edits": {"data": {"student": ["audio"], "privileged": ["face"]}}}
    axis = {"kind": "axis", "bases": ["student_only", "mt"], "values": [swap]}
    found = made(MT, designs=[axis])
    assert found["mt@ears"].run.data.student == ("audio",)
    assert found["mt@ears"].baseline == "student_only@ears"
    assert next(iter(made(MT, designs=[axis | {"label": "senses"}]))) == "student_only@senses=ears"


def test_arms_may_differ_in_their_folds_and_each_has_its_own_data():
    axis = {
        "kind": "axis",
        "bases": ["student_only", "mt"],
        "path": "data.folds.scheme",
        "values": ["stratified"],
    }
    found = study(MT, designs=[axis])
    official, folded = found.arms[0], found.arms[2]
    assert folded.name == "student_only@folds.scheme=stratified"
    assert found.arms[3].baseline == folded.name
    prints = [found.fingerprint(folded.run.data, fold) for fold in range(5)]
    assert found.fingerprints == (found.fingerprint(official.run.data, 0), *prints)
    assert len(set(found.fingerprints)) == 6


@pytest.mark.parametrize("values", [["stratified"], ["official", "stratified"]])
def test_arms_with_folds_of_their_own_may_be_added_to_a_study_that_has_begun(values):
    axis = {"kind": "axis", "bases": ["student_only", "mt"], "path": "data.folds.scheme", "values": values}
    before, after = (normal(found.resolved()) for found in (study(MT), study(MT, designs=[axis])))
    assert refusals("study.json", before, after, begun=True, opened={"mt"}) == []
    assert "fingerprints" in str(refusals("study.json", after, before, begun=True, opened=()))


def test_a_student_of_another_width_is_compared_with_its_like():
    axis = {"kind": "axis", "bases": ["student_only", "mt"], "path": "network.width", "values": [16, 32]}
    found = made(MT, designs=[axis])
    for width in (16, 32):
        assert found[f"mt@network.width={width}"].baseline == f"student_only@network.width={width}"


def test_controls_are_one_key():
    found = made(MT | {"controls": True})
    assert list(found) == [f"mt.{name}" for name in CONTROLS if name != "doubled_information"]
    same = found["mt.same_modality"].run
    assert dict(same.networks()) == {"student": ("face",)}
    assert set(same.active_terms()) == {"centroid", "transport"}
    assert found["mt.permuted_teacher"].run.teachers.labels == "permuted"
    assert found["mt.identity_coupling"].run.terms["transport"].coupling == "identity"
    supervised = found["mt.supervised"]
    assert not supervised.run.active_terms()
    assert (supervised.run.data.label_fraction, supervised.baseline) == (1.0, "student_only")


def test_the_same_modality_control_of_hinton_is_self_distillation():
    arms = (
        {"name": "h", "recipe": "hinton", "controls": ["same_modality"]},
        {"name": "s", "recipe": "self_distillation"},
    )
    assert [arm.note for arm in study(*arms).arms] == [None, None, "also h.same_modality"]


def test_a_control_of_a_jointly_trained_teacher_leaves_out_its_auxiliary():
    found = made({"name": "amid", "recipe": "amid", "controls": ["same_modality"]})
    arm = found["amid.same_modality"]
    assert set(arm.run.active_terms()) == {"conditional_entropy", "mutual_information"}
    assert arm.change.endswith("without auxiliary_information")


def test_information_of_twice_the_weight_stands_in_for_the_conditional_entropy():
    edits = {"terms.mutual_information.weight": 0.7}
    found = made({"name": "amid", "recipe": "amid", "edits": edits, "controls": ["doubled_information"]})
    arm = found["amid.doubled_information"]
    assert set(arm.run.active_terms()) == {"auxiliary_information", "mutual_information"}
    assert arm.run.terms["mutual_information"].weight == 1.4
    assert "terms.mutual_information.weight" not in arm.space
    with pytest.raises(ConfigError, match="it has not both terms, mutual_information and"):
        made(MT | {"controls": ["doubled_information"]})


def test_controls_of_a_generated_arm_are_a_design():
    designs = [
        {"kind": "teacher_subsets", "base": "mt", "sizes": [1]},
        {"kind": "controls", "base": "mt@audio", "which": ["permuted_teacher"]},
    ]
    assert "mt@audio.permuted_teacher" in made(MT, designs=designs)


REFUSED = [
    (
        {"kind": "leave_one_out", "base": "mt", "parts": ["teacher.joint"]},
        "designs.0: its arm 'mt-teacher.joint' (without the teacher joint) does not hold together: alignment "
        "pulls the other teachers to the `joint` one, which is not in teachers.pool; leave this arm out",
    ),
    (
        {"kind": "network_subsets", "base": "mt", "keep": ["video"]},
        "`keep` names 'video', but the networks of",
    ),
    (
        {"kind": "network_subsets", "base": "mt", "sizes": [4]},
        "there are no subsets of 4: the base has 3 networks",
    ),
    (
        {"kind": "leave_one_out", "base": "mt", "parts": ["transprot"]},
        "designs.0: no part is called 'transprot'; did you mean 'transport'?",
    ),
    ({"kind": "leave_one_out", "base": "student_only"}, "the base has no part that can be left out"),
    ({"kind": "add_one", "base": "student_only"}, "the base has no part to add"),
    ({"kind": "add_one", "base": "mt", "start": ["x"]}, "no part is called 'x'"),
    (
        {"kind": "add_one", "base": "mt", "parts": ["teacher.audio"], "start": ["transport"]},
        "its arm 'mt@transport' (transport alone) does not hold together: terms.transport needs a teacher",
    ),
    (
        {"kind": "factorial", "base": "mt", "factors": {"epochz": [1]}},
        "(epochz = 1) does not hold together: epochz: unknown key; did you mean `epochs`?",
    ),
    ({"kind": "factorial", "base": "mt", "factors": {}}, "designs.0: factors: "),
    (
        {"kind": "factorial", "base": "mt", "factors": {"epochs": []}},
        "a factor has at least one value, but epochs",
    ),
    (
        {"kind": "factorial", "base": "mt", "factors": {"epochs": [2]}, "labels": {"epoch": "e"}},
        "`labels` names 'epoch', which is no factor",
    ),
    (
        {"kind": "factorial", "base": "mt", "factors": {"network": [{"width": 3}]}},
        "a table has no short name",
    ),
    ({"kind": "axis", "base": "mt", "values": [1]}, "`path` says what the value 1 is of, and is missing"),
    (
        {"kind": "axis", "base": "mt", "values": [{"label": "x"}]},
        "a table among `values` has `label` and `edits`",
    ),
    ({"kind": "axis", "base": "mt", "values": [{"label": "a b", "edits": {"epochs": 2}}]}, "got 'mt@a b'"),
    (
        {"kind": "axis", "base": "mt", "path": "data.label_fraction", "values": [0.25]},
        "arms.mt@label_fraction=0.25: no arm without a teacher has its data (data.label_fraction = 0.25), so "
        'there is nothing to compare it with; add "student_only" to the `bases` of its design',
    ),
    (
        {"kind": "axis", "base": "mt", "path": "data.student", "values": [["smell"]]},
        "arms.mt@student=smell.edits.data.student: 'planted' has no modality 'smell'",
    ),
    (
        {"kind": "controls", "base": "student_only", "which": ["permuted_teacher", "x"]},
        "'permuted_teacher' does not apply to 'student_only': it has no teacher; no control is called 'x'",
    ),
    ({"kind": "controls", "base": "mt", "which": False}, "designs.0: which."),
    (
        {"kind": "leave_one_out", "bases": ["mt", "mtt"]},
        "designs.0.bases: no arm is called 'mtt'; did you mean 'mt'?",
    ),
    ({"kind": "leave_one_out", "bases": []}, "designs.0: bases: "),
    ({"kind": "leave_one_out", "base": "mt", "bases": ["mt"]}, "designs.0: base: unknown key"),
    ({"kind": "leave_one_out", "base": "mt", "readings": ["cold"]}, "designs.0: readings.0: "),
]


@pytest.mark.parametrize(("design", "expected"), REFUSED)
def test_what_a_design_cannot_do_is_refused_by_name(design, expected):
    found = problems(MT, designs=[design])
    assert expected in found[0], found


CONTROL_PROBLEMS = [
    (
        "hinton",
        ["identity_coupling"],
        "arms.a.controls: the control 'identity_coupling' does not apply to 'a': it has",
    ),
    ("self_distillation", ["same_modality"], "its teachers see the student's modalities only"),
    ("hinton", ["supervisd"], "no control is called 'supervisd' (did you mean 'supervised'?)"),
    (
        "student_only",
        True,
        "no control applies to 'a' (same_modality: it has no teacher; permuted_teacher: it has",
    ),
]


@pytest.mark.parametrize(("recipe", "asked", "expected"), CONTROL_PROBLEMS)
def test_a_control_that_does_not_apply_is_refused_with_the_reason(recipe, asked, expected):
    (found,) = problems({"name": "a", "recipe": recipe, "controls": asked}, data={"label_fraction": 1.0})
    assert expected in found


@pytest.mark.parametrize(
    ("edits", "control", "why"),
    [
        ({"teachers.labels": "permuted"}, "permuted_teacher", "its teachers learn permuted labels already"),
        (
            {"terms.transport.coupling": "identity"},
            "identity_coupling",
            "its coupling is the identity already",
        ),
        ({"data.label_fraction": 1.0}, "supervised", "its training rows have all their labels"),
    ],
)
def test_a_control_is_no_control_of_itself(edits, control, why):
    arm = MT | {"edits": MT["edits"] | edits, "controls": [control]}
    assert any(why in problem for problem in problems(arm))


def test_a_method_of_auxiliary_terms_alone_has_no_same_modality_control():
    edits = {"terms.mutual_information.weight": 0.0, "terms.conditional_entropy.weight": 0.0}
    (found,) = problems({"name": "a", "recipe": "amid", "edits": edits, "controls": ["same_modality"]})
    assert "all its terms need a network on privileged modalities" in found


def test_a_contrast_of_an_arm_whose_base_is_wrong_is_not_held_against_the_file():
    contrast = {"question": "?", "arm": "mt@audio", "against": "student_only"}
    wrong = MT | {"edits": {"epochs": 0}}
    designs = [{"kind": "teacher_subsets", "base": "mt"}]
    (found,) = problems(wrong, designs=designs, contrasts=[contrast])
    assert "arms.mt.edits.epochs" in found
