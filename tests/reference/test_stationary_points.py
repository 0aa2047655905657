"""Training reaches the solutions of loss + strength * penalty: against scikit-learn and by the optimality gap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from sklearn.linear_model import Lasso
from torch import nn

from strongreg import L1, L2, MCP, AlwaysOpen, ElasticNet, GroupL2, Regularizer, SparseGroup

_SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.8, "dampening": 0.4},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "fused": {"momentum": 0.9, "fused": True},
    "tensor-lr": {"momentum": 0.9},
}


def _problem():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((80, 12))
    weights = rng.standard_normal(12) * (rng.random(12) < 0.5)
    return inputs, inputs @ weights + 0.1 * rng.standard_normal(80)


def _fit(penalty, options, *, mode="proximal", steps=900, tensor_lr=False):
    """Full-batch least squares, (1 / 2n) ||y - Xw||^2, by SGD with the Regularizer."""
    inputs, targets = (torch.tensor(x) for x in _problem())
    model = nn.Linear(12, 1, bias=False).double()
    lr = torch.tensor(0.08, dtype=torch.float64) if tensor_lr else 0.08
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    Regularizer(model, penalty, gate=AlwaysOpen(), mode=mode, history_every=0).attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(inputs).squeeze(1) - targets).square().mean()).backward()
        optimizer.step()
    return model.weight.detach(), model.weight.grad


@pytest.mark.parametrize("variant", list(_SGD))
def test_sgd_reproduces_the_lasso_of_scikit_learn(variant):
    weights, _ = _fit(L1(0.1), _SGD[variant], tensor_lr=variant == "tensor-lr")
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(*_problem()).coef_
    assert weights[0].numpy() == pytest.approx(expected, abs=1e-6)
    assert ((weights[0] == 0).numpy() == (expected == 0)).all()
    assert (expected == 0).any()


@pytest.mark.parametrize("variant", list(_SGD))
@pytest.mark.parametrize("l1_ratio", [0.2, 0.7])
def test_sgd_reproduces_the_elastic_net_of_scikit_learn(variant, l1_ratio):
    weights, _ = _fit(ElasticNet(0.15, l1_ratio), _SGD[variant], tensor_lr=variant == "tensor-lr")
    solver = SklearnElasticNet(alpha=0.15, l1_ratio=l1_ratio, fit_intercept=False, tol=1e-14, max_iter=100_000)
    assert weights[0].numpy() == pytest.approx(solver.fit(*_problem()).coef_, abs=1e-6)


@pytest.mark.parametrize("variant", ["plain", "momentum", "dampening", "nesterov"])
@pytest.mark.parametrize(
    "penalty",
    [L1(0.1), L2(0.1), ElasticNet(0.1), GroupL2(0.1, dim=1), SparseGroup(0.1, dim=1), MCP(0.1, cutoff=2.0)],
    ids=repr,
)
def test_the_stationary_point_is_that_of_the_penalty_in_the_loss(penalty, variant):
    weights, grad = _fit(penalty, _SGD[variant])
    assert penalty.optimality_gap(weights, grad) < 1e-9


def test_both_modes_and_the_weight_decay_of_torch_reach_one_solution_for_l2():
    """With dampening; of the others the next test and the one before say as much."""
    proximal, _ = _fit(L2(0.1), _SGD["dampening"])
    gradient, _ = _fit(L2(0.1), _SGD["dampening"], mode="gradient")
    torch_decay, _ = _fit(L2(0.0), {**_SGD["dampening"], "weight_decay": 0.1})
    assert torch.allclose(proximal, gradient, atol=1e-9)
    assert torch.allclose(gradient, torch_decay, atol=1e-9)


@pytest.mark.parametrize("variant", ["plain", "momentum", "dampening", "nesterov"])
def test_gradient_mode_is_the_weight_decay_of_torch_at_every_step(variant):
    for steps in (1, 2, 7):
        torch.manual_seed(0)
        theirs, _ = _fit(L2(0.0), {**_SGD[variant], "weight_decay": 0.1}, steps=steps)
        torch.manual_seed(0)
        ours, _ = _fit(L2(0.1), _SGD[variant], mode="gradient", steps=steps)
        assert torch.allclose(ours, theirs, atol=1e-15)


def test_lbfgs_in_gradient_mode_minimizes_the_sum_of_loss_and_penalty():
    inputs, targets = (torch.tensor(x) for x in _problem())
    model = nn.Linear(12, 1, bias=False).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        lr=1.0,
        max_iter=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
    )
    reg = Regularizer(model, L2(0.1), gate=AlwaysOpen(), mode="gradient").attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (model(inputs).squeeze(1) - targets).square().mean()
        loss.backward()
        return loss

    at_start = float(closure().detach() + reg.penalty_value())
    returned = optimizer.step(closure)
    assert float(returned.detach()) == pytest.approx(at_start, rel=1e-12)
    for _ in range(20):
        optimizer.step(closure)
    expected, _ = _fit(L2(0.1), _SGD["momentum"])
    assert torch.allclose(model.weight.detach(), expected, atol=1e-7)
    assert reg.num_steps == len(reg.history) == 21


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
def test_adaptive_optimizers_shrink_by_lr_times_strength(name):
    """Decoupled: with a zero gradient one step takes exactly lr * strength off each weight."""
    weight = nn.Parameter(torch.tensor([[1.0, -1.0, 0.0005]], dtype=torch.float64))
    options = {"weight_decay": 0.0} if name == "AdamW" else {}
    optimizer = getattr(torch.optim, name)([weight], lr=0.01, **options)
    Regularizer(nn.ParameterDict({"w": weight}), L1(0.1), gate=AlwaysOpen()).attach(optimizer)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert weight.detach()[0].tolist() == pytest.approx([0.999, -0.999, 0.0], abs=1e-15)
