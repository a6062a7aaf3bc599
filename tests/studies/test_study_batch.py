import pytest

from mmdistill.errors import ConfigError

WIDE = '\n[[arms]]\nname = "wide"\nrecipe = "hinton"\n'


def refused(put_together, text, *edits):
    with pytest.raises(ConfigError) as caught:
        put_together(text, *edits)
    return [str(problem) for problem in caught.value.problems]


def test_a_batch_is_at_most_the_training_rows(put_together, tiny):
    assert put_together(tiny, "run.batch_size=64").arms
    rule = "must be at most the number of training rows, 64, but is 65; use a smaller batch"
    assert refused(put_together, tiny, "run.batch_size=65") == [f"s.toml: run.batch_size: {rule}"]
    own = tiny + WIDE + 'edits = { "batch_size" = 65 }'
    assert refused(put_together, own) == [f"s.toml: arms.wide.edits.batch_size: {rule}"]
    shared = tiny + '\n[search.space]\n"batch_size" = { choice = [32, 65] }\n'
    assert refused(put_together, shared) == [f"s.toml: search.space.batch_size: {rule}"]
    alone = tiny + WIDE + 'space = { "batch_size" = { low = 32, high = 65, integer = true } }'
    assert refused(put_together, alone) == [f"s.toml: arms.wide.space.batch_size: {rule}"]


def test_a_batch_fits_the_smallest_fold_and_counts_rows_without_a_label(put_together, tiny):
    folds = ("run.data.folds.scheme=stratified", "run.data.folds.count=5", "run.data.label_fraction=0.5")
    most = 81
    assert put_together(tiny, *folds, f"run.batch_size={most}").arms
    (problem,) = refused(put_together, tiny, *folds, f"run.batch_size={most + 1}")
    assert f"the number of training rows, {most}, but is {most + 1}" in problem
