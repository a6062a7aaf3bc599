"""The figure of label curves: where arms stand, in which colours, and where their arrows lead."""

import dataclasses
import json
import re

import pytest

from mmdistill.reports.figures.base import FIGURES, Sources
from mmdistill.reports.figures.drawing import kinds
from mmdistill.reports.figures.style import paper_style


def drawn(sources):
    kinds()
    with paper_style():
        return FIGURES["labels"](sources)[""]


def label_study(new_study):
    """Made arms on a label axis: the student alone at four fractions, a taught one at the smallest."""
    fractions = {"student_only": 0.1, "alone_25": 0.25, "alone_50": 0.5, "alone_100": 1.0, "hinton": 0.1}
    arms = [{"name": name, "recipe": "hinton" if name == "hinton" else "student_only"} for name in fractions]
    return on_labels(new_study(arms, reference=None), fractions)


def on_labels(study, fractions):
    """Fill a study whose arms have these shares of the labels."""
    scores = (0.5, 0.6, 0.7, 0.8, 0.65, 0.66, 0.85)
    study.fill(dict(zip(fractions, scores, strict=False)), seeds=4, rows=400)
    study.trials = [
        dataclasses.replace(run, config_json=json.dumps(settings(run.arm, fractions[run.arm])))
        for run in study.trials
    ]
    return study


def settings(arm, fraction):
    terms = {"softened_logits": {"weight": 1.0}} if arm.startswith("hinton") else {}
    return {"data": {"label_fraction": fraction, "dataset": "made"}, "terms": terms}


def test_the_label_curve_has_an_arrow_to_what_an_arm_is_worth(new_study):
    figure = drawn(Sources(label_study(new_study).tables()))
    (axes,) = figure.axes
    arrows = [a for a in axes.texts if getattr(a, "arrow_patch", None)]
    (arrow,) = arrows
    assert arrow.get_position()[0] == pytest.approx(0.1, rel=0.05)
    assert 0.25 < arrow.xy[0] < 0.5
    said = next(text for text in (text.get_text() for text in axes.texts) if "share of the labels" in text)
    assert re.search(rf"^hinton: {100 * arrow.xy[0]:.0f} % \(\d+ to \d+\)$", said, re.MULTILINE)


def test_variants_of_a_recipe_at_one_share_of_labels_stand_apart_in_colours_of_their_own(new_study):
    fractions = {"student_only": 0.1, "alone_25": 0.25, "alone_50": 0.5}
    taught = {"hinton": 0.5, "hinton.permuted": 0.5, "hinton@audio": 0.5, "hinton@all": 1.0}
    made = {"recipe": "hinton", "base": "hinton", "change": "data.label_fraction = 1.0"}
    arms = [{"name": name, "recipe": "student_only"} for name in fractions]
    arms += [{"name": name, "recipe": "hinton"} for name in taught if name != "hinton@all"]
    study = on_labels(new_study([*arms, made | {"name": "hinton@all"}], reference=None), fractions | taught)
    (axes,) = drawn(Sources(study.tables())).axes
    assert list(axes.get_xticks()) == pytest.approx([0.1, 0.25, 0.5, 1.0])
    drawn_at = {
        bar.get_label(): (bar.lines[0].get_color(), list(bar.lines[0].get_xdata())) for bar in axes.containers
    }
    assert len({colour for colour, _ in drawn_at.values()}) == len(drawn_at) == 4
    # The arm with more labels goes with the one it was made from.
    assert drawn_at["hinton"][1] == pytest.approx([0.5, 1.0], rel=0.1)
    halves = [places[-1 if name == "student_only" else 0] for name, (_, places) in drawn_at.items()]
    assert len(set(halves)) == 4
    assert halves == pytest.approx([0.5] * 4, rel=0.15)
