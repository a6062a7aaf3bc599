"""The TensorBoard tree that a study leaves."""

import contextlib
import re
import shutil
from collections import Counter

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from mmdistill.records.board import Board
from mmdistill.records.charts import layout
from mmdistill.records.events import interval_tags


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    root = tmp_path_factory.mktemp("studies") / "undisturbed"
    finished(root)
    return root


def test_the_tensorboard_tree_has_a_folder_per_run(begun, undisturbed, tiny):
    session = begun(undisturbed)
    session.show_missing()
    files = {
        path.parent.relative_to(session.tensorboard).as_posix()
        for path in session.tensorboard.rglob("*tfevents*")
    }
    names = [f"search-{n:03d}" for n in range(3)] + [
        f"{p}-{n:03d}" for p in ("confirm", "test") for n in range(2)
    ]
    runs = {f"{arm['name']}/{name}" for arm in tiny["arms"] for name in names}
    assert runs <= files
    assert sum("validate-" in name for name in files) == 6
    assert {f"means/{arm['name']}" for arm in tiny["arms"]} <= files
    assert len(files) == len(runs) + 6 + 3 + 2


def of_hparams_page(folder, tag):
    content = EventAccumulator(str(folder)).Reload().SummaryMetadata(tag).plugin_data.content
    return (
        metadata.parse_experiment_plugin_data(content)
        if tag == metadata.EXPERIMENT_TAG
        else metadata.parse_session_start_info_plugin_data(content)
    )


def columns_of(session):
    return {c.name: c for c in of_hparams_page(session.tensorboard, metadata.EXPERIMENT_TAG).hparam_infos}


def test_the_hparams_page_tells_arms_and_phases_apart(begun, undisturbed):
    session = begun(undisturbed)
    session.show_missing()
    columns = columns_of(session)
    assert {"optimiser.learning_rate", "terms.transport.weight"} < set(columns)
    arms = {value.string_value for value in columns["arm"].domain_discrete.values}
    assert arms == {"student_only", "hinton", "mt_pkdot"}
    start = of_hparams_page(session.tensorboard / "mt_pkdot" / "search-001", metadata.SESSION_START_INFO_TAG)
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert set(shown) == {"arm", "phase", *session.study.arms[2].space}
    assert (shown["arm"], shown["phase"]) == ("mt_pkdot", "search")


def test_repetitions_of_a_winner_share_a_row_of_the_hparams_page(begun, undisturbed):
    session = begun(undisturbed)
    session.show_missing()
    rows = Counter(
        of_hparams_page(path.parent, metadata.SESSION_START_INFO_TAG).group_name
        for path in session.tensorboard.glob("hinton/*/*tfevents*")
    )
    assert {row: n for row, n in rows.items() if "validate" not in row} == {
        "hinton/search-000": 1,
        "hinton/search-001": 1,
        "hinton/search-002": 1,
        "hinton/confirm": 2,
        "hinton/test": 2,
    }
    assert sum("validate-" in row for row in rows) == 2


def test_final_metrics_stand_apart_from_the_curves(begun, undisturbed):
    session = begun(undisturbed)
    session.show_missing()
    accumulator = EventAccumulator(str(session.tensorboard / "mt_pkdot" / "confirm-000")).Reload()
    groups = Counter(tag.split("/")[0] for tag in accumulator.Tags()["scalars"])
    assert set(groups) == {"final", "selection", "term", "term_detail", "validation"}
    assert groups["final"] == 5
    metrics = of_hparams_page(session.tensorboard, metadata.EXPERIMENT_TAG).metric_infos
    assert [metric.name.tag for metric in metrics] == [
        f"final/{name}" for name in ("accuracy", "log_loss", "ace", "macro_f1", "worst_class_accuracy")
    ]


def shown_in(root):
    """Return all that TensorBoard reads below a folder, without times: steps and values by run and tag."""
    found = {}
    for path in root.rglob("*tfevents*"):
        accumulator, run = (
            EventAccumulator(str(path.parent)).Reload(),
            path.parent.relative_to(root).as_posix(),
        )
        tags = accumulator.Tags()
        for tag in tags["scalars"]:
            found[run, tag] = [(point.step, repr(point.value)) for point in accumulator.Scalars(tag)]
        for tag in tags["images"]:
            found[run, tag] = [(p.step, p.encoded_image_string) for p in accumulator.Images(tag)]
        for tag in tags["tensors"]:
            found[run, tag] = [p.tensor_proto.SerializeToString() for p in accumulator.Tensors(tag)]
    for run, _ in list(found):
        with contextlib.suppress(KeyError):
            start = of_hparams_page(root / run, metadata.SESSION_START_INFO_TAG)
            values = {name: str(value) for name, value in start.hparams.items()}
            found[run, "hparams"] = [start.group_name, values]
    found["columns"] = str(of_hparams_page(root, metadata.EXPERIMENT_TAG))
    return found


def test_the_tree_is_the_same_whether_it_grew_with_the_study_or_was_exported(begun, undisturbed, tmp_path):
    session = begun(undisturbed)
    session.show_missing()
    exported = Board(session.folder, tmp_path / "exported")
    exported.catch_up()
    live, anew = shown_in(session.tensorboard), shown_in(exported.root)
    assert live == anew
    assert {("means/mt_pkdot", "structure"), ("hinton/confirm-001", "structure")} < live.keys()
    assert ("hinton/search-000", "hparams") in live
    shutil.rmtree(session.tensorboard)
    begun(undisturbed).show_missing()
    assert shown_in(session.tensorboard) == live


def test_every_chart_of_the_layout_finds_curves(begun, undisturbed):
    session = begun(undisturbed)
    session.show_missing()
    tags = set(EventAccumulator(str(session.tensorboard / "means/mt_pkdot")).Reload().Tags()["scalars"])
    for category in layout("accuracy", {"several teachers", "transport"}):
        for chart in category.charts:
            if chart.interval is not None:
                assert {chart.interval, *interval_tags(chart.interval)} <= tags
            for pattern in chart.curves:
                assert any(re.fullmatch(pattern, tag) for tag in tags), pattern


def test_a_column_covers_what_every_arm_searches_of_a_setting(begun, tmp_path, tiny):
    rate, weight, pool = "optimiser.learning_rate", "terms.softened_logits.weight", "teachers.pool"
    pools = [["audio"], ["joint"], ["each"]]
    coupling = "terms.transport.coupling"
    spaces = [
        {rate: {"low": 0.001, "high": 0.01}, weight: {"choice": [0.5, 4]}, pool: {"choice": pools[:2]}},
        {rate: {"low": 0.002, "high": 0.1}, weight: {"low": 0.1, "high": 2}, pool: {"choice": pools[1:]}},
    ]
    more = [{"name": f"arm{n}", "recipe": "hinton", "space": space} for n, space in enumerate(spaces)]
    more.append(tiny["arms"][2] | {"space": {coupling: {"choice": ["entropic", "identity"]}}})
    session = begun(tmp_path, {"arms": [*tiny["arms"][:2], *more]})
    session.show_missing()
    columns = columns_of(session)
    rates, weights = columns[rate].domain_interval, columns[weight].domain_interval
    assert (rates.min_value, rates.max_value) == (0.001, 0.1)
    assert (weights.min_value, weights.max_value) == (0.1, 10)
    options = {
        path: sorted(value.string_value for value in columns[path].domain_discrete.values)
        for path in (pool, coupling)
    }
    assert options == {pool: ['["audio"]', '["each"]', '["joint"]'], coupling: ["entropic", "identity"]}
