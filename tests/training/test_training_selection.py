"""Which frozen teacher a row learns from, against a slow loop."""

import dataclasses
import math

import pytest
import torch

from mmdistill.losses.task import ccc_loss
from mmdistill.training.teachers import FrozenTeachers

K, M, N, D, C = 2, 3, 40, 4, 5


def drawn(policy, *, labelled=None, **more):
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
        **more,
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


@pytest.mark.parametrize("policy", ["sample", "mean"])
def test_teachers_that_all_lanes_share_say_the_same_as_copies_of_them(policy):
    copied = drawn(policy).only(torch.zeros(K, dtype=torch.long))
    shared = dataclasses.replace(
        copied,
        features_KMND=copied.features_KMND[:1].expand(K, M, N, D),
        logits_KMNC=copied.logits_KMNC[:1].expand(K, M, N, C),
    )
    rows_KB = torch.stack([torch.arange(6), torch.arange(6, 12)])
    for one, other in zip(copied.taught(rows_KB)[0], shared.taught(rows_KB)[0], strict=True):
        assert torch.equal(one, other)


def test_a_fixed_teacher_is_always_the_same():
    frozen, rows_KB = drawn("fixed", fixed=1), torch.arange(6).expand(K, 6)
    said, weights_KBM = frozen.taught(rows_KB)
    assert torch.equal(weights_KBM, torch.tensor([0.0, 1.0, 0.0]).expand(K, 6, M))
    assert torch.equal(said.features_KBD, frozen.features_KMND[:, 1, :6])


def slow_weights(frozen, k, n, temperature):
    loss, labelled = frozen.evidence_KMN[k].tolist(), frozen.labelled_KN[k].tolist()
    known = [i for i in range(N) if labelled[i]]
    here = [loss[m][n] if labelled[n] else sum(loss[m][i] for i in known) / len(known) for m in range(M)]
    raw = [math.exp(-value / temperature) for value in here]
    return [value / sum(raw) for value in raw]


@pytest.mark.parametrize("policy", ["mean", "weighted"])
def test_a_mixture_agrees_with_a_slow_loop(policy):
    frozen = drawn(policy, temperature_K=torch.tensor([0.2, 0.7]))
    rows_KB = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(k)) for k in range(K)])
    said, weights_KBM = frozen.taught(rows_KB)
    for k, temperature in enumerate((0.2, 0.7)):
        for b, n in enumerate(rows_KB[k].tolist()):
            expected = [1 / M] * M if policy == "mean" else slow_weights(frozen, k, n, temperature)
            assert weights_KBM[k, b].tolist() == pytest.approx(expected, rel=1e-5)
            features = sum(w * frozen.features_KMND[k, m, n] for m, w in enumerate(expected))
            logits = sum(w * frozen.logits_KMNC[k, m, n] for m, w in enumerate(expected))
            torch.testing.assert_close(said.features_KBD[k, b], features)
            torch.testing.assert_close(said.logits_KBC[k, b], logits)


def test_a_cold_mixture_is_a_choice_and_a_hot_one_the_mean():
    rows_KB = torch.arange(N).expand(K, N)
    cold, hot = (drawn("weighted", temperature_K=torch.full((K,), t)) for t in (1e-6, 1e6))
    torch.testing.assert_close(cold.taught(rows_KB)[1], drawn("sample").taught(rows_KB)[1])
    torch.testing.assert_close(hot.taught(rows_KB)[1], drawn("mean").taught(rows_KB)[1])


def test_a_batch_may_compare_predictions_by_their_concordance():
    generator = torch.Generator().manual_seed(3)
    judged, targets = (torch.randn(*shape, generator=generator) for shape in ((K, M, N, 2), (N, 2)))
    frozen = drawn("batch", judged_KMNC=judged, targets_NC=targets)
    chosen = []
    for first in range(0, N, 8):
        rows_KB = torch.arange(first, first + 8).expand(K, 8)
        for k in range(K):
            known = [n for n in range(first, first + 8) if frozen.labelled_KN[k, n]]
            losses = [float(ccc_loss(judged[k, m, known], targets[known])) for m in range(M)]
            chosen.append((frozen.choose(rows_KB)[k, 0].item(), losses.index(min(losses))))
    assert all(mine == theirs for mine, theirs in chosen)
    by_error = [drawn("batch").choose(torch.arange(n, n + 8).expand(K, 8))[0, 0] for n in range(0, N, 8)]
    assert by_error != [mine for mine, _ in chosen[::2]]


@pytest.mark.parametrize("policy", ["sample", "weighted"])
def test_some_of_the_lanes_are_the_same_lanes(policy):
    more = {"judged_KMNC": torch.randn(K, M, N, C), "streams_KSND": torch.randn(K, 2, N, D)}
    frozen = drawn(policy, temperature_K=torch.tensor([0.2, 0.7]), targets_NC=torch.randn(N, C), **more)
    rows_KB, kept = torch.arange(10, 20).expand(K, 10), torch.tensor([1])
    some = frozen.only(kept)
    whole, part = frozen.taught(rows_KB), some.taught(rows_KB[kept])
    assert torch.equal(part[0].features_KBD, whole[0].features_KBD[kept])
    assert torch.equal(part[1], whole[1][kept])
    assert torch.equal(some.streams(rows_KB[kept])[1], frozen.streams(rows_KB)[1][kept])
    assert torch.equal(some.judged_KMNC, frozen.judged_KMNC[kept])
