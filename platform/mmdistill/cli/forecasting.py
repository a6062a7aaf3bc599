"""`mmdistill forecast`: whether there is anything to distil, before a study is trained."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmdistill.cli.printing import print_json, text_table
from mmdistill.cli.reading import readable
from mmdistill.errors import ConfigError, Problem
from mmdistill.pipeline.fold import opened
from mmdistill.pipeline.forecast import Forecast, forecast
from mmdistill.pipeline.prices import device_kind
from mmdistill.pipeline.run import RunSettings
from mmdistill.randomness import derive_seed
from mmdistill.studies.study import Study, open_study


def show_forecast(file: Path, edits: Sequence[str] = (), *, as_json: bool = False) -> int:
    """Print a forecast for every data context of a study; nothing is written.

    Raises:
        InputError: with every problem of the file, or because no arm has privileged modalities.
    """
    study = open_study(readable(file), edits)
    contexts = _contexts(study)
    if not contexts:
        rule = "no arm has privileged modalities, so there is nothing to forecast"
        raise ConfigError([Problem(f"{file}: run.data.privileged", rule, "name some")])
    device = device_kind(study.file.resources.device)
    seed = derive_seed(study.file.seed, "forecast")
    found = [
        forecast(run, opened(run.data, 0, with_test=False, device=device), seed) for run in contexts.values()
    ]
    if as_json:
        print_json({"dataset": study.dataset, "score": study.score, "forecasts": found})
    else:
        print(_text(study, found))
    return 0


def _contexts(study: Study) -> dict[str, RunSettings]:
    """Return a run for every data context, one with teachers where there is one: their settings are used."""
    runs = [arm.run for arm in study.arms if arm.run.data.privileged]
    taught = [run for run in runs if run.teachers.pool]
    return {run.data.digest: run for run in [*reversed(runs), *reversed(taught)]}


def _text(study: Study, found: Sequence[Forecast]) -> str:
    header = ["student", "privileged", "labels", "rows labelled", "beyond label R2", "± se", "label supply"]
    header += [f"student {study.score}", "privileged", "both"]
    lines = [
        [
            "+".join(one.student),
            "+".join(one.privileged),
            f"{one.label_fraction:.0%}",
            one.labelled,
            round(one.beyond_label, 3),
            round(_error(one), 3),
            round(one.label_supply, 3),
            *(round(score, 3) for score in (one.student_score, one.privileged_score, one.joint_score)),
        ]
        for one in found
    ]
    sentences = [
        "beyond label R2: how much of what the privileged modalities know beyond the label the student's can "
        "predict, cross-validated; scores are on labelled rows a network was not trained on.",
        "label supply: the share of the training rows without a label, times what the teacher on all "
        "modalities scores above a plain student.",
        "Neither is a promise: the README says how well each put real contexts in the order of their gains.",
        *(line for one in found for line in _sentences(one)),
    ]
    wrapped = [textwrap.fill(line, 110, initial_indent="- ", subsequent_indent="  ") for line in sentences]
    return "\n\n".join(
        [f"{study.file.name} on {study.dataset}", text_table(header, lines), "\n".join(wrapped)]
    )


def _error(one: Forecast) -> float:
    return one.spread / math.sqrt(one.folds)


def _sentences(one: Forecast) -> Iterator[str]:
    where = (
        f"{'+'.join(one.student)} from {'+'.join(one.privileged)} at {one.label_fraction:.0%} of the labels"
    )
    if one.beyond_label <= 0:
        yield (
            f"{where}: beyond the label there is nothing the student's modalities can predict: only label "
            "supply can transfer."
        )
    elif one.beyond_label < 2 * _error(one):
        yield f"{where}: what can be predicted beyond the label is not clearly above nothing."
    else:
        yield f"{where}: {one.beyond_label:.1%} of what is known beyond the label can be predicted."
    if one.unlabelled > 0:
        yield (
            f"{where}: {one.unlabelled:.0%} of the training rows have no label, and on such rows a teacher "
            f"is {one.joint_score - one.student_score:+.3f} better than a plain student."
        )
