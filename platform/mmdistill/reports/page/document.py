"""The report: one HTML file that holds all it needs and asks no network for anything."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import mmdistill
from mmdistill.reports.ablation import Ablation
from mmdistill.reports.answers import Answers
from mmdistill.reports.dashboards import dashboard
from mmdistill.reports.importance import Search
from mmdistill.reports.page import sections, teachers, traces, worth
from mmdistill.reports.page.charts import Chart, theme
from mmdistill.reports.page.sections import Section
from mmdistill.reports.standing import standing

_VENDORED = ("vega.min.js", "vega-lite.min.js", "vega-interpreter.js")
_BASIS = {
    "test": "test rows",
    "validation": "validation rows, test not opened yet",
    "search": "best search trial on validation rows, nothing repeated yet",
}


def page(answers: Answers, searches: Callable[[], Sequence[Search]] = list) -> str:
    """Return the report of a study as HTML.

    Args:
        answers: of the study.
        searches: gives its searches; asked only where their size allows an answer.
    """
    tables, readings, ablation, curves = answers
    found = [
        sections.differences(ablation),
        sections.results(ablation, standing(readings)),
        sections.changes(ablation),
        teachers.contributions(ablation),
        teachers.harm(ablation),
        worth.labels(curves, ablation),
        worth.gaps(curves),
        worth.optimism(curves, ablation),
        worth.budgets(curves, ablation),
        traces.hyperparameters(ablation, searches),
        traces.learning_curves(readings, tables["epochs"]),
        traces.selection_shares(readings, tables["epochs"]),
        traces.calibration(readings),
        sections.conduct(ablation, readings.study),
    ]
    return _html(ablation, [section for section in found if section])


def _html(ablation: Ablation, found: Sequence[Section]) -> str:
    environment = Environment(
        loader=FileSystemLoader(dashboard("report")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"typeset": _typeset, "unbroken": _unbroken, "marked": _marked}
    style, scripts = _source("style.css"), [*map(_vendored, _VENDORED), _source("page.js")]
    return environment.get_template("template.html.j2").render(
        title=f"{ablation.study}: {ablation.score_name} on {ablation.dataset}",
        study=ablation.study,
        subtitle=f"{ablation.score_name} on {ablation.dataset}, {_BASIS[ablation.basis]}",
        version=mmdistill.__version__,
        verdicts=[*sections.verdicts(ablation), *teachers.named(ablation)],
        warnings=[*ablation.stamps, *ablation.warnings],
        sections=found,
        charts=_data([part for section in found for part in section.parts if isinstance(part, Chart)]),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(style, scripts),
    )


def _data(charts: Sequence[Chart]) -> Markup:
    """Return the charts as JSON that no name can end: what HTML reads as markup is escaped."""
    data = {
        "theme": theme(),
        "charts": {chart.name: {"spec": chart.spec, "panels": chart.panels} for chart in charts},
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text))


def _policy(style: str, scripts: Sequence[str]) -> str:
    """Return the content security policy: what is in the page may run, nothing may be fetched."""
    allowed = " ".join(map(_hash, scripts))
    rules = ["default-src 'none'", f"script-src {allowed}", f"style-src {_hash(style)}"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _source(name: str) -> str:
    return dashboard("report", name).read_text("utf-8")


def _vendored(name: str) -> str:
    text = re.sub(
        r"(?m)^//# sourceMappingURL=.*$", "", dashboard("report", "vendor", name).read_text("utf-8")
    )
    return _as_script(text) if name == "vega-interpreter.js" else text


def _as_script(module: str) -> str:
    """Return the interpreter, which comes as a module alone, as a script: its imports are parts of Vega."""
    body = re.sub(r"(?m)^import (\{.*\}) from 'vega-util';$", r"const \1 = vega;", module)
    body = body.replace(
        "export { expression as expressionInterpreter };", "vega.expressionInterpreter = expression;"
    )
    return f"{{\n{body}\n}}"


def _typeset(text: Any) -> str:
    """Return a text with minus signs for the hyphens before its numbers."""
    return re.sub(r"(?<![\w.)\]])-(?=\d)", "\N{MINUS SIGN}", str(text))


def _unbroken(text: str) -> str:
    """Return a text whose words stay whole at their hyphens."""
    return text.replace("-", "\N{NON-BREAKING HYPHEN}")


def _marked(text: str, tag: str | None) -> str | Markup:
    """Return a cell whose leading number is in an element ``b`` or ``u``."""
    lead, space, rest = text.partition(" ")
    return Markup("<{0}>{1}</{0}>{2}{3}").format(Markup(tag), lead, space, rest) if tag else text
