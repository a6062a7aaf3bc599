"""Stage keys change with what a stage depends on, and with nothing else."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdistill.pipeline.run import RunSettings, canonical, live_ranges
from mmdistill.pipeline.stages import VERSIONS, Pipeline
from mmdistill.pipeline.studying import cohort_key
from mmdistill.settings import Choice, edited
from mmdistill.studies.space import is_live

EVERYTHING = {"teacher", "alignment", "teacher_outputs", "student"}
SET = EVERYTHING - {"teacher"}
# An edit of a run with several aligned teachers, and the stages whose keys change with it.
EDITS = {
    ("optimiser.learning_rate", 0.01): {"student"},
    ("optimiser.weight_decay", 0.01): {"student"},
    ("optimiser.label_smoothing", 0.1): {"student"},
    ("epochs", 3): {"student"},
    ("terms.transport.weight", 0.7): {"student"},
    ("terms.transport.eps_rel", "Infinity"): {"student"},
    ("terms.centroid.weight", 0.0): {"student"},
    ("selection.policy", "batch"): {"student"},
    ("selection.evidence", "in_sample"): {"student"},
    ("selection.temperature", 1.0): set(),
    ("selection.regression", "ccc"): set(),
    ("hallucinator.kind", "linear"): {"teacher_outputs", "student"},
    ("student.init", "visual_only"): {"student"},
    ("student.task_weight", 0.8): {"student"},
    ("terms.transport.eps", 0.01): {"student"},
    ("alignment.loss", "mse"): SET,
    ("alignment.detach_joint", True): SET,
    ("alignment.temperature", 2.0): set(),
    ("alignment.weight", 0.4): SET,
    ("alignment.epochs", 3): SET,
    ("alignment.kind", "none"): SET,
    ("teachers.epochs", 3): EVERYTHING,
    ("teachers.learning_rate", 0.01): EVERYTHING,
    ("teachers.weight_decay", 0.3): EVERYTHING,
    ("teachers.label_smoothing", 0.1): EVERYTHING,
    ("teachers.out_of_fold", 4): EVERYTHING,
    ("network.width", 9): EVERYTHING,
    ("batch_size", 25): EVERYTHING,
    ("data.label_fraction", 0.4): EVERYTHING,
    ("data.folds.scheme", "stratified"): EVERYTHING,
    ("fold", 1): EVERYTHING,
    ("seed", 6): EVERYTHING,
    ("teachers.task_weight", 0.3): set(),
    ("terms.transport.detach_shift", False): set(),
    ("terms.conditional_entropy.weight", 0.0): set(),
    ("data.options.seed", 1): set(),  # the fingerprint stands for the data
    ("data.folds.count", 4): set(),  # the official split has no count
}


def keys(run, fingerprint="data"):
    pipeline = Pipeline(run, fingerprint)
    found = {f"teacher {stage.name}": stage.key for stage in pipeline.teachers}
    sets = {stage.kind: stage.key for stage in (pipeline.alignment, pipeline.outputs) if stage is not None}
    return found | sets | {"student": pipeline.student.key}


def changed(before, after):
    return {name.split()[0] for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.sampled_from(list(EDITS)), unique_by=lambda edit: edit[0], max_size=4))
def test_keys_change_exactly_with_what_they_depend_on(run, edits):
    # With folds the number of folds matters; a choice per batch may be by CCC; without alignment its settings
    # do not matter, and with an absolute regularisation the relative one does not.
    paths = {path for path, _ in edits}
    if {"data.folds.scheme", "data.folds.count"} <= paths or "selection.regression" in paths:
        return
    before = run("mt_pkdot")
    after = RunSettings.model_validate(edited(before.as_json(), dict(edits)))
    expected = set().union(*(EDITS[edit] for edit in edits))
    assert changed(keys(before), keys(after)) == expected


@pytest.mark.parametrize("edit", EDITS)
def test_a_single_edit_changes_the_keys_it_should(run, edit):
    before = run("mt_pkdot")
    after = RunSettings.model_validate(edited(before.as_json(), dict([edit])))
    assert changed(keys(before), keys(after)) == EDITS[edit]


def test_other_data_changes_every_key(run):
    assert changed(keys(run("mt_pkdot")), keys(run("mt_pkdot"), "other data")) == EVERYTHING


@pytest.mark.parametrize(
    ("kind", "stages"),
    [
        ("student", {"student"}),
        ("alignment", SET),
        ("teacher_outputs", SET - {"alignment"}),
        ("teacher", EVERYTHING),
    ],
)
def test_another_version_of_a_stage_changes_it_and_what_reads_it(run, monkeypatch, kind, stages):
    before = keys(run("mt_pkdot"))
    monkeypatch.setitem(VERSIONS, kind, VERSIONS[kind] + 1)
    assert changed(before, keys(run("mt_pkdot"))) == stages


def test_a_modality_less_changes_the_joint_teacher_and_no_other(run):
    before = Pipeline(run("mt_pkdot"), "data")
    after = Pipeline(run("mt_pkdot", data__privileged=["audio"]), "data")
    assert before.teacher("audio").key == after.teacher("audio").key
    assert before.teacher("joint").key != after.teacher("joint").key
    assert "decoy" not in after.teacher("joint").name
    assert before.student.key != after.student.key


def test_the_student_alone_depends_on_no_teacher(run):
    alone = keys(run("student_only"))
    assert list(alone) == ["student"]
    for edits in (
        {"data__privileged": []},
        {"teachers__epochs": 9},
        {"teachers__pool": ["joint"]},
        {"selection__policy": "batch"},
        {"teachers__pool": ["each", "joint"], "alignment__kind": "adapters"},
        {"terms__centroid": {"weight": 0.0}, "teachers__pool": ["joint"]},
    ):
        assert keys(run("student_only", **edits)) == alone, edits


def test_teachers_are_known_by_what_they_see_and_not_by_how_they_are_called(run):
    assert (
        keys(run("hinton", teachers__pool=["audio+decoy"]))["teacher audio+decoy"]
        == (keys(run("hinton", teachers__pool=["privileged"]))["teacher audio+decoy"])
    )
    spelled = run("mt_pkdot", teachers__pool=["audio", "decoy", "joint"])
    assert keys(spelled) == keys(run("mt_pkdot"))


def test_a_teacher_that_trains_along_is_part_of_the_student_stage(run):
    before = keys(run("amid"))
    assert list(before) == ["student"]
    for edits in ({"teachers__epochs": 9}, {"teachers__out_of_fold": 4}, {"alignment__kind": "adapters"}):
        assert keys(run("amid", **edits)) == before, edits
    for edits in (
        {"teachers__task_weight": 0.5},
        {"data__privileged": ["audio"]},
        {"terms__conditional_entropy__weight": 0.5},
        {"terms__mutual_information__width": 32},
    ):
        assert keys(run("amid", **edits)) != before, edits


def test_the_auxiliary_counts_where_a_term_asks_for_it(run):
    pool = {"teachers__pool": ["face+audio"]}
    with_it = [run("amid", **pool, data__privileged=names) for names in (["audio"], ["audio", "decoy"])]
    assert keys(with_it[0]) != keys(with_it[1])
    absent = {"terms__auxiliary_information__weight": 0.0}
    without = [run("amid", **pool, **absent, data__privileged=n) for n in (["audio"], ["audio", "decoy"])]
    assert keys(without[0]) == keys(without[1])


def test_a_frozen_auxiliary_is_a_stage_before_a_teacher_that_trains_along(run):
    frozen = {"teachers__auxiliary": "frozen"}
    before = keys(run("amid", **frozen))
    alone = keys(run("hinton", teachers__pool=["privileged"]))
    assert list(before) == ["teacher audio+decoy", "teacher_outputs", "student"]
    assert before["teacher audio+decoy"] == alone["teacher audio+decoy"]
    assert before["teacher_outputs"] == alone["teacher_outputs"]
    assert changed(before, keys(run("amid", **frozen, teachers__task_weight=0.5))) == {"student"}
    assert changed(before, keys(run("amid", **frozen, teachers__epochs=9))) == {
        "teacher",
        "teacher_outputs",
        "student",
    }
    assert keys(run("amid"))["student"] != before["student"]
    without = {"terms__auxiliary_information__weight": 0.0}
    assert keys(run("amid", **without, **frozen)) == keys(run("amid", **without))
    assert keys(run("hinton", **frozen)) == keys(run("hinton"))


def test_what_would_go_to_a_frozen_teacher_is_dead(run):
    frozen = {"teachers__training": "frozen", "terms__auxiliary_information__weight": 0.0}
    with_it = run("amid", **frozen, terms__mutual_information__teacher_gradient=True)
    without = run("amid", **frozen, terms__mutual_information__teacher_gradient=False)
    assert keys(with_it) == keys(without)
    assert cohort_key(with_it) == cohort_key(without)
    joint = [run("amid", terms__mutual_information__teacher_gradient=value) for value in (True, False)]
    assert keys(joint[0]) != keys(joint[1])
    choice = Choice(choice=(True, False))
    path = "terms.mutual_information.teacher_gradient"
    assert not is_live(path, choice, with_it, "classification")
    assert is_live(path, choice, joint[0], "classification")


def test_stages_come_after_what_they_read(run):
    pipeline = Pipeline(run("mt_pkdot"), "data")
    assert [stage.kind for stage in pipeline.teachers] == ["teacher"] * 3
    assert pipeline.outputs.upstream == (pipeline.alignment,)
    assert pipeline.alignment.upstream == pipeline.teachers
    assert Pipeline(run("hinton"), "data").outputs.upstream[0].name == "audio+decoy+face"


DEAD = [
    ({"terms__transport__coupling": "identity"}, {"terms__transport__eps_rel": 0.5}),
    ({"terms__transport__coupling": "identity"}, {"terms__transport__eps_rel": "Infinity"}),
    ({"terms__transport__coupling": "identity"}, {"terms__transport__debias": False}),
    ({"terms__transport__anchors": "all"}, {"terms__transport__k": 5}),
    ({"terms__transport__eps_rel": "Infinity"}, {"terms__transport__tolerance": 0.1}),
    ({"terms__transport__shift": "none"}, {"terms__transport__detach_shift": True}),
    ({"terms__centroid__weight": 0.0}, {}),
    ({"alignment__kind": "none"}, {"alignment__epochs": 9}),
    ({"teachers__pool": ["joint"]}, {"selection__policy": "batch"}),
    ({"teachers__pool": ["joint"]}, {"alignment__kind": "none"}),
    ({}, {"teachers__task_weight": 0.1}),
]


@pytest.mark.parametrize(("base", "dead"), DEAD)
def test_a_dead_setting_leaves_the_digest_alone(run, base, dead):
    assert canonical(run("mt_pkdot", **base)).digest == canonical(run("mt_pkdot", **base, **dead)).digest


def test_weight_zero_is_absence(run):
    zero = canonical(run("mt_pkdot", terms__centroid__weight=0.0))
    assert "centroid" not in zero.terms
    assert canonical(run("hinton", terms__softened_logits__weight=0)) == canonical(run("student_only"))


def test_infinity_is_no_dead_setting(run):
    infinite = canonical(run("mt_pkdot", terms__transport__eps_rel="Infinity"))
    assert math.isinf(infinite.terms["transport"].eps_rel)
    assert infinite.digest != canonical(run("mt_pkdot")).digest


@pytest.mark.parametrize("recipe", ["student_only", "hinton", "mt_pkdot", "amid"])
def test_a_canonical_run_is_valid_and_its_own_canonical_form(run, recipe):
    once = canonical(run(recipe))
    assert canonical(once) == once
    again = RunSettings.model_validate_json(once.model_dump_json())
    assert again == once
    assert again.digest == once.digest


def test_a_run_with_infinity_survives_json(run):
    infinite = run("mt_pkdot", terms__transport__eps_rel="Infinity")
    assert RunSettings.model_validate_json(infinite.model_dump_json()) == infinite
    assert RunSettings.model_validate(infinite.as_json()) == infinite


def test_only_live_settings_have_a_range(run):
    ranges = live_ranges(run("mt_pkdot", terms__centroid__weight=0.0), "classification")
    assert set(ranges) == {
        "optimiser.label_smoothing",
        "optimiser.learning_rate",
        "optimiser.weight_decay",
        "terms.softened_logits.temperature",
        "terms.softened_logits.weight",
        "terms.transport.eps_rel",
        "terms.transport.k",
        "terms.transport.weight",
    }
    identity = live_ranges(run("mt_pkdot", terms__transport__coupling="identity"), "classification")
    assert "terms.transport.eps_rel" not in identity
    regression = live_ranges(run("mt_pkdot"), "regression")
    assert "optimiser.label_smoothing" not in regression
    assert "terms.softened_logits.temperature" not in regression
    assert "terms.softened_logits.weight" in regression


def test_a_cohort_differs_in_seeds_and_ranges_only(run):
    base = cohort_key(run("mt_pkdot"))
    for edits in (
        {"seed": 9},
        {"optimiser__learning_rate": 0.01},
        {"terms__transport__weight": 0.9},
        {"terms__transport__k": 9},
        {"terms__transport__eps_rel": "Infinity"},
        {"teachers__task_weight": 0.5},
    ):
        assert cohort_key(run("mt_pkdot", **edits)) == base, edits
    for edits in (
        {"fold": 1},
        {"epochs": 3},
        {"network__width": 9},
        {"terms__transport__anchors": "most"},
        {"terms__transport__debias": False},
        {"terms__centroid__weight": 0.0},
        {"terms__conditional_entropy": {}},
        {"teachers__pool": ["joint"]},
        {"optimiser__schedule": "constant"},
        {"data__label_fraction": 0.4},
    ):
        assert cohort_key(run("mt_pkdot", **edits)) != base, edits


REFUSED = [
    ("hinton", {"teachers__pool": ["jiont"]}, "'jiont' is no teacher of this run .*, or one of each, joint"),
    ("hinton", {"data__privileged": []}, "'joint' needs privileged modalities, and data.privileged is empty"),
    ("hinton", {"teachers__pool": []}, "terms.softened_logits needs a teacher, and teachers.pool is empty"),
    ("amid", {"teachers__pool": ["each"]}, r"must be the only one, but the pool is \['audio', 'decoy'\]"),
    ("amid", {"teachers__training": "frozen"}, 'an auxiliary network needs `teachers.training = "joint"`'),
    (
        "amid",
        {"teachers__training": "frozen", "teachers__auxiliary": "frozen"},
        "terms.auxiliary_information has no gradient: teacher and auxiliary are both frozen",
    ),
    (
        "amid",
        {"teachers__auxiliary": "frozen", "terms__auxiliary_information__teacher_gradient": False},
        "terms.auxiliary_information moves neither teacher nor auxiliary, which is frozen",
    ),
    (
        "amid",
        {"teachers__pool": ["student"], "data__privileged": []},
        "an auxiliary network needs privileged modalities",
    ),
    ("mt_pkdot", {"teachers__pool": ["each"]}, "to the `joint` one, which is not in teachers.pool"),
    ("mt_pkdot", {"terms__transport__k": 24}, "k must be at most 23 with batch_size 24, but is 24"),
    (
        "hinton",
        {"terms": {"softend_logits": {}}},
        "no term is called 'softend_logits': did you mean 'softened_logits'",
    ),
    ("hinton", {"terms__softened_logits__temperature": 0}, "`temperature`: Input should be greater than 0"),
]


@pytest.mark.parametrize(("recipe", "edits", "message"), REFUSED)
def test_a_run_that_contradicts_itself_is_refused(run, recipe, edits, message):
    with pytest.raises(ValueError, match=message):
        run(recipe, **edits)


def test_what_is_dead_is_not_held_against_a_run(run):
    assert run("mt_pkdot", terms__transport__anchors="all", terms__transport__k=30, batch_size=20)
    assert run("mt_pkdot", terms__transport={"weight": 0.0, "k": 90})
