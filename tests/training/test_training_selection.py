"""Which frozen teacher a row learns from, against a slow loop."""

import pytest
import torch

from mmdistill.training.student import FrozenTeachers

K, M, N, D, C = 2, 3, 40, 4, 5


def drawn(policy, *, labelled=None):
    generator = torch.Generator().manual_seed(0)
    labelled_KN = torch.rand(K, N, generator=generator) < 0.5 if labelled is None else labelled
    evidence = torch.rand(K, M, N, generator=generator) * labelled_KN[:, None, :]
    return FrozenTeachers(
        ("a", "b", "joint"),
        torch.randn(K, M, N, D, generator=generator),
        torch.randn(K, M, N, C, generator=generator),
        evidence,
        labelled_KN,
        policy,
    )


def slow_choice(frozen, k, batch, policy):
    loss, labelled = frozen.evidence_KMN[k].tolist(), frozen.labelled_KN[k].tolist()
    overall = min(range(M), key=lambda m: sum(loss[m][n] for n in range(N) if labelled[n]))
    here = [n for n in batch if labelled[n]]
    if policy == "batch":
        best = min(range(M), key=lambda m: sum(loss[m][n] for n in here)) if here else overall
        return [best] * len(batch)
    return [min(range(M), key=lambda m: loss[m][n]) if labelled[n] else overall for n in batch]


@pytest.mark.parametrize("policy", ["sample", "batch"])
def test_the_choice_agrees_with_a_slow_loop(policy):
    frozen = drawn(policy)
    for seed in range(10):
        rows_KB = torch.stack(
            [torch.randperm(N, generator=torch.Generator().manual_seed(seed + k)) for k in range(K)]
        )
        rows_KB = rows_KB[:, :6]
        choice = frozen.choose(rows_KB)
        expected = [slow_choice(frozen, k, rows_KB[k].tolist(), policy) for k in range(K)]
        assert choice.tolist() == expected


@pytest.mark.parametrize("policy", ["sample", "batch"])
def test_rows_without_a_label_follow_the_teacher_that_is_best_overall(policy):
    labelled = torch.zeros(K, N, dtype=torch.bool)
    labelled[:, :10] = True
    frozen = drawn(policy, labelled=labelled)
    best = frozen.evidence_KMN.sum(dim=2).argmin(dim=1)
    choice = frozen.choose(torch.arange(20, 30).expand(K, 10))
    assert torch.equal(choice, best[:, None].expand(K, 10))


def test_the_two_policies_differ():
    rows_KB = torch.arange(N).expand(K, N)
    assert drawn("batch").choose(rows_KB).unique(dim=1).shape == (K, 1)
    assert drawn("sample").choose(rows_KB).unique(dim=1).shape[1] > 1


def test_the_chosen_teacher_speaks():
    frozen = drawn("sample")
    rows_KB = torch.tensor([[3, 1, 4], [1, 5, 9]])
    choice_KB = torch.tensor([[0, 2, 1], [1, 1, 0]])
    said = frozen.outputs(rows_KB, choice_KB)
    for k in range(K):
        for b in range(3):
            m, n = int(choice_KB[k, b]), int(rows_KB[k, b])
            assert torch.equal(said.features_KBD[k, b], frozen.features_KMND[k, m, n])
            assert torch.equal(said.logits_KBC[k, b], frozen.logits_KMNC[k, m, n])
