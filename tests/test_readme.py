"""The README keeps its word: its blocks run, its commands parse, its files are there."""

import ast
import contextlib
import csv
import io
import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdistill.cli.listing import show_recipes
from mmdistill.cli.main import app, main
from mmdistill.cli.running import run_study
from mmdistill.cluster.inline import run_inline
from mmdistill.pipeline.cache import StageCache
from mmdistill.pipeline.execute import execute
from mmdistill.pipeline.order import Lane, Order
from mmdistill.studies.study import open_study
from mmdistill.terms import TERMS
from mmdistill.training.runtime import LocalRuntime

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXAMPLE = "results/quickstart"
SMALL = [
    "run.epochs=2",
    "run.batch_size=32",
    "run.teachers={epochs = 2, out_of_fold = 2}",
    "run.alignment.epochs=2",
    "search={trials = 2, startup = 2, top = 1, seeds = 1}",
    "confirm.pairs=2",
]
READS_A_STUDY = {"status", "table", "query", "importance", "compare", "report", "verify", "rebuild"}
READS_NOTHING = {"schema", "datasets", "recipes", "losses", "doctor"}


def block(language):
    """Return the first block in a language."""
    return next(text for name, text in BLOCKS if name == language)


def command_lines(program):
    """Return the arguments of every call of a program, in blocks and in running text."""
    lines = [line for name, text in BLOCKS if not name for line in text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", README)
    calls = [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]
    return [call[1:] for call in calls]


COMMANDS = [arguments for arguments in command_lines("mmdistill") if arguments]


def commands(names):
    """Return the calls of some commands; `X` stands for a file of the reader's."""
    chosen = [found for found in COMMANDS if found[0] in names and "X.toml" not in found]
    return [pytest.param(found, id=shlex.join(found)[:60]) for found in chosen]


def write_data(folder, unlabelled=(-1,)):
    """Write 120 rows that fit the card of the README; the first ones have no label, said in these ways."""
    card = json.loads(block("json"))
    generator = np.random.default_rng(0)
    label_N = np.arange(120) % card["classes"]
    columns = {}
    for name, modality in card["modalities"].items():
        width = int(np.prod(modality["shape"]))
        x_ND = generator.standard_normal((120, width)) + label_N[:, None]
        columns[f"x_{name}"] = pa.FixedSizeListArray.from_arrays(pa.array(x_ND.ravel(), pa.float32()), width)
    columns["label"] = pa.array([*unlabelled, *label_N.tolist()[len(unlabelled) :]])
    columns["split"] = pa.array(["train"] * 72 + ["val"] * 24 + ["test"] * 24)
    columns["group"] = pa.array([f"subject {row // 2}" for row in range(120)])
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / card["file"])
    (folder / "card.json").write_text(block("json"), "utf-8")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Return a folder with the study file and the data of the README, as its reader would have it."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "pain.toml").write_text(block("toml"), "utf-8")
    write_data(folder / tomllib.loads(block("toml"))["run"]["data"]["dataset"])
    return folder


@pytest.fixture(scope="module")
def finished(workplace):
    """Run the study of the README, made small, and return its folder."""

    def inline(session, cache, listen):
        run_inline(session, StageCache(cache), listen)

    with contextlib.chdir(workplace), contextlib.redirect_stdout(io.StringIO()):
        assert run_study(Path("pain.toml"), SMALL, executor=inline) == 0
    return workplace / "results" / "pain"


def test_the_study_of_the_readme_is_valid_and_has_the_defaults_it_tells(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    study = open_study(Path("pain.toml"))
    trials, pairs, epochs = map(
        int, re.search(r"(\d+) trials per arm, (\d+) .*, (\d+) epochs", README).groups()
    )
    assert (study.file.search.trials, study.file.confirm.pairs) == (trials, pairs)
    assert {arm.run.epochs for arm in study.arms} == {epochs}
    assert f"{study.file.margin:g} as the `margin`" in README


def test_the_prices_of_the_readme_fit_its_study(workplace, monkeypatch):
    stated = "\n".join(re.findall(r"`(price(?:s|_unit) = [^`]+)`", README))
    (workplace / "priced.toml").write_text(f"{stated}\n{block('toml')}", "utf-8")
    monkeypatch.chdir(workplace)
    file = open_study(Path("priced.toml")).file
    assert file.prices == {"eda": 3, "ecg": 10}
    assert file.price_unit == "EUR per subject"


def test_the_regression_of_the_readme_is_a_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(tomllib.loads(block("toml"))["run"]["data"]["dataset"])
    write_data(folder)
    (stated,) = re.findall(r'`("task": "regression", "targets": [^`]+)`', README)
    card = json.loads(block("json")) | json.loads(f"{{{stated}}}")
    del card["classes"]
    (folder / "card.json").write_text(json.dumps(card), "utf-8")
    table = pq.read_table(folder / card["file"])
    for name in card["targets"]:
        table = table.append_column(name, pa.array(np.linspace(-1, 1, len(table))))
    pq.write_table(table.drop_columns("label"), folder / card["file"])
    Path("pain.toml").write_text(block("toml"), "utf-8")
    assert open_study(Path("pain.toml")).task == "regression"


def test_the_designs_of_the_readme_fit_its_study(workplace, monkeypatch):
    designs = [text for name, text in BLOCKS if name == "toml"][1]
    (workplace / "designed.toml").write_text(f"{block('toml')}\n{designs}", "utf-8")
    monkeypatch.chdir(workplace)
    names = {arm.name for arm in open_study(Path("designed.toml")).arms}
    assert {"mt_pkdot-transport", "mt_pkdot-transport.frozen", "hinton@label_fraction=0.1"} <= names


@pytest.mark.parametrize("arguments", commands({"plan", "forecast"}))
def test_what_is_asked_before_a_run_is_answered(arguments, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    assert main([*arguments, *SMALL]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("arguments", commands({"export"}))
def test_the_export_of_the_readme_is_written(arguments, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([filled(argument, finished) for argument in arguments]) == 0
    assert (tmp_path / arguments[-1]).exists()


def test_a_row_without_a_label_is_given_as_it_tells(tmp_path, monkeypatch):
    (way,) = re.findall(r"Training rows without a label have the label (-?\d+)", README)
    (tmp_path / "pain.toml").write_text(block("toml"), "utf-8")
    write_data(tmp_path / "data" / "pain_faces", [int(way)])
    monkeypatch.chdir(tmp_path)
    assert open_study(Path("pain.toml")).task == "classification"


def test_the_study_of_the_readme_ends_with_a_table_of_its_arms(finished, capsys):
    assert main(["table", str(finished), "--format", "csv"]) == 0
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    arms = [arm["name"] for arm in tomllib.loads(block("toml"))["arms"]]
    assert len(arms) == 4
    assert sorted(row["arm"] for row in rows) == sorted(arms)


def test_the_tables_are_asked_from_python_with_our_code_and_without(finished):
    code = block("python").replace(EXAMPLE, str(finished)).replace('"results"', f'"{finished.parent}"')
    *imports, ours, plain = ast.parse(code).body
    names = {}
    exec(compile(ast.Module(imports, []), "README.md", "exec"), names)
    ours, plain = (
        eval(compile(ast.Expression(line.value), "README.md", "eval"), names) for line in (ours, plain)
    )
    arms = ("hinton", "mt_pkdot", "self_distillation", "student_only")
    assert sorted(plain.fetchall()) == [(arm, 2) for arm in arms]
    assert sorted(ours["arm"]) == sorted(arms)
    assert set(ours["study"]) == {"pain"}


def test_every_command_is_shown():
    shown = {arguments[0] for arguments in COMMANDS}
    assert shown == {name for name in app if not name.startswith("-")}


@pytest.mark.parametrize("arguments", [pytest.param(c, id=shlex.join(c)[:60]) for c in COMMANDS])
def test_the_command_parses(arguments):
    command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
    assert command.__name__ == arguments[0]
    assert bound.arguments or len(arguments) == 1


def filled(argument, finished):
    """Return an argument as the shell would give it, of the small study."""
    inserted = re.fullmatch(r"\$\(cat (.+)\)", argument)
    if inserted:
        return (ROOT / inserted[1]).read_text("utf-8")
    return str(finished.parent) if argument == "results" else argument.replace(EXAMPLE, str(finished))


@pytest.mark.parametrize("arguments", commands(READS_A_STUDY | READS_NOTHING))
def test_the_command_answers(arguments, finished, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main([filled(argument, finished) for argument in arguments]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("arguments", commands({"run"}))
def test_the_study_of_the_command_is_valid(arguments, workplace, monkeypatch):
    file, edits = Path(arguments[1]), arguments[2:]
    monkeypatch.chdir(ROOT if (ROOT / file).exists() else workplace)
    named = dict(edit.split("=", 1) for edit in edits)
    dataset = named.get("run.data.dataset", tomllib.loads(file.read_text("utf-8"))["run"]["data"]["dataset"])
    if "/shared/" in dataset and not Path(dataset).exists():
        pytest.skip(f"{dataset} is not on this machine")
    study = open_study(file, edits)
    assert len(study.arms) >= 4


def test_every_target_of_make_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = [arguments[0] for arguments in command_lines("make")]
    assert {"study", "test"} <= set(named) <= targets


def test_what_one_adds_goes_where_such_files_are():
    section = README.split("## I want to add", 1)[1].split("\n## ", 1)[0]
    places = [Path(place) for place in re.findall(r"^\|[^|]*\| `([^`]+)` \|", section, re.MULTILINE)]
    assert len(places) >= 6
    for place in places:
        assert place.stem == "NAME"
        assert list((ROOT / place.parent).glob(f"[a-z]*{place.suffix}")), place


def test_the_term_of_the_readme_works_as_one_file(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(TERMS, "_parts", dict(TERMS.items()))
    known, code = set(TERMS), [text for name, text in BLOCKS if name == "python"][1]
    exec(compile(code, "length.py", "exec"), {"__name__": "length"})
    assert set(TERMS) - known == {"length"}
    (edits,) = re.findall(r"`(edits = \{ .terms.+?\})`", README)
    text = block("toml").replace('recipe = "hinton"', f'recipe = "hinton"\n{edits}')
    (workplace / "length.toml").write_text(text, "utf-8")
    monkeypatch.chdir(workplace)
    (arm,) = (arm for arm in open_study(Path("length.toml"), SMALL).arms if arm.name == "hinton")
    assert "terms.length.weight" in arm.space
    lane = Lane(trial_id="t", arm="hinton", phase="search", number=0, pair_id="p", run=arm.run)
    order = Order(order_id="search-1", kind="search", title="one run", lanes=(lane,))
    final = execute(order, StageCache(tmp_path), LocalRuntime())
    assert [trial.status for trial in final.trials] == ["complete"]
    assert "term/length" in {row.name for row in final.epochs}


def test_every_recipe_and_every_study_file_is_told(capsys):
    assert show_recipes(as_json=True) == 0
    names = [recipe["name"] for recipe in json.loads(capsys.readouterr().out)]
    names += [path.stem for path in (ROOT / "search_spaces").glob("*.toml") if path.stem != "quickstart"]
    section = README.split("## What is there", 1)[1]
    assert [name for name in names if f"`{name}`" not in section] == []
