import pytest

from mmdistill.errors import ConfigError, InputError
from mmdistill.settings import Choice, Range
from mmdistill.studies.study import open_study
from mmdistill.terms import TERMS

POOL = '"teachers.pool" = ["each", "joint"]'
TRANSPORT = '\n[[arms]]\nname = "pkdot"\nrecipe = "pkdot"\nedits = { "terms.transport.k" = 5 }\n'


def problems(put_together, text, *edits):
    with pytest.raises(ConfigError) as caught:
        put_together(text, *edits)
    return [str(problem) for problem in caught.value.problems]


def arm(name, recipe="hinton", **more):
    lines = [f'name = "{name}"', f'recipe = "{recipe}"', *(f"{key} = {value}" for key, value in more.items())]
    return "\n[[arms]]\n" + "\n".join(lines) + "\n"


def test_every_arm_searches_its_live_settings_only(put_together, tiny):
    study = put_together(tiny + TRANSPORT)
    basics = {"optimiser.label_smoothing", "optimiser.learning_rate", "optimiser.weight_decay"}
    spaces = {arm.name: set(arm.space) for arm in study.arms}
    assert spaces["student_only"] == basics
    assert spaces["hinton"] == basics | {"terms.softened_logits.weight", "terms.softened_logits.temperature"}
    assert spaces["pkdot"] == basics | {f"terms.transport.{name}" for name in ("weight", "eps_rel", "k")}
    assert (study.task, study.score, study.baseline, study.dataset) == (
        "classification",
        "accuracy",
        "student_only",
        "planted",
    )
    assert len(study.fingerprints) == 1


def test_a_declared_range_of_anchors_ends_below_the_batch(put_together, tiny):
    (pkdot,) = [arm for arm in put_together(tiny + TRANSPORT).arms if arm.name == "pkdot"]
    assert pkdot.space["terms.transport.k"] == Range(low=5, high=15, log=True, integer=True)


def test_a_space_replaces_fixes_and_adds(put_together, tiny):
    text = tiny + '\n[search.space]\n"optimiser.weight_decay" = false\n"epochs" = { choice = [2, 3] }\n'
    text = text.replace('name = "hinton"', 'name = "hinton"\nspace = { "epochs" = false }')
    spaces = {arm.name: arm.space for arm in put_together(text).arms}
    assert all("optimiser.weight_decay" not in space for space in spaces.values())
    assert spaces["several"]["epochs"] == Choice(choice=(2, 3))
    assert "epochs" not in spaces["hinton"]


def test_equal_arms_are_merged_with_a_note_and_found_under_both_names(put_together, tiny):
    text = tiny + arm("again") + '\n[[contrasts]]\nquestion = "?"\narm = "again"\nagainst = "student_only"\n'
    study = put_together(text)
    assert [one.name for one in study.arms] == ["student_only", "hinton", "several"]
    assert study.arms[1].note == "also again"
    assert study.file.contrasts[0].arm == "hinton"


def test_a_weight_of_nothing_is_the_student_alone_and_still_the_baseline(put_together, tiny):
    zero = arm("zero", edits='{ "terms.softened_logits.weight" = 0.0 }')
    study = put_together(tiny.replace("\n[[arms]]", zero + "\n[[arms]]", 1))
    assert study.arms[0].name == study.baseline == "zero"
    assert study.arms[0].note == "also student_only"


def test_dead_settings_do_not_make_a_dimension(put_together, tiny):
    text = tiny + '\n[search.space]\n"selection.policy" = { choice = ["sample", "batch"] }\n'
    searching = {arm.name for arm in put_together(text).arms if "selection.policy" in arm.space}
    assert searching == {"several"}


def test_the_identity_of_a_study_is_what_decides_its_numbers(put_together, tiny):
    plain = put_together(tiny).resolved()
    assert put_together(tiny, "resources.workers=2").resolved() == plain
    assert put_together(tiny, "resources.lanes=2").resolved() != plain
    assert put_together(tiny, "run.epochs=3").resolved() != plain


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'recipe = "hinton"',
            'recipe = "hintom"',
            "arms.hinton.recipe: no recipe is called 'hintom'; did you mean",
        ),
        ("epochs = 2", "epoch = 2", "run.epoch: unknown key; did you mean `epochs`?"),
        ("epochs = 2", "epochs = 0", "run.epochs: Input should be greater than or equal to 1 (got 0)"),
        ("out_of_fold = 2", "out_of_folds = 2", "run.teachers.out_of_folds: unknown key"),
        ("epochs = 2", "training = { epochs = 2 }", "run.training: unknown key; did you mean `run.epochs`?"),
        ("epochs = 2", "trials = 2", "run.trials: unknown key; did you mean `search.trials`?"),
        ("epochs = 2", "seed = 2", "run.seed: this is drawn for every pair; set `seed` at the top"),
        ("epochs = 2", "fold = 1", "run.fold: this is drawn for every pair; set `count`"),
        (
            'student = ["face"]',
            'student = ["fase"]',
            "run.data.student: 'planted' has no modality 'fase'; did you",
        ),
        ('student = ["face"]', 'student = ["audio"]', "run.data: a modality is either `student` or"),
        (
            'dataset = "planted"',
            'dataset = "plantd"',
            "run.data.dataset: no data set is called 'plantd'; did",
        ),
        ('dataset = "planted"', 'dataset = "no/where"', "there is nothing under the path 'no/where'"),
        ("rows =", "row =", "run.data.options: row: unknown key; did you mean `rows`?"),
        (
            'recipe = "student_only"',
            'recipe = "hinton"\nedits = { "epochs" = 3 }',
            "arms: every study compares with",
        ),
        (
            POOL,
            '"teachers.pool" = ["video"]',
            "arms.several: teachers.pool: 'video' is no teacher of this run",
        ),
        (
            POOL,
            '"teachers.pol" = ["each"]',
            "arms.several.edits.teachers.pol: unknown key; did you mean `pool`?",
        ),
        (
            POOL,
            '"training.label_fraction" = 1',
            "edits.training: unknown key; did you mean `data.label_fraction`?",
        ),
        (POOL, '"epochs" = 0', "arms.several.edits.epochs: Input should be greater"),
        (POOL, '"epochs.x" = 0', "arms.several.edits.epochs.x: `epochs` is a value, not a table"),
        (
            POOL,
            '"terms.transprot.k" = 3',
            "arms.several.edits.terms.transprot: no term is called 'transprot'",
        ),
        (
            POOL,
            '"terms.softened_logits.wieght" = 3',
            "arms.several.edits.terms.softened_logits.wieght: unknown key; did you mean `weight`?",
        ),
        (
            POOL,
            '"terms.softened_logits" = 3',
            "arms.several.edits.terms.softened_logits: Input should be a valid dictionary",
        ),
        (
            POOL,
            '"terms.transport.k" = 16',
            "arms.several: terms.transport.k must be at most 15 with batch_size 16, but is 16",
        ),
        (
            POOL,
            '"data.dataset" = "digits_views", "data.options" = {}, "data.student" = ["rows"],'
            ' "data.privileged" = ["pixels"]',
            "arms.several: arms are compared on one data set",
        ),
    ],
)
def test_says_what_is_wrong_and_where(put_together, tiny, old, new, expected):
    assert old in tiny
    found = problems(put_together, tiny.replace(old, new, 1))
    assert any(expected in problem for problem in found), found
    assert len(found) == 1, found


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ('reference = "hintn"', "reference: no arm is called 'hintn'; did you mean"),
        (
            '[[contrasts]]\nquestion = "?"\narm = "hintn"\nagainst = "student_only"',
            "contrasts.0.arm: no arm is called 'hintn'; did you mean",
        ),
        (
            '[[contrasts]]\nquestion = "?"\narm = "hinton"\nagainst = "x"',
            "contrasts.0.against: no arm is called 'x'; known: student_only, hinton, several",
        ),
        (
            '[[arms]]\nname = "b"\nrecipe = "hinton"\n[[contrasts]]\nquestion = "?"\narm = "hinton"'
            '\nagainst = "b"',
            "contrasts.0: both arms are the same run; remove it, or make them differ",
        ),
        (
            '[[designs]]\nkind = "teacher_subset"\nbase = "several"',
            "designs.0.kind: no design is called 'teacher_subset'; did you mean 'teacher_subsets'?",
        ),
        (
            '[[designs]]\nkind = "teacher_subsets"\nbase = "severl"',
            "designs.0.base: no arm is called 'severl'; did you mean 'several'?",
        ),
        (
            '[[designs]]\nkind = "teacher_subsets"\nbase = "several"\nsize = [1]',
            "designs.0: size: unknown key",
        ),
        (
            '[[designs]]\nkind = "teacher_subsets"\nbase = "several"\nsizes = [0]',
            "designs.0: sizes.0: Input should be greater than or equal to 1",
        ),
        (
            '[[designs]]\nkind = "teacher_subsets"\nbase = "several"\nsizes = [3]',
            "designs.0: there are no subsets of 3: the base has 2 privileged modalities",
        ),
        ('[[designs]]\nbase = "several"', "designs.0: kind: this key is required"),
        (
            '[[designs]]\nkind = "teacher_subsets"\nbase = "several"\n[[arms]]\nname ='
            ' "several@audio"\nrecipe = "self_distillation"',
            "designs.0: it generates an arm 'several@audio', but there is another one",
        ),
        (
            '[search.space]\n"optimiser.larning_rate" = { low = 1, high = 2 }',
            "search.space.optimiser.larning_rate: this changes nothing in any arm; remove it or"
            " correct its spelling",
        ),
        (
            '[search.space]\n"optimiser.larning_rate" = false',
            "search.space.optimiser.larning_rate: this changes nothing in any arm",
        ),
        (
            '[search.space]\n"terms.transport.eps_rel" = { low = 1, high = 2 }',
            "search.space.terms.transport.eps_rel: this changes nothing in any arm",
        ),
        (
            '[search.space]\n"data.label_fraction" = { choice = [0.5, 1.0] }',
            "search.space.data.label_fraction: this belongs to the pair and cannot be searched; make"
            " it the edit of an arm",
        ),
        (
            '[search.space]\n"epochs" = true',
            "search.space.epochs: no range is declared for it; give `low` and `high`, or `choice`",
        ),
        (
            '[search.space]\n"network.width" = { low = 8, high = 32, log = true }',
            "search.space.network.width: this setting takes whole numbers only; add `integer = true`",
        ),
        (
            '[search.space]\n"optimiser.label_smoothing" = { low = 0.0, high = 1.0 }',
            "search.space.optimiser.label_smoothing: 1.0 is not allowed: Input should be less than 1",
        ),
        (
            '[search.space]\n"teachers.pool" = { choice = [["joint"], ["video"]] }',
            "search.space.teachers.pool: ['video'] is not allowed: teachers.pool: 'video' is no teacher",
        ),
        (
            '[[arms]]\nname = "x"\nrecipe = "student_only"\nspace = { "terms.softened_logits.weight"'
            " = false }",
            "arms.x.space.terms.softened_logits.weight: this changes nothing in this arm",
        ),
        (
            '[search.space]\n"optimiser.learning_rate" = false\n"optimiser.weight_decay" = false'
            '\n"optimiser.label_smoothing" = false',
            "arms.student_only: nothing is left to search in this arm",
        ),
        (
            '[[arms]]\nname = "t"\nrecipe = "pkdot"\nedits = { "terms.transport.k" = 5 }\nspace = {'
            ' "batch_size" = { choice = [8, 16] } }',
            "is not allowed with terms.transport.k = 15: terms.transport.k must be at most 7 with"
            " batch_size 8, but is 15; narrow the space",
        ),
        (
            "[resources]\nworkers = 3",
            "resources.workers: the batch is shared out evenly, so `workers` must divide `batch_size`"
            " 16 (got 3)",
        ),
    ],
)
def test_says_what_is_wrong_between_the_parts(put_together, tiny, more, expected):
    # A top-level key must stand before the first table.
    text = f"{more}\n{tiny}" if more.startswith("reference") else f"{tiny}\n{more}\n"
    found = problems(put_together, text)
    assert any(expected in problem for problem in found), found
    assert len(found) == 1, found


def test_a_missing_table_is_said_once_however_many_arms(put_together, tiny):
    text = tiny.replace("[run.data]", "[elsewhere]")
    assert "elsewhere: unknown key" in problems(put_together, text)[0]
    head, tail = tiny.split("[run.data]")
    text = head + tail[tail.index("[run.teachers]") :]
    assert problems(put_together, text) == ["s.toml: run.data: this key is required; add it"]


@pytest.mark.parametrize(
    "data", ["3", "{ student = 3 }", '{ dataset = "planted", student = ["face"], privileged = 3 }']
)
def test_odd_data_is_refused_also_below_a_design(put_together, data):
    text = f"""
        name = "odd"
        run = {{ data = {data} }}
        arms = [{{ name = "student_only", recipe = "student_only" }}, {{ name = "h", recipe = "hinton" }}]
        designs = [{{ kind = "teacher_subsets", base = "h" }}]
    """
    assert all("run.data" in problem for problem in problems(put_together, text))


def test_problems_of_all_parts_come_at_once(put_together, tiny):
    text = tiny.replace('student = ["face"]', 'student = ["fase"]')
    text = text.replace(
        '"teachers.pool" = ["each", "joint"]', '"terms.x.k" = 1, "terms.softened_logits.t" = 1, "epoch" = 3'
    )
    text += '\n[[arms]]\nname = "a"\nrecipe = "hintom"\n'
    text += '[[contrasts]]\nquestion = "?"\narm = "b"\nagainst = "hinton"\n'
    found = "\n".join(problems(put_together, text))
    for part in (
        "'fase'",
        "'x'",
        "softened_logits.t: unknown",
        "edits.epoch: unknown",
        "'hintom'",
        "contrasts.0.arm",
    ):
        assert part in found


def test_two_contradictions_of_one_arm_are_two_problems(put_together, tiny):
    edits = (
        '"teachers.training" = "joint", "alignment.kind" = "adapters", "teachers.pool" = ["audio", "decoy"]'
    )
    found = problems(put_together, tiny.replace('"teachers.pool" = ["each", "joint"]', edits))
    assert len(found) == 2
    assert "a jointly trained teacher must be the only one" in found[0]
    assert "alignment pulls the other teachers to the `joint` one" in found[1]


def test_a_term_that_says_nothing_about_the_data_is_refused_by_name(put_together, tiny, monkeypatch):
    monkeypatch.setattr(TERMS["softened_logits"], "least_classes", 5)
    found = problems(put_together, tiny)
    assert [problem.split(": ")[1] for problem in found] == ["arms.hinton", "arms.several"]
    assert "terms.softened_logits needs at least 5 classes to say anything, and there are" in found[0]
    assert "(data set 'planted'); leave the term out of this arm" in found[0]
    monkeypatch.setattr(TERMS["softened_logits"], "tasks", frozenset({"regression"}))
    assert "terms.softened_logits is not defined for classification" in problems(put_together, tiny)[0]


def test_a_term_that_asks_for_all_teachers_needs_frozen_ones(put_together, tiny, monkeypatch):
    monkeypatch.setattr(TERMS["softened_logits"], "needs", frozenset({"pool"}))
    edits = '"teachers.training" = "joint", "teachers.pool" = ["joint"]'
    (found,) = problems(put_together, tiny.replace('"teachers.pool" = ["each", "joint"]', edits))
    assert 'terms.softened_logits needs every frozen teacher, and with `teachers.training = "joint"`' in found


def test_a_generated_name_that_is_too_long_is_refused(put_together, tiny):
    name = "n" * 75
    text = tiny.replace('name = "several"', f'name = "{name}"')
    text += f'\n[[designs]]\nkind = "teacher_subsets"\nbase = "{name}"\nsizes = [2]\n'
    (problem,) = problems(put_together, text)
    assert "at most 80" in problem
    assert "change the names it is made of" in problem


def test_nothing_is_written_by_reading_a_study(put_together, tiny, tmp_path):
    put_together(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]


def test_wrong_form_and_wrong_content_are_told_at_once(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        """
nam = "x"
name = "a/b"
[run]
epoch = 5
[run.data]
dataset = "digits_view"
student = ["rows"]
[[arms]]
name = "student_only"
recipe = "student_onl"
[search]
trils = 3
[search.space]
"optimiser.learning_rate" = { low = 1.0, high = 0.1 }
"""
    )
    with pytest.raises(InputError) as caught:
        open_study(path)
    told = str(caught.value)
    for place in ("nam: unknown", "name: a name starts", "search.trils: unknown", "`low` must be below"):
        assert place in told
    assert "no recipe is called 'student_onl'; did you mean 'student_only'?" in told
    assert list(tmp_path.iterdir()) == [path]
