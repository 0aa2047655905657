"""What the penalty must be coherent with: the loss gradient under SGD, the step under optimizers that rescale it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from contract.optimizers import SPECS, every_optimizer, make_model, make_optimizer, train
from strongreg import L1, L2, AlwaysOpen, CoherenceGate, Regularizer
from strongreg.optimizers import follows_gradient

_FOLLOWING = {"SGD", "ASGD", "LBFGS"}


def _cosine(pull, penalty_gradient):
    total = pull + penalty_gradient
    return float((pull * total).sum() / (pull.norm() * total.norm()))


@every_optimizer
def test_which_optimizers_follow_the_gradient(name):
    optimizer = make_optimizer(name, make_model(name).parameters())
    assert follows_gradient(optimizer) == (SPECS[name][0] in _FOLLOWING)


@pytest.mark.parametrize("name", [name for name, (kind, _) in SPECS.items() if kind not in _FOLLOWING])
def test_the_coherence_is_that_of_the_step_taken(name):
    """Against a bare optimizer beside it: the step that would have been taken without penalty."""
    model, bare = make_model(name), make_model(name)
    optimizer, bare_optimizer = make_optimizer(name, model.parameters()), make_optimizer(name, bare.parameters())
    reg = Regularizer(model, L1(0.3), gate=CoherenceGate(1.0)).attach(optimizer)
    for step in range(4):
        before = [p.detach().clone() for p in bare.parameters() if p.dim() == 2]
        train(model, optimizer, [step])
        train(bare, bare_optimizer, [step])
        after = [p.detach() for p in bare.parameters() if p.dim() == 2]
        lr = float(bare_optimizer.param_groups[0]["lr"])
        size = lr / (1 - bare_optimizer.param_groups[0].get("momentum", 0)) if "rmsprop" in name else lr
        pulls = [(w - v) / size for w, v in zip(before, after, strict=True)]
        expected = [_cosine(pull, 0.3 * w.sign()) for pull, w in zip(pulls, before, strict=True)]
        assert reg.history.per_layer("coherence")[-1] == pytest.approx(expected, abs=1e-4)
        grads = [p.grad for p in bare.parameters() if p.dim() == 2]
        norms = [float(grad.norm()) for grad in grads]
        assert reg.history.per_layer("gradient_norm")[-1] == pytest.approx(norms, rel=1e-4)


def test_for_plain_sgd_both_are_the_same():
    histories = []
    for coherence_of in ("gradient", "step"):
        model = make_model().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reg = Regularizer(model, L1(0.05), coherence_of=coherence_of).attach(optimizer)
        for step in range(10):
            optimizer.zero_grad()
            batch = torch.Generator().manual_seed(step)
            inputs = torch.randn(16, 6, generator=batch, dtype=torch.float64)
            nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long()).backward()
            optimizer.step()
        histories.append((reg, [p.detach().clone() for p in model.parameters()]))
    (by_gradient, weights), (by_step, same_weights) = histories
    assert by_step.history["coherence"] == pytest.approx(by_gradient.history["coherence"], abs=1e-6)
    assert by_step.history["open"].tolist() == by_gradient.history["open"].tolist()
    assert by_gradient.history["open"].mean() > 0
    assert all(torch.equal(p, q) for p, q in zip(weights, same_weights, strict=True))


@pytest.mark.parametrize(("coherence_of", "opened"), [("auto", 1.0), ("step", 1.0), ("gradient", 0.0)])
def test_a_weight_decay_of_1_under_adamw_is_let_through(coherence_of, opened):
    """Compared with the raw gradient, which Adam's step does not depend on in size, the gate would never open."""
    torch.manual_seed(0)
    model = nn.Linear(20, 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    reg = Regularizer(model, L2(1.0), coherence_of=coherence_of).attach(optimizer)
    inputs = torch.randn(64, 20)
    for _ in range(20):
        optimizer.zero_grad()
        (0.01 * model(inputs).mean()).backward()
        optimizer.step()
    assert reg.history["open"].mean() == opened


def test_a_learning_rate_of_0_moves_nothing():
    model = make_model("adam")
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    reg = Regularizer(model, L1(1.0), gate=AlwaysOpen()).attach(optimizer)
    train(model, optimizer, range(3))
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert not any(math.isnan(c) for c in reg.history["coherence"])


def test_gradients_taken_away_in_another_hook_make_no_difference():
    results = []
    for clear in (False, True):
        model = make_model("adamw")
        optimizer = make_optimizer("adamw", model.parameters())
        if clear:
            optimizer.register_step_post_hook(lambda optimizer, args, kwargs: optimizer.zero_grad())
        Regularizer(model, L1(0.2), gate=AlwaysOpen()).attach(optimizer)
        train(model, optimizer, range(4))
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_the_step_is_not_known_in_gradient_mode():
    with pytest.raises(ValueError, match=r"coherence_of='step' needs mode='proximal'"):
        Regularizer(make_model(), L1(0.1), mode="gradient", coherence_of="step")
    with pytest.raises(ValueError, match=r"coherence_of='grad': must be one of 'auto', 'gradient', 'step'"):
        Regularizer(make_model(), L1(0.1), coherence_of="grad")
