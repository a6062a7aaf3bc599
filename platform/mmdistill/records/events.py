"""TensorBoard event files, written with the ``tensorboard`` package alone.

One folder per trial holds its curves, hyperparameters and final metrics; the root of the tree holds the
domains, so that the HParams page has columns before the first trial ends. Final metrics are scalars below
``final/``, apart from the curves ``term/``, ``validation/``, ``selection/`` and ``transport/``.
"""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mmdistill.records.schema import as_text

_EVENT_FILES = "events.out.tfevents.*"
_FINAL = "final/"


def write_trial_events(
    folder: Path,
    *,
    hparams: Mapping[str, Any],
    metrics: Mapping[str, float],
    curves: Iterable[tuple[str, int, float]],
    row: str,
) -> None:
    """Write what TensorBoard shows of one trial; what the folder showed before is replaced.

    Args:
        folder: the trial's folder below the root of the tree.
        hparams: searched values by dotted path; what is no number, boolean or text is shown as JSON.
        metrics: final values by name; they are also scalars ``final/<name>`` at the last epoch of the curves.
        curves: name, epoch and value, e.g. ``("term/transport", 3, 0.7)``.
        row: the row of the HParams page; trials with the same one must have equal ``hparams`` and are
            shown as one row, with the mean of each metric.
    """
    shown = {
        name: value if isinstance(value, int | float) else as_text(value) for name, value in hparams.items()
    }
    with _fresh_writer(folder) as writer:
        _add(writer, summary_v2.hparams_pb(shown, trial_id=row))
        last = 0
        for name, epoch, value in curves:
            _add(writer, _scalar(name, value), epoch)
            last = max(last, epoch)
        for name, value in metrics.items():
            _add(writer, _scalar(_FINAL + name, value), last)
        _add(writer, _session_end())


def write_experiment_events(
    folder: Path,
    domains: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
    charts: Mapping[str, Sequence[str]],
) -> None:
    """Write the domains and metrics for the HParams page and the charts of several curves.

    All of it goes to the root of the tree.

    Args:
        folder: the root of the tree.
        domains: by name of a column, ``{"low": ..., "high": ...}`` or ``{"choice": [...]}``; alternatives
            that are not all texts, all booleans or all numbers are shown as texts (JSON where they are none).
        metrics: names under which the trials write their final metrics.
        charts: by title the names of curves that the page Custom Scalars shows together.
    """
    hparams = [summary_v2.HParam(name, _domain(domain)) for name, domain in domains.items()]
    shown = [summary_v2.Metric(_FINAL + name, display_name=name) for name in metrics]
    with _fresh_writer(folder) as writer:
        _add(writer, summary_v2.hparams_config_pb(hparams, shown))
        if charts:
            _add(writer, _layout(charts))


def _layout(charts: Mapping[str, Sequence[str]]) -> summary_pb2.Summary:
    drawn = [
        layout_pb2.Chart(
            title=title,
            multiline=layout_pb2.MultilineChartContent(tag=[f"^{re.escape(name)}$" for name in names]),
        )
        for title, names in charts.items()
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="Together", chart=drawn)])
    value = summary_pb2.Summary.Value(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        metadata=custom_scalars.create_summary_metadata(),
        tensor=tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[layout.SerializeToString()]),
    )
    return summary_pb2.Summary(value=[value])


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


@contextlib.contextmanager
def _fresh_writer(folder: Path) -> Iterator[EventFileWriter]:
    """Yield a writer to an empty folder; the former files go last, so that an error leaves them."""
    former = list(folder.glob(_EVENT_FILES))
    writer = EventFileWriter(str(folder))
    try:
        yield writer
    finally:
        writer.close()
    for path in former:
        path.unlink(missing_ok=True)


def _add(writer: EventFileWriter, part: summary_pb2.Summary, step: int = 0) -> None:
    writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=part))


def _scalar(name: str, value: float) -> summary_pb2.Summary:
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, simple_value=value)])


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
