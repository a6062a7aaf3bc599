import json

import pytest

from mmdistill.data.card import Card, read_card
from mmdistill.errors import DataError

CARD = {
    "name": "tiny",
    "task": "classification",
    "classes": 3,
    "modalities": {"a": {"shape": [2, 3]}, "b": {"shape": [4], "column": "features_b"}},
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        card = {key: value for key, value in (CARD | changes).items() if value is not None}
        (tmp_path / "card.json").write_text(json.dumps(card), encoding="utf-8")
        return tmp_path / "card.json"

    return write


def test_knows_widths_columns_and_outputs():
    card = Card.model_validate(CARD)
    assert [card.width("a"), card.width("b")] == [6, 4]
    assert [card.column("a"), card.column("b")] == ["x_a", "features_b"]
    assert card.outputs == 3


def test_outputs_of_a_regression_are_its_targets():
    card = Card.model_validate(
        CARD | {"task": "regression", "classes": None, "targets": ["valence", "arousal"]}
    )
    assert card.outputs == 2


def test_a_card_is_found_by_its_path_and_by_its_folder(write):
    path = write()
    assert read_card(path) == read_card(path.parent)
    assert read_card(path).path == path


def test_keys_for_other_readers_are_ignored(write):
    read = read_card(write(target="label", metric="CCC", pairing="by label", my_converter="convert.py"))
    assert read.card == Card.model_validate(CARD)


def test_promises_about_the_file_are_kept_apart(write):
    facts = read_card(write(file="x.parquet", n_samples=4, split_counts={"train": 4})).facts
    assert (facts.file, facts.n_samples, facts.split_counts, facts.sha256) == (
        "x.parquet",
        4,
        {"train": 4},
        None,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "ranking"},
            r"card\.json: task: Input should be 'classification' or 'regression'.*'ranking'",
        ),
        ({"name": None}, r"card\.json: name: this key is required; add it"),
        ({"modalities": None}, r"card\.json: modalities: this key is required; add it"),
        ({"modalities": {}}, r"card\.json: modalities: .*at least 1 item"),
        (
            {"modalities": {"a": {"shape": [0]}}},
            r"card\.json: modalities\.a\.shape\.0: .*greater than 0 \(got 0\)",
        ),
        ({"modalities": {"a": {"shape": []}}}, r"card\.json: modalities\.a\.shape: .*at least 1 item"),
        ({"modalities": {"a/b": {"shape": [1]}}}, r"card\.json: modalities\.a/b.*should match pattern"),
        (
            {"modalities": {"a": {"shap": [1]}}},
            r"card\.json: modalities\.a\.shap: unknown key; did you mean `shape`\?",
        ),
        ({"classes": None}, r"`classes` is required when `task` is 'classification'"),
        ({"classes": 1}, r"card\.json: classes: .*greater than or equal to 2 \(got 1\)"),
        ({"task": "regression"}, r"`targets` must name the label columns when `task` is 'regression'"),
        ({"class_names": ["x"]}, r"`class_names` must have 3 names, one per class, but has 1"),
        ({"n_samples": "many"}, r"card\.json: n_samples: .*valid integer"),
        (
            {"licens": "MIT"},
            r"card\.json: licens: no key of a card is called 'licens'; did you mean 'licence'\?",
        ),
    ],
)
def test_says_what_is_wrong_with_a_card(write, changes, message):
    with pytest.raises(DataError, match=message):
        read_card(write(**changes))


def test_reports_every_problem_of_a_card_at_once(write):
    with pytest.raises(DataError) as caught:
        read_card(write(task="ranking", name=None, bytes="big", modalitis={}))
    keys = [problem.where.rsplit(" ", 1)[1] for problem in caught.value.problems]
    assert keys == ["bytes", "modalitis", "name", "task"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not readable as JSON"),
        (b"\xff\xfe\x00", "not readable as JSON: it is no text; give the path of a card.json or its folder"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"[]", "a card must be a JSON object"),
        (b'{"name": "a", "name": "b"}', "the key 'name' occurs twice"),
        (b" " * ((1 << 20) + 1), "a card must be smaller than 1 MiB"),
    ],
)
def test_refuses_what_is_not_a_card(tmp_path, content, message):
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_card(tmp_path)


def test_refuses_a_folder_without_a_card(tmp_path):
    with pytest.raises(DataError, match=r"card\.json: there is no such card; give the path of a card\.json"):
        read_card(tmp_path)
