"""The page: the numbers of the table, whole in one file, unchanged by what anything is called."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import vl_convert

from mmdistill.records.rows import EpochRow, arrow_table
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import latest
from mmdistill.reports.answers import answers_of
from mmdistill.reports.columns import COLUMNS, usual
from mmdistill.reports.dashboards import dashboard
from mmdistill.reports.importance import searches_of
from mmdistill.reports.page.document import page
from mmdistill.reports.query import query
from mmdistill.reports.render import budget_lines, change_lines

GOLDEN = Path(__file__).parents[1] / "golden" / "store"
SPECS = sorted(dashboard("report", "charts").glob("*.vl.json"))
VENDOR = dashboard("report", "vendor")
HOSTILE = (
    "</script><script>alert(1)</script>{name}\"' onload=x <b>&amp;{{{{ 7*7 }}}} ${{a}} \u202etxet\u202c "
    + 60 * "long "
)


class Outline(HTMLParser):
    """Elements, attributes, texts, the cells of each table by its label, and what scripts and styles hold."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.tables, self.loose = {}, {"script": [], "style": []}
        self._table, self._in_cell, self._within = None, False, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(name for name, _ in attributes)))
        self.attributes += [(tag, name, value) for name, value in attributes]
        if ("role", "region") in attributes:
            self._table = self.tables.setdefault(dict(attributes)["aria-label"], [])
        if tag == "tr":
            self._table.append([])
        if tag in ("th", "td"):
            self._table[-1].append("")
            self._in_cell = True
        if tag in self.loose:
            self._within = tag

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self._in_cell = False
        if tag == self._within:
            self._within = None

    def handle_data(self, data):
        if self._within:
            self.loose[self._within].append(data)
        elif self._in_cell:
            self._table[-1][-1] += data
        self.texts.append(data)


def plainly(cell):
    return cell.replace("\N{MINUS SIGN}", "-").replace("\N{NON-BREAKING HYPHEN}", "-")


def page_of(told):
    return page(answers_of(told.tables), lambda: [told.search])


def charts_in(text):
    return json.loads(re.search(r'id="charts">(.*?)</script>', text, re.DOTALL)[1])


def domain_of_learning_curves(text):
    spec = charts_in(text)["charts"]["learning curves"]["spec"]
    return spec["layer"][0]["encoding"]["y"]["scale"]["domain"]


@pytest.fixture(scope="module")
def told(telling):
    return telling()


@pytest.fixture(scope="module")
def text(told):
    return page_of(told)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("golden") / "store"))


@pytest.fixture(scope="module")
def golden(root):
    folder = StudyFolder.open(root)
    return page(answers_of(latest(folder)), lambda: searches_of(folder))


def test_the_tables_are_those_of_the_printed_table(told, text):
    ablation = answers_of(told.tables).ablation
    header, *rows = [[plainly(cell) for cell in row] for row in Outline(text).tables["accuracy of every arm"]]
    names = usual(ablation)
    assert header == ["arm", *(COLUMNS[name].title(ablation) for name in names)]
    assert rows == [
        [arm.name, *(COLUMNS[name].cell(arm, ablation).text for name in names)] for arm in ablation.arms
    ]
    for label, lines in (("Changes", change_lines), ("What every arm was given", budget_lines)):
        header, body = lines(ablation)
        assert [[plainly(cell) for cell in row] for row in Outline(text).tables[label]] == [header, *body]


def test_the_verdict_has_every_sentence_and_names_the_harmful_modality(told, text):
    ablation = answers_of(told.tables).ablation
    shown = plainly(" ".join(Outline(text).texts))
    for claim, line in zip(ablation.contrasts, ablation.sentences, strict=True):
        assert claim.question in shown
        assert line.removeprefix(f"{claim.question} ") in shown
    verdict = text[text.index('id="verdict"') : text.index('id="differences"')]
    assert re.findall(r'<span class="chip (\w+)">([\w ]+)</span><div><strong><bdi>([^<]+)', verdict) == [
        ("helps", "helps", "Does both help?"),
        ("harms", "harms", "Does decoy harm?"),
        ("helps", "helps", "Modality sound helps alone and in company"),
        ("harms", "harms", "Modality noise harms alone and is undecided in company"),
    ]


def test_the_forest_plot_draws_the_intervals_of_the_table(told, text):
    ablation, data = answers_of(told.tables).ablation, charts_in(text)
    planned, arms = data["charts"]["differences"]["panels"]
    shown = {arm.name: arm.against_baseline for arm in ablation.arms if arm.against_baseline}
    assert {row["row"] for row in arms} == set(shown)
    for row in arms:
        claim = shown[row["row"]]
        assert row["verdict"] == claim.verdict
        found = [row[key] for key in ("mean", "low", "high", "crossed_low", "crossed_high")]
        assert found == pytest.approx(
            [*claim.seeds[:3], *claim.crossed[:2][1:], claim.crossed.high], rel=1e-4
        )
    assert [row["row"] for row in planned] == [
        "both \N{MINUS SIGN} student_only",
        "decoy \N{MINUS SIGN} student_only",
    ]


def test_every_question_that_is_answered_has_its_section(text):
    assert re.findall(r'<section id="(\w+)"', text) == [
        "verdict", "differences", "table", "changes", "contributions", "harm", "labels", "optimism", "budget",
        "importance", "learning", "selection", "calibration", "conduct",
    ]  # fmt: skip


def test_how_it_was_run_is_told_with_versions_hardware_and_environment(told):
    tables = told.tables
    for name, text in (
        ("versions_json", '{"numpy": "2.2", "absent": null}'),
        ("hardware_json", '{"cpu": "a core", "cores": 2, "gpus": []}'),
        ("environment_json", "{}"),
    ):
        studies = tables["studies"]
        place = studies.column_names.index(name)
        tables = tables | {"studies": studies.set_column(place, studies.field(place), pa.array([text]))}
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd><bdi>([^<]+)</bdi></dd>", page(answers_of(tables))))
    assert facts["versions"] == "numpy 2.2"
    assert facts["hardware"] == "cpu a core, cores 2"
    assert facts["command"] == "mmdistill run quick.toml"
    assert not {"environment", "arms", "contrasts", "git commit"} & set(facts)


def test_before_the_test_there_is_no_verdict_and_nothing_of_test_rows(made):
    made.trials = [run for run in made.trials if run.phase == "search"]
    made.predictions, made.openings = [], []
    text = page(answers_of(made.tables()))
    assert re.findall(r'<section id="(\w+)"', text) == ["verdict", "table", "budget", "conduct"]
    assert text.count(">not tested yet</span>") == 2
    assert "best search trial on validation rows, nothing repeated yet" in text


def test_a_study_without_contrasts_says_so(new_study):
    made = new_study(["student_only", "hinton"])
    made.fill({"student_only": 0.5, "hinton": 0.6}, seeds=2)
    assert "The study planned no contrast" in page(answers_of(made.tables()))


def test_a_regression_has_learning_curves_of_its_ccc_and_no_calibration(new_study, new_trial):
    made = new_study(["student_only", "hinton"], task="regression", score="ccc")
    made.trials = [
        new_trial(arm, phase, seed_index=seed, metrics={"ccc": 0.5})
        for arm in ("student_only", "hinton")
        for phase in ("confirm", "test")
        for seed in range(3)
    ]
    rows = [
        EpochRow(
            trial_id=run.trial_id, arm=run.arm, phase="confirm", epoch=e, name="validation/ccc", value=value
        )
        for run in made.trials
        if run.phase == "confirm"
        for e, value in enumerate((-0.3, *np.linspace(0.2, 0.8, 49)))
    ]
    tables = made.tables() | {"epochs": arrow_table(EpochRow, rows)}
    text = page(answers_of(tables))
    assert {"learning", "calibration"} & set(re.findall(r'<section id="(\w+)"', text)) == {"learning"}
    low, high = domain_of_learning_curves(text)
    # The best epochs are at the top, the first one is below what is drawn.
    assert -0.3 < low < 0.3
    assert high == pytest.approx(0.8)


def test_learning_curves_of_a_loss_are_cut_at_the_top(told, text):
    means = [row["mean"] for panel in charts_in(text)["charts"]["learning curves"]["panels"] for row in panel]
    low, high = domain_of_learning_curves(text)
    assert low == pytest.approx(min(means))
    assert high < max(means)


def test_hostile_names_leave_the_page_as_it_is(telling, told):
    names = {}

    def rename(name):
        return names.setdefault(name, HOSTILE.format(name=name))

    plain, hostile = (
        Outline(page_of(telling(lambda name: f"{name} {'x' * 40}"))),
        Outline(page_of(telling(rename))),
    )
    assert hostile.tags == plain.tags
    assert hostile.loose["script"][1:] == plain.loose["script"][1:]
    assert hostile.loose["style"] == plain.loose["style"]
    assert names["both"] in [row[0] for row in hostile.tables[next(iter(hostile.tables))]]
    drawn = charts_in(page_of(telling(rename)))["charts"]["differences"]["panels"][1]
    assert names["decoy"] in {row["row"] for row in drawn}


def test_the_policy_allows_what_is_in_the_page_and_nothing_else(text):
    found = Outline(text)
    (policy,) = (
        value
        for tag, name, value in found.attributes
        if tag == "meta" and name == "content" and "default" in value
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    hashes = [
        base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in found.loose["script"][1:]
    ]
    assert re.search(r"script-src ([^;]+);", policy)[1].split() == [f"'sha256-{one}'" for one in hashes]
    (style,) = found.loose["style"]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy


def test_nothing_is_fetched_and_nothing_is_styled_or_scripted_in_place(text):
    for tag, name, value in Outline(text).attributes:
        assert name not in ("src", "srcset", "style", "action", "poster", "data"), tag
        assert not name.startswith("on"), tag
        assert name != "href" or value.startswith("#")
    assert "sourceMappingURL" not in text
    assert "@import" not in text
    assert "url(" not in Outline(text).loose["style"][0]


def test_every_link_leads_to_a_section_and_every_chart_says_what_it_shows(text):
    found = Outline(text)
    ids = {value for _, name, value in found.attributes if name == "id"}
    assert {value[1:] for _, name, value in found.attributes if name == "href"} <= ids
    labels = [
        dict(pair)
        for pair in re.findall(r'<div class="chart"([^>]*)>', text)
        for pair in [re.findall(r'([\w-]+)="([^"]*)"', pair)]
    ]
    assert labels
    assert all(one["role"] == "img" and one["aria-label"] for one in labels)


def test_the_vendored_scripts_are_those_of_their_packages():
    listed = json.loads((VENDOR / "versions.json").read_text("utf-8"))
    files = {path.name for path in VENDOR.iterdir()} - {"versions.json", "README.md"}
    assert files == {name for package in listed for name in (package["file"], package["licence_file"])}
    for package in listed:
        for name, digest in (
            (package["file"], package["sha256"]),
            (package["licence_file"], package["licence_sha256"]),
        ):
            assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
        assert package["licence"] == "BSD-3-Clause"
        assert package["source"].startswith(f"https://registry.npmjs.org/{package['package']}/")
        assert package["source"].endswith(f"-{package['version']}.tgz")
        assert "</script" not in (VENDOR / package["file"]).read_text("utf-8")


def test_the_charts_of_both_pages_use_every_spec(text, golden):
    sources = {json.loads(path.read_text("utf-8"))["description"] for path in SPECS}
    drawn = [
        chart["spec"]["description"] for one in (text, golden) for chart in charts_in(one)["charts"].values()
    ]
    assert set(drawn) == sources


@pytest.mark.parametrize("which", ["text", "golden"])
def test_every_chart_compiles(which, request):
    data = charts_in(request.getfixturevalue(which))
    assert len(data["charts"]) >= 7
    for name, chart in data["charts"].items():
        assert "$" not in re.sub(r'"\$schema"', "", json.dumps(chart["spec"])), name
        spec = chart["spec"] | {"config": data["theme"], "width": 300, "data": {"values": chart["panels"][0]}}
        compiled = vl_convert.vegalite_to_vega(spec, vl_version="6.4")
        assert compiled["marks"], name


def test_the_queries_named_in_the_page_give_its_numbers(root, golden):
    charts, arm = charts_in(golden)["charts"], "mt_pkdot"
    found = {
        name: [row for row in query(root, f"@{name}").to_pylist() if row["arm"] == arm]
        for name in ("learning_curves", "selection_shares", "calibration")
    }
    assert all(f"mmdistill query STUDY @{name}<" in golden for name in found)
    titles = re.findall(r'data-chart="learning curves" data-panel="\d+"[^>]*: ([^"]+)"', golden)
    drawn = charts["learning curves"]["panels"][titles.index(arm)]
    means = {row["epoch"]: row["value"] for row in found["learning_curves"]}
    assert {row["x"]: row["mean"] for row in drawn if row["of"] == "arm"} == pytest.approx(means, rel=1e-4)
    drawn = charts["selection_shares"]["panels"][0]
    shares = {(row["epoch"], row["teacher"]): row["share"] for row in found["selection_shares"]}
    assert {(row["epoch"], row["teacher"]): row["share"] for row in drawn} == pytest.approx(shares, rel=1e-4)
    drawn = charts["calibration"]["panels"][titles.index(arm)]
    bins = [(row["confidence"], row["accuracy"]) for row in found["calibration"]]
    shown = [(row["confidence"], row["accuracy"]) for row in drawn if row["of"] == "arm"]
    assert np.array(shown) == pytest.approx(np.array(bins), rel=1e-4)


def test_twenty_thousand_trials_make_a_small_page(new_study):
    arms = [f"arm_{number:02d}" for number in range(40)]
    made = new_study(["student_only", *arms], contrasts=[("Better?", arms[0], "student_only")])
    rng = np.random.default_rng(0)
    for arm in ["student_only", *arms]:
        made.add_search(arm, rng.uniform(0.5, 0.9, 480).tolist())
    made.fill(dict.fromkeys(["student_only", *arms], 0.6), seeds=4, rows=20)
    runs = [run for run in made.trials if run.phase == "confirm"]
    epochs = arrow_table(EpochRow, [])
    size = 300
    columns = {
        "trial_id": [run.trial_id for run in runs for _ in range(size)],
        "arm": [run.arm for run in runs for _ in range(size)],
        "phase": ["confirm"] * (size * len(runs)),
        "epoch": list(range(size)) * len(runs),
        "name": ["validation/log_loss"] * (size * len(runs)),
        "value": rng.uniform(0.5, 0.6, size * len(runs)).tolist(),
    }
    tables = made.tables() | {"epochs": epochs.from_pydict(columns, schema=epochs.schema)}
    assert tables["trials"].num_rows > 20_000
    assert len(page(answers_of(tables)).encode()) < 2_500_000
