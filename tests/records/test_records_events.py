"""What TensorBoard reads back from our event files."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import data_provider, event_accumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from mmdistill.records import events
from mmdistill.records.charts import Category, Chart
from mmdistill.records.events import write_experiment_events, write_mean_events, write_trial_events
from mmdistill.statistics import Interval

DOMAINS = {
    "optimiser.lr": {"low": 1e-4, "high": 1e-1, "log": True, "integer": False},
    "teachers": {"choice": [["joint"], ["joint", "pixels"]]},
    "mode": {"choice": ["a", "b"]},
    "anchors": {"choice": [4, 8.5]},
    "debiased": {"choice": [True, False]},
}
CURVES = [
    ("term/task", 0, 1.0),
    ("term/task", 1, 0.5),
    ("selection/joint", 1, 0.75),
    ("validation/odd", 1, math.nan),
]


def written(folder, lr=0.01, accuracy=0.9, row="hinton/search-000"):
    write_trial_events(
        folder,
        hparams={"optimiser.lr": lr, "teachers": ["joint"], "mode": "a", "debiased": True, "anchors": 4},
        metrics={"accuracy": accuracy},
        curves=iter(CURVES),
        row=row,
    )


def hparams_page(tmp_path):
    """Return what the HParams page shows: the columns, and the rows."""
    write_experiment_events(tmp_path, DOMAINS, ["accuracy", "log_loss"], [])
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(TBContext(data_provider=provider, multiplexer=multiplexer))
    request_context = RequestContext()
    experiment = context.experiment_from_metadata(
        request_context, "", True, context.hparams_metadata(request_context, ""), []
    )
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_SUCCESS], start_index=0, slice_size=10, include_metrics=True,
        col_params=[api_pb2.ColParams(metric=api_pb2.MetricName(tag="final/accuracy"))],
    )  # fmt: skip
    response = list_session_groups.Handler(request_context, context, "", request).run()
    return experiment, response.session_groups


@pytest.fixture
def groups(tmp_path):
    written(tmp_path / "hinton" / "search-000")
    return hparams_page(tmp_path)


def test_curves_come_back_by_epoch(tmp_path):
    written(tmp_path)
    accumulator = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert {"term/task", "selection/joint", "validation/odd", "final/accuracy"} <= set(_tags(accumulator))
    assert _values(accumulator, "term/task") == [(0, 1.0), (1, 0.5)]
    assert _values(accumulator, "final/accuracy") == [(1, pytest.approx(0.9))]
    assert math.isnan(_values(accumulator, "validation/odd")[0][1])


def _tags(accumulator):
    return [tag for kind in ("scalars", "tensors") for tag in accumulator.Tags()[kind]]


def _values(accumulator, tag):
    if tag in accumulator.Tags()["scalars"]:
        return [(point.step, point.value) for point in accumulator.Scalars(tag)]
    return [(point.step, point.tensor_proto.float_val[0]) for point in accumulator.Tensors(tag)]


def test_writing_a_trial_again_replaces_it(tmp_path):
    written(tmp_path)
    (tmp_path / "notes.txt").touch()
    written(tmp_path)
    assert len(list(tmp_path.glob("events.*"))) == 1
    assert (tmp_path / "notes.txt").exists()
    accumulator = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert len(_values(accumulator, "term/task")) == 2


def test_the_hparams_page_shows_the_trial(groups):
    _, (group,) = groups
    assert group.name == "hinton/search-000"
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}
    assert shown == {
        "optimiser.lr": 0.01, "teachers": '["joint"]', "mode": "a", "debiased": True, "anchors": 4.0,
    }  # fmt: skip
    assert {m.name.tag: m.value for m in group.metric_values} == {"final/accuracy": pytest.approx(0.9)}
    assert [session.status for session in group.sessions] == [api_pb2.STATUS_SUCCESS]


def test_the_hparams_page_shows_the_domains(groups):
    experiment, _ = groups
    infos = {info.name: info for info in experiment.hparam_infos}
    assert infos["optimiser.lr"].domain_interval.min_value == 1e-4
    options = {name: infos[name].domain_discrete.values for name in ("teachers", "anchors", "debiased")}
    assert {option.string_value for option in options["teachers"]} == {'["joint"]', '["joint", "pixels"]'}
    assert {option.number_value for option in options["anchors"]} == {4.0, 8.5}
    assert {option.bool_value for option in options["debiased"]} == {True, False}
    shown = [(info.name.tag, info.display_name) for info in experiment.metric_infos]
    assert shown == [("final/accuracy", "accuracy"), ("final/log_loss", "log_loss")]


def test_charts_are_patterns_of_whole_tags_or_a_curve_in_its_interval(tmp_path):
    charts = (Chart("both", ("validation/.*", "term/task")), Chart("score", interval="validation/accuracy"))
    write_experiment_events(tmp_path, DOMAINS, [], [Category("of both kinds", charts)])
    accumulator = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    (point,) = accumulator.Tensors(metadata.CONFIG_SUMMARY_TAG)
    (category,) = layout_pb2.Layout.FromString(point.tensor_proto.string_val[0]).category
    both, score = category.chart
    assert (category.title, both.title, score.title) == ("of both kinds", "both", "score")
    tags = ["validation/accuracy", "validation_low/accuracy", "term/task", "term/task2"]
    drawn = [tag for tag in tags if any(re.search(pattern, tag) for pattern in both.multiline.tag)]
    assert drawn == ["validation/accuracy", "term/task"]
    (series,) = score.margin.series
    expected = ("validation_low/accuracy", "validation/accuracy", "validation_high/accuracy")
    assert (series.lower, series.value, series.upper) == expected


def test_a_mean_has_its_interval_in_groups_of_their_own(tmp_path):
    curves = [
        ("term/task", 0, Interval(1.0, 0.5, 1.5, 3)),
        ("transport/cost", 0, Interval(2.0, math.nan, math.nan, 1)),
    ]
    write_mean_events(tmp_path, curves)
    accumulator = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    found = {tag: _values(accumulator, tag) for tag in _tags(accumulator)}
    assert found == {
        "term/task": [(0, 1.0)], "term_low/task": [(0, 0.5)], "term_high/task": [(0, 1.5)],
        "term_detail/transport/cost": [(0, 2.0)],
    }  # fmt: skip


def test_repetitions_are_one_row_with_the_mean_of_their_metrics(tmp_path):
    for seed, accuracy in enumerate([0.5, 0.75]):
        written(tmp_path / "hinton" / f"confirm-{seed:03d}", accuracy=accuracy, row="hinton/confirm")
    _, (group,) = hparams_page(tmp_path)
    assert group.name == "hinton/confirm"
    assert [session.name for session in group.sessions] == ["hinton/confirm-000", "hinton/confirm-001"]
    assert {m.name.tag: m.value for m in group.metric_values} == {"final/accuracy": 0.625}


def test_records_need_neither_torch_nor_ray_nor_tensorflow():
    code = (
        "import sys, mmdistill.records.events, mmdistill.records.tables, mmdistill.records.lease\n"
        "assert not {'torch', 'ray', 'optuna', 'tensorflow'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(events.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
