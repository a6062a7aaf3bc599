"""Students that fuse what they do not see, or begin with what they saw before."""

import pytest
import torch

from mmdistill.models.network import Network
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import execute
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.pipeline.stages import Pipeline
from mmdistill.pipeline.studying import begin_with, student_network
from mmdistill.pipeline.teaching import teacher_outputs, train_teachers
from mmdistill.training.optimiser import load_lanes
from mmdistill.training.runtime import LocalRuntime

HERE = LocalRuntime()
KINDS = ["zeros", "linear", "relu"]


def curve(final, name, trial="search0"):
    return [row.value for row in final.epochs if row.name == name and row.trial_id == trial]


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_is_rebuilt_to_be_tested_without_its_teachers(run, order, cache, kind):
    one = run("mt_pkdot", hallucinator__kind=kind)
    (trial,) = execute(order("search", one), cache, HERE).trials
    (tested,) = execute(order("test", one), cache, HERE).trials
    assert (tested.status, tested.split) == ("complete", "test")
    assert tested.metrics["macs"] == trial.metrics["macs"] > 16 * 8 + 8 * 4
    assert tested.metrics["latency_ms"] > 0


def test_privileged_inputs_at_test_change_nothing(run):
    one = run("mt_pkdot", hallucinator__kind="relu")
    fold = opened(one.data, 0, with_test=False, device="cpu")
    student = student_network([one], fold)
    inputs = {name: x[None] for name, x in fold.validation.inputs.items()}
    alone = student({"face": inputs["face"]}).logits_KBC
    spoiled = {name: x if name == "face" else x * float("nan") for name, x in inputs.items()}
    assert torch.equal(student(spoiled).logits_KBC, alone)


def test_it_learns_what_the_joint_teacher_sees_of_each_privileged_modality(run):
    one = canonical(run("hinton", hallucinator__kind="linear"))
    fold = opened(one.data, 0, with_test=False, device="cpu")
    teachers = {"joint": train_teachers([one], "joint", fold, HERE)}
    (entry,) = teacher_outputs([one], teachers, None, fold)
    joint = Network(fold.widths(("audio", "decoy", "face")), fold.outputs, one.network, [0] * 4)
    load_lanes(joint, [found.tensors for found in teachers["joint"]])
    for s, name in enumerate(("audio", "decoy")):
        seen = joint.encoders[name](fold.train.inputs[name].expand(4, -1, -1))[0]
        torch.testing.assert_close(entry.tensors["streams"][s], seen)


@pytest.mark.parametrize("loss", ["mse", "mmd"])
def test_what_it_hallucinates_comes_closer(run, order, cache, loss):
    fast = {"optimiser__learning_rate": 0.03, "epochs": 15}
    one = run("hinton", **fast, hallucinator={"kind": "linear", "loss": loss})
    found = curve(execute(order("search", one), cache, HERE), "term/hallucination")
    assert found[-1] < 0.85 * found[0]


def test_it_may_be_all_that_a_teacher_gives(run, order, cache):
    one = run("mt_pkdot", hallucinator__kind="relu", **dict.fromkeys(WEIGHTS, 0.0))
    assert list(canonical(one).networks()) == ["joint"]
    final = execute(order("search", one), cache, HERE)
    assert final.trials[0].teachers == ["joint"]
    assert [row.stage for row in final.stages] == ["teacher_outputs", "student"]
    assert curve(final, "term/hallucination")


WEIGHTS = [f"terms__{name}__weight" for name in ("transport", "centroid", "softened_logits")]


def test_a_student_begins_with_the_encoders_of_the_network_that_saw_all(run):
    runs = [run("student_only", seed=seed, student__init="visual_only") for seed in (5, 6)]
    fold = opened(runs[0].data, 0, with_test=False, device="cpu")
    first = train_teachers([one.first_network() for one in runs], "student", fold, HERE)
    student, fresh = student_network(runs, fold), student_network(runs, fold)
    begin_with(student, first)
    for k in range(2):
        for name, parameter in student.named_parameters():
            given = first[k].tensors[name][0] if name.startswith("encoders") else None
            expected = fresh.get_parameter(name)[k] if given is None else given
            assert torch.equal(parameter[k], expected), name
    assert not torch.equal(
        student.encoders["face"].layers[0].weight_KIO, fresh.encoders["face"].layers[0].weight_KIO
    )


def test_first_encoders_come_from_true_labels_and_are_shared_with_the_pool(run, order, cache):
    one = run("student_only", student__init="visual_only", teachers__labels="permuted")
    pool = run("hinton", teachers__pool=["student"], seed=5)
    first = Pipeline(one, "data").first_network
    assert first.key == Pipeline(pool, "data").teacher("student").key
    assert first.key in {stage.key for stage in Pipeline(one, "data").student.upstream}
    (trial,) = execute(order("search", one), cache, HERE).trials
    assert (trial.status, trial.teachers) == ("complete", [])


def test_lanes_equal_their_solo_runs(run, order, tmp_path):
    runs = [run("complete", seed=5 + k, epochs=10, selection__temperature=0.1 * (k + 1)) for k in range(2)]
    together = execute(order("search", *runs), StageCache(tmp_path / "both"), HERE)
    assert [trial.lanes for trial in together.trials] == [2, 2]
    for k, one in enumerate(runs):
        alone = execute(order("search", one), StageCache(tmp_path / str(k)), HERE)
        for name in ("term/task", "term/hallucination", "term/feature_cosine", "validation/log_loss"):
            mine, theirs = curve(together, name, f"search{k}"), curve(alone, name)
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6), name


def test_a_fixed_teacher_is_no_degenerate_selection(run, order, cache):
    (trial,) = execute(order("search", run("mt_pkdot", selection__policy="fixed")), cache, HERE).trials
    assert trial.selection == {"audio": 0, "decoy": 0, "joint": 1}
    assert trial.note is None


REFUSED = [
    (
        {"data__privileged": [], "teachers__pool": [], "hallucinator__kind": "zeros"},
        "data.privileged is empty",
    ),
    ({"teachers__pool": ["each"], "hallucinator__kind": "relu"}, "learns from a frozen `joint` teacher"),
    (
        {"teachers__pool": ["joint"], "teachers__training": "joint", "hallucinator__kind": "linear"},
        "learns from a frozen `joint` teacher",
    ),
    (
        {
            "teachers__pool": ["each", "joint"],
            "alignment": {"kind": "raw", "detach_joint": True},
        },
        "nothing would move: without adapters only the joint teacher's features can",
    ),
    (
        {
            "teachers__pool": ["each", "joint"],
            "selection": {"policy": "fixed", "fixed_to": "video"},
        },
        "selection.fixed_to: 'video' is none of the teachers audio, decoy, joint",
    ),
]


@pytest.mark.parametrize(("edits", "message"), REFUSED)
def test_what_contradicts_itself_is_refused(run, edits, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        run("student_only", **edits)


def test_what_changes_nothing_is_at_its_default(run):
    plain = canonical(run("student_only"))
    dead = {"hallucinator__loss": "mse", "student__task_weight": 0.3, "selection__temperature": 1.0}
    assert canonical(run("student_only", **dead)).digest == plain.digest
    mean = run("mt_pkdot", selection__policy="mean")
    changes = {"selection__evidence": "in_sample", "selection__fixed_to": "audio"}
    again = run("mt_pkdot", selection__policy="mean", **changes)
    assert canonical(mean).digest == canonical(again).digest
    assert RunSettings.model_validate(canonical(mean).as_json()) == canonical(mean)
