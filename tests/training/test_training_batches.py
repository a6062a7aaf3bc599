"""Which rows make up a batch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdistill.training.batches import BatchOrder


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(2, 40), size=st.integers(2, 12), seed=st.integers(0, 2**40))
def test_a_pass_is_a_permutation_without_the_incomplete_batch(rows, size, seed):
    mine = torch.arange(rows) * 3 + 1
    order = BatchOrder([mine], [seed], size)
    if rows < size:
        stream = order.take(rows).flatten()
        passes = stream[: len(stream) // rows * rows].view(-1, rows)
        assert (passes.sort(dim=1).values == mine).all()
        return
    steps = rows // size
    for _ in range(3):
        batches = order.take(steps)[:, 0]
        assert batches.shape == (steps, size)
        drawn = batches.flatten().tolist()
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(mine.tolist())


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(8, 40), size=st.integers(2, 8), chunks=st.lists(st.integers(1, 7), min_size=1))
def test_no_batch_holds_a_row_twice_however_the_stream_is_cut(rows, size, chunks):
    order = BatchOrder([torch.arange(rows)], [5], size)
    pieces = [order.take(steps) for steps in chunks]
    for batch in torch.cat(pieces)[:, 0]:
        assert len(batch.unique()) == size
    whole = BatchOrder([torch.arange(rows)], [5], size).take(sum(chunks))
    assert torch.equal(torch.cat(pieces), whole)


def test_a_lane_does_not_depend_on_its_neighbours():
    rows = [torch.arange(20), torch.arange(100, 113), torch.arange(200, 203)]
    cohort = BatchOrder(rows, [1, 2, 3], 4)
    alone = [BatchOrder([rows[k]], [k + 1], 4) for k in range(3)]
    for _ in range(4):
        together = cohort.take(3)
        assert together.shape == (3, 3, 4)
        for k in range(3):
            assert torch.equal(together[:, k], alone[k].take(3)[:, 0])


def test_equal_seeds_give_equal_batches_and_others_do_not():
    batches = BatchOrder([torch.arange(30)] * 3, [7, 7, 8], 10).take(3)
    assert torch.equal(batches[:, 0], batches[:, 1])
    assert not torch.equal(batches[:, 0], batches[:, 2])


def test_a_later_pass_has_another_order():
    order = BatchOrder([torch.arange(30)], [7], 10)
    assert not torch.equal(order.take(3), order.take(3))
