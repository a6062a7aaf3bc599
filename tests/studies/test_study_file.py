import pytest

from mmdistill.errors import ConfigError
from mmdistill.settings import Choice, Range
from mmdistill.studies.file import LARGEST_FILE, read_study_file


def problems(read, text, *edits):
    with pytest.raises(ConfigError) as caught:
        read(text, *edits)
    return [str(problem) for problem in caught.value.problems]


def test_a_sound_file_is_read_with_its_defaults(read):
    file = read()
    assert (file.name, file.seed, file.search.trials, file.confirm.pairs) == ("tiny", 3, 3, 2)
    assert [arm.name for arm in file.arms] == ["student_only", "hinton", "several"]
    assert (file.search.sampler, file.margin, file.resources.workers) == ("tpe", 0.005, 0)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed = 3", "sead = 3", "sead: unknown key; did you mean `seed`?"),
        ("[confirm]", "[confirm]\npears = 1", "confirm.pears: unknown key; did you mean `pairs`?"),
        ("[confirm]", "[confirm]\ntop = 1", "confirm.top: unknown key; did you mean `search.top`?"),
        ("[confirm]", "[confirm]\nhello = 1", "hello: unknown key; remove it or correct its spelling"),
        ("seed = 3", "epochs = 3", "epochs: unknown key; did you mean `run.epochs`?"),
        ("seed = 3", "searching = { top = 3 }", "searching: unknown key; did you mean `search`?"),
        ("seed = 3", "fast = { trails = 3 }", "fast: unknown key; did you mean `search.trials`?"),
        (
            "seed = 3",
            "learning_rate = 3",
            "`run.teachers.learning_rate` or `run.alignment.learning_rate` or `run.optimiser.learning_rate`?",
        ),
        ('name = "hinton"', 'name = "hinton"\nspaces = {}', "arms.1.spaces: unknown key"),
        ('name = "tiny"', "", "name: this key is required; add it"),
        ('name = "tiny"', 'name = "a/b"', "name: a name starts with a letter or digit and holds"),
        ('name = "tiny"', 'name = "../x"', r"(got '../x')"),
        ('name = "hinton"', 'name = "hin/ton"', "arms.1.name: a name starts with"),
        ('name = "hinton"', 'name = "hinton@token=abcdef"', "a name must not look like a secret"),
        ('name = "hinton"', 'name = "Student_Only"', "different names, but student_only stands twice"),
        ("trials = 3", "trials = 0", "search.trials: Input should be greater than or equal to 1 (got 0)"),
        ("seed = 3", "seed = -1", "seed: Input should be greater than or equal to 0 (got -1)"),
        ("seed = 3", "margin = nan", "margin: "),
        ("seed = 3", 'created = 2026-01-02', "created: a date is no setting; put it in quotes"),
        ("epochs = 2", "epochs = 08:30:00", "run.epochs: a date is no setting"),
        ("rows = [64, 32, 32]", "rows = [64, 2026-01-02]", "run.data.options.rows.1: a date is no setting"),
        ("seed = 3", "seed =", "not TOML: "),
        ("seed = 3", "seed = 3\nseed = 4", "not TOML: "),
        ("seed = 3", f"seed = {'9' * 5000}", "not TOML: "),
        ("seed = 3", f"seed = {'[' * 5000}", "not TOML: "),
    ],
)  # fmt: skip
def test_says_what_is_wrong(read, tiny, old, new, expected):
    assert old in tiny
    (problem,) = problems(read, tiny.replace(old, new, 1))
    assert "s.toml" in problem
    assert expected in problem


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        ("{ low = 2.0, high = 1.0 }", "`low` must be below `high`, but is 2 against 1"),
        ("{ low = 1.0, high = 1.0 }", "`low` must be below `high`, but is 1 against 1"),
        ("{ low = 0.0, high = 1.0, log = true }", "a logarithmic range needs `low` > 0, but `low` is 0"),
        ("{ low = -1, high = 1, log = true }", "a logarithmic range needs `low` > 0, but `low` is -1"),
        (
            "{ low = 0.5, high = 2, integer = true }",
            "an integer range needs whole ends, but they are 0.5 and 2",
        ),
        ("{ low = 0.5 }", ".high: this key is required"),
        ("{ low = 0.5, high = 2, logg = true }", ".logg: unknown key; did you mean `log`?"),
        ("{ low = 0.5, high = inf }", ".high: "),
        ("{ choice = [1, 2, 1] }", "the alternatives of `choice` must differ from each other"),
        ("{ choice = [1] }", ".choice: "),
        ("3", "give `{ low, high }`, `{ choice = [...] }`, true or false (got 3)"),
        ('"yes"', "(got 'yes')"),
    ],
)
def test_says_once_what_is_wrong_with_a_dimension(read, tiny, dimension, expected):
    text = tiny + f'\n[search.space]\n"optimiser.learning_rate" = {dimension}\n'
    (problem,) = problems(read, text)
    assert "s.toml: search.space.optimiser.learning_rate" in problem
    assert expected in problem


def test_all_problems_of_a_file_come_at_once(read, tiny):
    text = tiny.replace("seed = 3", "sead = 3").replace("trials = 3", "trials = -3")
    text += '\n[search.space]\n"epochs" = { low = 9, high = 3 }\n[[contrasts]]\narm = "a"\nagainst = "b"\n'
    found = problems(read, text)
    assert len(found) == 4
    for part in (
        "sead: unknown key",
        "search.trials",
        "search.space.epochs",
        "contrasts.0.question: this key is req",
    ):
        assert any(part in problem for problem in found)


def test_a_path_means_the_same_with_and_without_quotes(read, tiny):
    weight = "{ low = 1, high = 2 }"
    start = f"{tiny}\n[search.space]\n"
    quoted = read(f'{start}"optimiser.weight_decay" = false\n"terms.softened_logits.weight" = {weight}')
    bare = read(f"{start}optimiser.weight_decay = false\nterms.softened_logits.weight = {weight}")
    assert bare == quoted
    assert quoted.search.space["terms.softened_logits.weight"] == Range(low=1, high=2)


def test_edits_of_an_arm_never_replace_what_is_beside_them(read, tiny):
    old = 'edits = { "teachers.pool" = ["each", "joint"] }'
    file = read(tiny.replace(old, 'edits = { teachers.pool = ["joint"], teachers.epochs = 7 }'))
    assert file.arms[2].edits == {"teachers.pool": ["joint"], "teachers.epochs": 7}


def test_edits_on_the_command_line_are_toml_or_bare_words(read, tiny):
    file = read(tiny, "search.trials=5", "name=other", "run.data.student=['audio']", "run.date=2026-01-02")
    assert (file.search.trials, file.name) == (5, "other")
    assert file.run["data"] | {"student": ["audio"]} == file.run["data"]
    assert file.run["date"] == "2026-01-02"


def test_edits_reach_the_space(read, tiny):
    text = tiny + '\n[search.space]\n"teachers.pool" = false\n'
    file = read(text, "search.space.teachers.pool={ choice = [['joint'], ['each']] }")
    assert file.search.space == {"teachers.pool": Choice(choice=(["joint"], ["each"]))}


def test_every_edit_that_is_none_is_named(read, tiny):
    found = problems(read, tiny, "trials", "=3", "a b=3", "name.x=3", "search.trials=4")
    assert found == [
        "edit 'trials': an edit is `path.to.setting=value`; e.g. search.trials=4",
        "edit '=3': an edit is `path.to.setting=value`; e.g. search.trials=4",
        "edit 'a b=3': an edit is `path.to.setting=value`; e.g. search.trials=4",
        "edit 'name.x=3': `name` is a value, not a table; shorten the path",
    ]


def test_a_bad_edit_names_the_key_like_a_bad_line(read, tiny):
    assert "search.trils: unknown key" in problems(read, tiny, "search.trils=4")[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'name = "\xff"', "not UTF-8 at byte 8; save it as UTF-8"),
        (b"#" * (LARGEST_FILE + 1), "a study file is at most 1 MiB"),
        (b"", "run: this key is required"),
        (b"\xef\xbb\xbfname = 3", "name: Input should be a valid string"),
    ],
)
def test_a_file_that_is_none_is_explained(tmp_path, content, expected):
    path = tmp_path / "odd.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_study_file(path)
    assert any(expected in str(problem) and "odd.toml" in str(problem) for problem in caught.value.problems)


def test_a_folder_or_nothing_is_no_study_file(tmp_path):
    with pytest.raises(ConfigError, match="a folder is no study file; give the TOML file"):
        read_study_file(tmp_path)
    with pytest.raises(ConfigError, match="there is no such study file; check the path"):
        read_study_file(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ("search.space.epochs={ low = '.5', high = 2 }", "quotes (got '.5'); write 0.5"),
        ("search.trials='12'", "(got '12'); write 12"),
        ("margin=.3", "margin: a number is expected, without quotes (got '.3'); write 0.3"),
        ("margin='nan'", "(got 'nan'); correct the value"),
        ("margin=little", "(got 'little'); correct the value"),
        ("margin=true", "(got True); correct the value"),
    ],
)
def test_a_number_in_another_form_is_said_in_ours(read, tiny, edit, expected):
    (problem,) = problems(read, tiny, edit)
    assert problem.endswith(expected)


@pytest.mark.parametrize("value", ["true", '"12"'])
def test_what_is_no_number_is_not_made_one(tmp_path, value):
    path = tmp_path / "study.toml"
    path.write_text(
        f'name = "x"\n[run]\n[[arms]]\nname = "a"\nrecipe = "student_only"\n[search]\ntrials = {value}\n'
    )
    with pytest.raises(ConfigError, match=r"search\.trials: a number is expected, without quotes \(got "):
        read_study_file(path)
