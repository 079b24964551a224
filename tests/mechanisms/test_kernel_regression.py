"""Kernel regression beyond the contract: every kernel against its formula in NumPy, and what happens out of reach."""

import numpy as np
import pytest
import torch

import regard
from regard.mechanisms.kernel_regression import regress, weights

FORMULAS = {
    "gaussian": lambda u: np.exp(-(u**2) / 2),
    "boxcar": lambda u: (u < 1) * 1.0,
    "triangular": lambda u: np.maximum(0, 1 - u),
    "epanechnikov": lambda u: np.maximum(0, 1 - u**2),
}


@pytest.mark.parametrize("kernel", FORMULAS)
@pytest.mark.parametrize("dims", [1, 3])
def test_formula(kernel, dims):
    rng = np.random.default_rng(0)
    queries, keys = rng.uniform(0, 1.2, (5, dims)), rng.uniform(0, 1.2, (40, dims))
    values, w = rng.normal(size=(40, 2)), rng.uniform(0.5, 1.5, dims)
    u = np.sqrt((((queries[:, None] - keys[None]) * w) ** 2).sum(-1))
    nearness = FORMULAS[kernel](u)
    assert nearness.sum(1).min() > 0
    expected = nearness @ values / nearness.sum(1, keepdims=True)
    got = regress(*map(torch.from_numpy, (queries, keys, values)), kernel=kernel, w=torch.from_numpy(w))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("kernel", ["boxcar", "triangular", "epanechnikov"])
def test_out_of_reach_the_nearest_key_answers(kernel):
    queries = torch.tensor([[10.0], [0.2]], requires_grad=True)
    keys = torch.tensor([[0.0], [3.0], [4.0]], requires_grad=True)
    values = torch.tensor([[1.0], [2.0], [5.0]], requires_grad=True)
    y = regress(queries, keys, values, kernel=kernel)
    assert y.flatten().tolist() == [5.0, 1.0]
    y.sum().backward()
    # nothing flows through the flat boxcar
    assert all(x.grad is None or x.grad.isfinite().all() for x in (queries, keys))
    assert values.grad.flatten().tolist() == [1.0, 0.0, 1.0]


def test_far_away_a_gaussian_stays_defined():
    found = weights(torch.tensor([[1e4]]), torch.tensor([[0.0], [1.0]]))
    assert found.tolist() == [[0.0, 1.0]]


def test_w_stands_above_and_below():
    torch.manual_seed(0)
    fit = regard.create("kernel_regression", 2, parametric=True)
    torch.nn.init.constant_(fit.w, 3.0)
    constant = fit(torch.randn(1, 4, 2), torch.randn(1, 9, 2), torch.full((1, 9, 1), 7.0))
    torch.testing.assert_close(constant, torch.full((1, 4, 1), 7.0))


def test_a_width_is_learnt():
    torch.manual_seed(0)
    keys = torch.linspace(0, 5, 50)[None, :, None]
    values = torch.sin(3 * keys)
    fit = regard.create("kernel_regression", 1, parametric=True)
    optimiser = torch.optim.Adam(fit.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (fit(keys + 0.05, keys, values) - torch.sin(3 * (keys + 0.05))).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    assert fit.w.item() > 3


def test_unknown_kernel():
    for build in (lambda: weights(torch.ones(1, 1), torch.ones(1, 1), kernel="epanechikov"),
                  lambda: regard.create("kernel_regression", 1, kernel="epanechikov")):  # fmt: skip
        with pytest.raises(regard.UserError, match="did you mean 'epanechnikov'"):
            build()


def test_load_official():
    fit = regard.load_official("nadaraya_watson", {"w": torch.tensor([2.0])}, kernel="gaussian", parametric=True)
    assert fit.w.tolist() == [2.0]
    with pytest.raises(regard.UserError, match="parametric"):
        regard.load_official("nadaraya_watson", {}, channels=1, parametric=True)
