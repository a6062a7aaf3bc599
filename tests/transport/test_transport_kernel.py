"""The two solvers against each other, in hard cells, with masks, and how the compiled one is kept.

Axes: L lanes, N rows, M columns, A coordinates.
"""

import os
import subprocess
import sys

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdistill.errors import NumericsError
from mmdistill.transport import kernel, sinkhorn
from mmdistill.transport.sinkhorn import solve, transport_value

EXACT = {"tolerance": 1e-11, "iterations": 5_000}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def aligned(lanes, points, seed=0, classes=7, width=64):
    """Return cosine costs between a student and a teacher that see the same classes."""
    centres = 2 * draw(classes, width, seed=seed)
    labels = torch.arange(points) % classes
    X, Y = (centres[labels] + draw(lanes, points, width, seed=seed + k) for k in (1, 2))
    return 1 - torch.nn.functional.normalize(X, dim=2) @ torch.nn.functional.normalize(Y, dim=2).mT


def with_torch(cost, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinkhorn, "_with_kernel", sinkhorn._with_torch)
        return solve(cost, **options)


@settings(max_examples=40, deadline=None)
@given(
    log_eps=st.floats(-3, 0),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    backend=st.sampled_from([sinkhorn._with_kernel, sinkhorn._with_torch]),
    power=st.sampled_from([0.0, 1.0, 6.0]),
)
def test_single_precision_keeps_the_mass_and_never_gives_nan(log_eps, rows, columns, seed, backend, power):
    cost = 4 * torch.rand(3, rows, columns, generator=torch.Generator().manual_seed(seed)) ** power
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinkhorn, "_with_kernel", backend)
        value, plan = transport_value(cost, eps=10**log_eps)
    assert (plan.plan_LNM >= 0).all()
    assert value.isfinite().all()
    assert plan.kl_L.min() >= -1e-5
    torch.testing.assert_close(plan.plan_LNM.sum((1, 2)), torch.ones(3), rtol=0, atol=1e-5)
    columns_error = (plan.plan_LNM.sum(1) - 1 / columns).abs().max()
    assert columns_error < 1e-5
    rows_error = (plan.plan_LNM.double().sum(2) - 1 / rows).norm(dim=1)
    torch.testing.assert_close(plan.error_L.double(), rows_error, rtol=1e-2, atol=3e-6)
    assert (plan.converged_L == (plan.error_L <= 1e-4)).all()


@settings(max_examples=30, deadline=None)
@given(
    log_eps=st.floats(-3, 0),
    size=st.tuples(st.integers(1, 512), st.integers(1, 512)),
    seed=st.integers(0, 2**16),
    backend=st.sampled_from([sinkhorn._with_kernel, sinkhorn._with_torch]),
    offset=st.sampled_from([0.0, -3.0, 1e3]),
    masked=st.booleans(),
    symmetric=st.booleans(),
)
def test_duplicates_offsets_masks_and_any_masses_lose_nothing(
    log_eps, size, seed, backend, offset, masked, symmetric
):
    generator = torch.Generator().manual_seed(seed)
    X, Y = (torch.randn(2, n, 3, generator=generator) for n in size)
    # Every other point stands where another does.
    X, Y = X[:, torch.arange(size[0]) // 2], Y[:, torch.arange(size[1]) // 2]
    Y = X if symmetric else Y
    cost = 0.5 * torch.cdist(X, Y).square()
    cost = cost / cost.amax().clamp_min(1e-3) + (0.0 if symmetric else offset)
    a, b = (torch.rand(2, n, generator=generator).pow(4) + 1e-4 for n in cost.shape[1:])
    rows, columns = (torch.rand(2, n, generator=generator) < 0.6 for n in cost.shape[1:])
    rows[:, 0] = columns[:, 0] = True
    options = {"row_weights": a, "symmetric": symmetric} | ({} if symmetric else {"column_weights": b})
    if masked:
        options |= {"row_mask": rows} | ({} if symmetric else {"column_mask": columns})
        a, b = a * rows, b * columns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinkhorn, "_with_kernel", backend)
        value, plan = transport_value(cost, eps=10**log_eps, iterations=200, **options)
    a, b = (x / x.sum(1, keepdim=True) for x in (a, a if symmetric else b))
    P = plan.plan_LNM.double()
    assert (P >= 0).all()
    assert (value - offset * (not symmetric)).abs().max() < 10
    assert (P.sum((1, 2)) - 1).abs().max() < 1e-5
    assert (P[(a == 0)] == 0).all()
    assert (P.mT[(b == 0)] == 0).all()
    error = (P.sum(2) - a).norm(dim=1)
    torch.testing.assert_close(plan.error_L.double(), error, rtol=1e-2, atol=5e-6)
    assert (plan.converged_L == (plan.error_L <= 1e-4)).all()
    assert symmetric or (P.sum(1) - b).norm(dim=1).max() < 1e-5


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("eps", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (17, 17), (16, 16)])
def test_both_solvers_agree(shape, eps, symmetric):
    X = draw(4, *shape)
    cost = 0.5 * torch.cdist(X, X if symmetric else draw(4, *shape, seed=1)).square()
    weights = draw(4, shape[0], seed=2).exp()
    options = {"eps": eps, "row_weights": weights, "symmetric": symmetric, "tolerance": 1e-10}
    ours, theirs = (run(cost, iterations=20_000, **options) for run in (solve, with_torch))
    assert ours.converged_L.all()
    torch.testing.assert_close(ours.plan_LNM, theirs.plan_LNM, rtol=1e-5, atol=1e-9)
    for name in ("cost_L", "kl_L"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("eps", [0.1, 0.05, 0.01])
def test_blocks_of_classes_are_solved_to_the_end_in_a_few_iterations(eps):
    """Where plain scaling needs thousands of iterations, for mass moves slowly between blocks."""
    cost = aligned(2, 64)
    plan = solve(cost, eps=eps, tolerance=1e-9)
    assert plan.converged_L.all()
    assert plan.iterations < 200
    for lane in range(2):
        w = ot.unif(64)
        theirs = ot.bregman.sinkhorn_log(
            w, w, cost[lane].numpy(), eps, stopThr=1e-7, numItermax=3000, warn=False
        )
        np.testing.assert_allclose(plan.plan_LNM[lane], theirs, atol=3e-5)


@pytest.mark.parametrize("eps", [1e-3, 3e-3])
def test_small_eps_in_single_precision_is_solved_or_said_not_to_be(eps):
    cost = aligned(4, 64).float()
    plan = solve(cost, eps=eps)
    assert plan.converged_L.all()
    short = solve(cost, eps=eps, iterations=3)
    assert not short.converged_L.any()
    for found in (plan, short):
        exact = (found.plan_LNM.double().sum(2) - 1 / 64).norm(dim=1)
        torch.testing.assert_close(found.error_L.double(), exact, rtol=1e-2, atol=1e-6)
        torch.testing.assert_close(found.plan_LNM.sum(1), torch.full((4, 64), 1 / 64), rtol=1e-4, atol=0)


def test_eps_below_the_range_of_the_number_format_gives_a_plan():
    plan = solve(draw(5, 5, dtype=torch.float32).square(), eps=1e-42)
    assert plan.plan_LNM.isfinite().all()
    torch.testing.assert_close(plan.plan_LNM.sum(), torch.tensor(1.0))


def test_equal_problems_give_equal_bits_in_any_company():
    cost = aligned(6, 33).float()
    eps = torch.tensor([0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
    together, again = solve(cost, eps=eps), solve(cost, eps=eps)
    assert torch.equal(together.plan_LNM, again.plan_LNM)
    for lane in range(6):
        alone = solve(cost[lane], eps=eps[lane])
        assert torch.equal(alone.plan_LNM, together.plan_LNM[lane])
        assert torch.equal(alone.kl_L, together.kl_L[lane])


@pytest.mark.parametrize("backend", [sinkhorn._with_kernel, sinkhorn._with_torch])
@pytest.mark.parametrize("symmetric", [False, True])
def test_masked_points_are_as_if_they_were_not_there(symmetric, backend, monkeypatch):
    monkeypatch.setattr(sinkhorn, "_with_kernel", backend)
    same = {"rtol": 0, "atol": 0} if backend.__name__ == "_with_kernel" else {"rtol": 1e-3, "atol": 1e-6}
    X = draw(3, 9, 4)
    cost = torch.cdist(X, X if symmetric else draw(3, 9, 4, seed=1))
    rows = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.7
    columns = rows if symmetric else rows.flip(0)
    kept = rows[:, :, None] & columns[:, None, :]
    poisoned = torch.where(kept, cost, torch.nan).requires_grad_()
    options = {"eps": torch.tensor([0.1, 0.3, torch.inf]), "symmetric": symmetric}
    value, plan = transport_value(poisoned, row_mask=rows, column_mask=columns, **options)
    (gradient,) = torch.autograd.grad(value.sum(), poisoned)
    for lane in range(3):
        part = cost[lane][rows[lane]][:, columns[lane]]
        alone, own = transport_value(part, eps=options["eps"][lane], symmetric=symmetric)
        torch.testing.assert_close(value[lane], alone)
        torch.testing.assert_close(plan.plan_LNM[lane][kept[lane]], own.plan_LNM.flatten(), **same)
        assert plan.converged_L[lane] == own.converged_L
    assert (plan.plan_LNM[~kept] == 0).all()
    torch.testing.assert_close(gradient, plan.plan_LNM)


def test_masks_go_with_weights_and_lone_problems():
    cost, weights = draw(4, 5).square(), torch.tensor([1.0, torch.nan, 2.0, 3.0])
    mask = torch.tensor([True, False, True, True])
    plan = solve(cost, eps=0.5, row_weights=weights, row_mask=mask, **EXACT)
    a = np.array([1, 2, 3]) / 6
    theirs = ot.bregman.sinkhorn_log(
        a, ot.unif(5), cost[mask].numpy(), 0.5, stopThr=1e-12, numItermax=10_000, warn=False
    )
    np.testing.assert_allclose(plan.plan_LNM[mask], theirs, rtol=1e-8)
    assert plan.cost_L.shape == ()


@pytest.mark.parametrize("name", ["row_mask", "column_mask"])
def test_a_mask_that_leaves_nothing_is_refused(name):
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(NumericsError, match=f"`{name}` must leave every problem a point"):
        solve(draw(2, 2, 2), eps=0.1, **{name: mask})


def test_what_is_compiled_needs_no_folder_to_be_kept_in():
    space = {}
    exec("def double(x):\n    return 2 * x", space)
    assert kernel._compiled(space["double"])(3) == 6


def test_numba_is_not_imported_before_the_first_problem():
    source = "import sys; import mmdistill.losses.structural; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", source], check=True)


BITS = """
import hashlib, torch
from mmdistill.transport.sinkhorn import solve
costs = torch.rand(16, 40, 50, generator=torch.Generator().manual_seed(0))
found = solve(costs, eps=torch.logspace(-2, 1, 16), iterations=300)
print(hashlib.sha256(found.plan_LNM.numpy().tobytes()).hexdigest())
"""


def test_the_first_process_of_a_machine_computes_the_bits_of_all_later_ones(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", BITS]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    bits = {process.communicate()[0] for process in both}
    bits.add(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    # What an older version left may not even load.
    for index in tmp_path.rglob("*.nbi"):
        index.write_bytes(b"of another version")
        os.utime(index, (0, 0))
    bits.add(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert len(bits) == 1
    assert bits != {b""}
