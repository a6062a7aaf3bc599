"""The memory bank, against its definition row by row.

Axes: K lanes, B batch, D width, N rows.
"""

import math

import pytest
import torch

from mmdistill.models.network import Outputs
from mmdistill.terms import TERMS, Batch, Shapes

K, B, N, COUNT, SEEDS = 2, 5, 9, 7, [3, 4]
SHAPES = Shapes(6, 8, 4, "classification", 3, ("joint",), N)
TEMPERATURES = (0.1, 0.3)


def built(**changes):
    kind = TERMS["contrastive"].settings_type
    settings = [
        kind(**{"negatives": "bank", "temperature": t, "width": 4, "count": COUNT} | changes)
        for t in TEMPERATURES
    ]
    return TERMS["contrastive"](settings, SHAPES, SEEDS)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(K, B, width, generator=generator) for width in (6, 8))
    rows_KB = torch.stack([torch.randperm(N, generator=generator)[:B] for _ in range(K)])
    nothing = torch.zeros(K, B, 3)
    return Batch(Outputs(student, nothing), Outputs(teacher, nothing), rows_KB=rows_KB)


def embedded(term, given):
    pairs = ((term.embed_student, given.student), (term.embed_teacher, given.teacher))
    return [torch.nn.functional.normalize(embed(side.features_KBD), dim=-1) for embed, side in pairs]


def drawn_for(term, given):
    """Return the negatives of the next forward pass, without drawing them."""
    states = [generator.get_state() for generator in term.generators]
    found = term._negatives(given.rows_KB)
    for generator, state in zip(term.generators, states, strict=True):
        generator.set_state(state)
    return found


def one_direction(v_BD, bank_ND, rows, drawn, temperature, Z=None):
    """Return the loss of one lane and direction by loops, and its constant Z (Tian et al. 2020)."""
    scores = [
        [math.exp(float(v_BD[i] @ bank_ND[j]) / temperature) for j in [int(rows[i]), *drawn[i].tolist()]]
        for i in range(B)
    ]
    Z = Z or sum(map(sum, scores)) / (B * (COUNT + 1)) * N
    noise, total = COUNT / N, 0.0
    for own, *others in scores:
        total -= math.log(own / Z / (own / Z + noise))
        total -= sum(math.log(noise / (other / Z + noise)) for other in others)
    return total / B, Z


def test_two_batches_have_the_values_of_the_definition():
    term, constants = built(), {}
    for seed in (1, 2):
        given = batch(seed)
        drawn, banks = drawn_for(term, given), (term.bank_teacher_KND, term.bank_student_KND)
        with torch.no_grad():
            value_K = term(given).value_K
            sides = embedded(term, given)
        for k in range(K):
            expected = 0.0
            for n, (side, bank) in enumerate(zip(sides, banks, strict=True)):
                lane = (side[k], bank[k], given.rows_KB[k], drawn[k], TEMPERATURES[k])
                part, constants[k, n] = one_direction(*lane, Z=constants.get((k, n)))
                expected += part
            assert float(value_K[k]) == pytest.approx(expected, rel=1e-4)


def test_the_bank_moves_by_its_momentum_where_it_was_looked_at_and_nowhere_else():
    term, given = built(momentum=0.25), batch(1)
    before_KND = term.bank_student_KND
    with torch.no_grad():
        term(given)
        student_KBD, _ = embedded(term, given)
    for k, row in ((k, row) for k in range(K) for row in range(N)):
        expected_D = before_KND[k, row]
        if row in given.rows_KB[k]:
            at = given.rows_KB[k].tolist().index(row)
            expected_D = 0.25 * before_KND[k, row] + 0.75 * student_KBD[k, at]
        found_D = term.bank_student_KND[k, row]
        torch.testing.assert_close(found_D, expected_D / expected_D.norm())


def test_a_sample_is_never_its_own_negative_and_every_other_row_may_be():
    term, given = built(count=200), batch(1)
    drawn_KBM = term._negatives(given.rows_KB)
    for k, i in ((k, i) for k in range(K) for i in range(B)):
        assert set(drawn_KBM[k, i].tolist()) == set(range(N)) - {int(given.rows_KB[k, i])}


def test_negatives_of_a_lane_depend_on_its_seed_alone():
    drawn_KBM = built()._negatives(batch(1).rows_KB)
    kind = TERMS["contrastive"].settings_type
    settings = kind(negatives="bank", temperature=TEMPERATURES[1], width=4, count=COUNT)
    alone = TERMS["contrastive"]([settings], SHAPES, SEEDS[1:])
    assert torch.equal(alone._negatives(batch(1).rows_KB[1:])[0], drawn_KBM[1])
