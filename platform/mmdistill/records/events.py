"""TensorBoard event files, written with the ``tensorboard`` package alone.

One folder per trial holds its curves, hyperparameters and final metrics; the root of the tree holds the
domains, so that the HParams page has columns before the first trial ends. Final metrics are scalars below
``final/``, apart from the curves ``term/``, ``validation/`` and ``selection/``; whatever else a term says of
itself is below ``term_detail/``. The ends of an interval are curves below ``<group>_low/`` and
``<group>_high/``.
"""

import contextlib
import itertools
import math
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from tensorboard.plugins.text import metadata as texts
from tensorboard.summary.writer.record_writer import RecordWriter

from mmdistill.records.charts import Category, Chart
from mmdistill.records.schema import as_text
from mmdistill.statistics import Interval

_EVENT_FILES = "events.out.tfevents."
_NUMBERS = itertools.count()
_FINAL = "final/"
_GROUPS = {"term", "validation", "selection"}
_STRUCTURE = "structure"


def write_trial_events(
    folder: Path,
    *,
    hparams: Mapping[str, Any],
    metrics: Mapping[str, float],
    curves: Iterable[tuple[str, int, float]],
    row: str,
    picture: bytes | None = None,
) -> None:
    """Write what TensorBoard shows of one trial; what the folder showed before is replaced.

    Args:
        folder: the trial's folder below the root of the tree.
        hparams: searched values by dotted path; what is no number, boolean or text is shown as JSON.
        metrics: final values by name; they are also scalars ``final/<name>`` at the last epoch of the curves.
        curves: name, epoch and value, e.g. ``("term/transport", 3, 0.7)``.
        row: the row of the HParams page; trials with the same one must have equal ``hparams`` and are
            shown as one row, with the mean of each metric.
        picture: a PNG, shown as ``structure`` at the last epoch.
    """
    shown = {
        name: value if isinstance(value, int | float) else as_text(value) for name, value in hparams.items()
    }
    epochs: dict[int, list[summary_pb2.Summary.Value]] = {}
    for name, epoch, value in curves:
        epochs.setdefault(epoch, []).append(_scalar(tag_of(name), value))
    final = [_scalar(_FINAL + name, value) for name, value in metrics.items()]
    if picture is not None:
        final.append(_image(picture))
    _write(
        folder,
        [
            _event(summary_v2.hparams_pb(shown, trial_id=row)),
            # One event for all curves of an epoch: TensorBoard checks every event with a checksum in Python.
            *(_event(summary_pb2.Summary(value=values), epoch) for epoch, values in epochs.items()),
            _event(summary_pb2.Summary(value=final), max(epochs, default=0)),
            _event(_session_end()),
        ],
    )


def write_mean_events(
    folder: Path, curves: Iterable[tuple[str, int, Interval]], picture: bytes | None = None
) -> None:
    """Write the mean of each curve and, where there is one, its interval.

    Args:
        folder: of the run, below the root of the tree.
        curves: name, epoch, and the mean with its interval.
        picture: a PNG, shown as ``structure`` at the last epoch.
    """
    epochs: dict[int, list[summary_pb2.Summary.Value]] = {}
    for name, epoch, mean in curves:
        tag = tag_of(name)
        points = {tag: mean.mean} | dict(zip(interval_tags(tag), (mean.low, mean.high), strict=True))
        shown = [_scalar(*point) for point in points.items() if point[0] == tag or math.isfinite(point[1])]
        epochs.setdefault(epoch, []).extend(shown)
    events = [_event(summary_pb2.Summary(value=values), epoch) for epoch, values in sorted(epochs.items())]
    if picture is not None:
        events.append(_event(summary_pb2.Summary(value=[_image(picture)]), max(epochs, default=0)))
    _write(folder, events)


def remove_events(folder: Path) -> None:
    """Remove the event files of a run, and its folder unless something else is in it."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{_EVENT_FILES}*"):
            path.unlink(missing_ok=True)
        folder.rmdir()


def has_events(folder: Path) -> bool:
    """Return whether a folder holds an event file."""
    return any(folder.glob(f"{_EVENT_FILES}*"))


def tag_of(name: str) -> str:
    """Return the tag of a curve: what belongs to no group is what a term says of itself."""
    return name if name.split("/")[0] in _GROUPS else f"term_detail/{name}"


def interval_tags(tag: str) -> tuple[str, str]:
    """Return the tags of the lower and of the upper end of a curve's interval."""
    group, _, rest = tag.partition("/")
    return f"{group}_low/{rest}", f"{group}_high/{rest}"


def write_experiment_events(
    folder: Path,
    domains: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
    categories: Sequence[Category],
) -> None:
    """Write the domains and metrics for the HParams page, and the charts of the page Custom Scalars.

    All of it goes to the root of the tree.

    Args:
        folder: the root of the tree.
        domains: by name of a column, ``{"low": ..., "high": ...}`` or ``{"choice": [...]}``; alternatives
            that are not all texts, all booleans or all numbers are shown as texts (JSON where they are none).
        metrics: names under which the trials write their final metrics.
        categories: what the page Custom Scalars shows.
    """
    hparams = [summary_v2.HParam(name, _domain(domain)) for name, domain in domains.items()]
    shown = [summary_v2.Metric(_FINAL + name, display_name=name) for name in metrics]
    summaries = [summary_v2.hparams_config_pb(hparams, shown), _layout(categories)]
    _write(folder, [_event(summary) for summary in summaries])


def _layout(categories: Sequence[Category]) -> summary_pb2.Summary:
    drawn = [
        layout_pb2.Category(title=category.title, chart=[_chart(chart) for chart in category.charts])
        for category in categories
    ]
    metadata = custom_scalars.create_summary_metadata()
    content = layout_pb2.Layout(category=drawn).SerializeToString()
    return _tensor(custom_scalars.CONFIG_SUMMARY_TAG, metadata, content)


def _chart(chart: Chart) -> layout_pb2.Chart:
    if chart.interval is None:
        lines = layout_pb2.MultilineChartContent(tag=[f"^{pattern}$" for pattern in chart.curves])
        return layout_pb2.Chart(title=chart.title, multiline=lines)
    low, high = interval_tags(chart.interval)
    series = layout_pb2.MarginChartContent.Series(value=chart.interval, lower=low, upper=high)
    return layout_pb2.Chart(title=chart.title, margin=layout_pb2.MarginChartContent(series=[series]))


def write_text_event(folder: Path, tag: str, markdown: str) -> None:
    """Write a text for the page Text."""
    metadata = texts.create_summary_metadata(display_name=tag, description="")
    _write(folder, [_event(_tensor(tag, metadata, markdown.encode()))])


def _tensor(tag: str, metadata: summary_pb2.SummaryMetadata, content: bytes) -> summary_pb2.Summary:
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[content])
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def _domain(domain: Mapping[str, Any]) -> summary_v2.Domain:
    if "choice" not in domain:
        return summary_v2.RealInterval(float(domain["low"]), float(domain["high"]))
    options = list(domain["choice"])
    kinds = {type(option) for option in options}
    if kinds in ({str}, {bool}):
        return summary_v2.Discrete(options)
    if kinds <= {int, float}:
        return summary_v2.Discrete([float(option) for option in options])
    return summary_v2.Discrete([as_text(option) for option in options])


def _write(folder: Path, events: Iterable[event_pb2.Event]) -> None:
    """Write a new event file to a folder; the former files go last, so that an error leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    former = list(folder.glob(f"{_EVENT_FILES}*"))
    name = f"{_EVENT_FILES}{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
    with (folder / name).open("wb") as file:
        writer = RecordWriter(file)
        for event in (event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"), *events):
            writer.write(event.SerializeToString())
    for path in former:
        path.unlink(missing_ok=True)


def _event(summary: summary_pb2.Summary, step: int = 0) -> event_pb2.Event:
    return event_pb2.Event(wall_time=time.time(), step=step, summary=summary)


def _scalar(name: str, value: float) -> summary_pb2.Summary.Value:
    return summary_pb2.Summary.Value(tag=name, simple_value=value)


def _image(png: bytes) -> summary_pb2.Summary.Value:
    width, height = struct.unpack(">II", png[16:24])
    image = summary_pb2.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return summary_pb2.Summary.Value(tag=_STRUCTURE, image=image)


def _session_end() -> summary_pb2.Summary:
    # The package's own function for this imports TensorFlow.
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    value = summary_pb2.Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(data),
        tensor=metadata.NULL_TENSOR,
    )
    return summary_pb2.Summary(value=[value])
