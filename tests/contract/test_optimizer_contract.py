"""The contract of the Regularizer with every torch optimizer."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import strongreg
from contract.optimizers import every_optimizer, make_model, make_optimizer, same_bits, take_step, train
from strongreg import L1, AlwaysOpen, CoherenceGate, Delay, LinearRamp, Refit, Regularizer

# LBFGS of torch 2.8 does so, without us too
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
_MODES = pytest.mark.parametrize("mode", ["proximal", "gradient"])


def _parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def _dump(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _plain_state(optimizer):
    return {k: v for k, v in optimizer.state_dict().items() if not k.startswith("strongreg")}


@torch.no_grad()
def _kill_a_unit(model):
    for p in (*model[0].parameters(), model[2].weight.T):
        p[0] = 0.0
    model[0].weight[0, ::2] = model[2].weight[1, 0] = -0.0


@every_optimizer
@_MODES
@pytest.mark.parametrize(
    ("penalty", "gate", "schedule"),
    [
        pytest.param(L1(0.0), AlwaysOpen(), None, id="strength-0"),
        pytest.param(L1(0.1), CoherenceGate(1.0), LinearRamp(10, initial=0.0, final=0.0), id="factor-0"),
        pytest.param(L1(0.1), Delay(steps=10**9), None, id="never-open"),
        pytest.param(L1(0.0), AlwaysOpen(), Refit(3), id="strength-0-refit"),
        pytest.param(L1(0.0), AlwaysOpen(), Refit(0), id="strength-0-refit-at-once"),
        pytest.param(L1(0.1), Delay(steps=10**9), Refit(3), id="never-open-refit"),
        pytest.param(L1(0.1), AlwaysOpen(), Refit(3, LinearRamp(10, initial=0.0, final=0.0)), id="factor-0-refit"),
    ],
)
def test_a_penalty_that_never_acts_changes_no_bit(name, mode, penalty, gate, schedule):
    bare_model, model = make_model(name), make_model(name)
    for each in (bare_model, model):
        _kill_a_unit(each)  # gradients of 0 leave its weights at 0.0 and -0.0
    bare = make_optimizer(name, bare_model.parameters())
    optimizer = make_optimizer(name, model.parameters())
    Regularizer(model, penalty, gate=gate, schedule=schedule, mode=mode).attach(optimizer)
    for step in range(6):
        bare_loss = take_step(bare_model, bare, step)
        loss = take_step(model, optimizer, step)
        assert same_bits(loss, bare_loss)
    assert same_bits(_parameters(model), _parameters(bare_model))
    assert same_bits([p.grad for p in model.parameters()], [p.grad for p in bare_model.parameters()])
    assert same_bits(_plain_state(optimizer), bare.state_dict())


@every_optimizer
def test_proximal_mode_makes_exact_zeros_and_leaves_the_gradient_alone(name):
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    reg = Regularizer(model, L1(0.5), gate=AlwaysOpen()).attach(optimizer)
    seen = []
    # registered after ours, so it runs after ours: the gradient that the step has used
    optimizer.register_step_post_hook(lambda *_: seen.append([p.grad.clone() for p in model.parameters()]))
    train(model, optimizer, range(12))
    assert reg.summary().total.num_zeros > 0
    assert all(same_bits(s, g) for s, g in zip(seen[-1], [p.grad for p in model.parameters()], strict=True))
    weights = model[0].weight
    assert torch.equal(weights[weights.abs() < 1e-12], torch.zeros_like(weights[weights.abs() < 1e-12]))


@every_optimizer
def test_the_gradient_object_and_its_values_survive_a_proximal_step(name):
    if name.startswith("lbfgs"):
        pytest.skip("LBFGS evaluates gradients inside its step")
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    Regularizer(model, L1(0.5), gate=AlwaysOpen()).attach(optimizer)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = [(p.grad, p.grad.clone()) for p in model.parameters()]
    optimizer.step()
    for p, (grad, value) in zip(model.parameters(), before, strict=True):
        assert p.grad is grad
        assert same_bits(grad, value)


@every_optimizer
@_MODES
def test_parameters_keep_their_storage(name, mode):
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    before = [(p, p.data_ptr()) for p in model.parameters()]
    Regularizer(model, L1(0.1), gate=AlwaysOpen(), mode=mode, schedule=Refit(3)).attach(optimizer)
    train(model, optimizer, range(5))
    assert [(p, p.data_ptr()) for p in model.parameters()] == before


@every_optimizer
@_MODES
@pytest.mark.parametrize("resume_at", [1, 4, 7, 9])
@pytest.mark.parametrize("channel", ["optimizer", "own"])
def test_a_resumed_run_is_bit_exact(name, mode, resume_at, channel):
    def fresh():
        model = make_model(name)
        optimizer = make_optimizer(name, model.parameters())
        schedule = Refit(7, before=LinearRamp(3))
        gate = CoherenceGate(0.8, scope="layer")
        reg = Regularizer(model, L1(0.05), gate=gate, schedule=schedule, mode=mode, strength_scale="inverse_std")
        return model, optimizer, reg.attach(optimizer)

    model, optimizer, reg = fresh()
    for step in range(10):
        if step == resume_at:
            saved = _dump({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "reg": reg.state_dict()})
        take_step(model, optimizer, step)

    resumed_model, resumed_optimizer, resumed = fresh()
    with torch.no_grad():
        for p in resumed_model.parameters():
            p.add_(1.0)  # so that nothing that is not restored can be right by luck
    resumed_model.load_state_dict(saved["model"])
    if channel == "own":
        own = saved["optimizer"].pop("strongreg")
        assert same_bits(own, saved["reg"])
        with pytest.warns(UserWarning, match="has no entry 'strongreg'"):
            resumed_optimizer.load_state_dict(saved["optimizer"])
        resumed.load_state_dict(saved["reg"])
    else:
        resumed_optimizer.load_state_dict(saved["optimizer"])
    train(resumed_model, resumed_optimizer, range(resume_at, 10))
    assert same_bits(_parameters(resumed_model), _parameters(model))
    assert same_bits(resumed_optimizer.state_dict(), optimizer.state_dict())
    assert len(resumed.history) == 10
    assert str(resumed.summary()) == str(reg.summary())


@every_optimizer
def test_zeros_stay_zero_and_kept_weights_move_during_the_refit(name):
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    Regularizer(model, L1(0.3), gate=AlwaysOpen(), schedule=Refit(6)).attach(optimizer)
    train(model, optimizer, range(6))
    zeros = [(p == 0).clone() for p in model.parameters() if p.dim() == 2]
    kept = [p.detach().clone() for p in model.parameters() if p.dim() == 2]
    assert sum(int(z.sum()) for z in zeros) > 0
    train(model, optimizer, range(6, 10))
    weights = [p.detach() for p in model.parameters() if p.dim() == 2]
    for zero, before, weight in zip(zeros, kept, weights, strict=True):
        assert bool((weight[zero] == 0).all())
        assert zero.all() or not torch.equal(weight[~zero], before[~zero])


@every_optimizer
def test_detach_leaves_the_optimizer_as_it_was(name):
    model, bare_model = make_model(name), make_model(name)
    optimizer, bare = make_optimizer(name, model.parameters()), make_optimizer(name, bare_model.parameters())
    reg = Regularizer(model, L1(0.5), gate=AlwaysOpen()).attach(optimizer)
    reg.detach()
    train(model, optimizer, range(3))
    train(bare_model, bare, range(3))
    assert same_bits(_parameters(model), _parameters(bare_model))
    assert list(optimizer.state_dict()) == list(bare.state_dict())
    assert all(
        not getattr(optimizer, hooks) for hooks in dir(optimizer) if hooks.startswith("_optimizer_") and "hook" in hooks
    )


@every_optimizer
def test_step_returns_the_loss_of_the_closure(name):
    if name == "lbfgs-wolfe" or name == "lbfgs":
        pytest.skip("its return value is compared bit by bit in test_a_penalty_that_never_acts_changes_no_bit")
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    reg = Regularizer(model, L1(0.1), gate=AlwaysOpen()).attach(optimizer)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 6)).square().sum()
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert optimizer.step(closure=closure) is calls[1]
    assert len(calls) == reg.num_steps == len(reg.history) == 2
    assert reg.history["gradient_norm"][0] > 0


@every_optimizer
def test_a_closure_and_a_plain_step_give_the_same_weights(name):
    if name.startswith("lbfgs"):
        pytest.skip("LBFGS always takes a closure")
    results = []
    for with_closure in (False, True):
        model = make_model(name)
        optimizer = make_optimizer(name, model.parameters())
        reg = Regularizer(model, L1(0.05), gate=CoherenceGate(0.9)).attach(optimizer)
        for step in range(8):
            if not with_closure:
                take_step(model, optimizer, step)
                continue
            plain_step = optimizer.step
            optimizer.zero_grad()

            def closure(model=model, optimizer=optimizer, step=step, real=plain_step):
                optimizer.step = lambda: None  # take_step computes the gradient, the closure's caller steps
                loss = take_step(model, optimizer, step)
                optimizer.step = real
                return loss

            plain_step(closure)
        results.append((_parameters(model), reg.history["open"].tolist()))
    assert same_bits(results[0], results[1])


@every_optimizer
def test_model_can_be_copied_and_pickled_while_attached(name):
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    Regularizer(model, L1(0.1)).attach(optimizer)
    train(model, optimizer, range(2))
    clone = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert same_bits(_parameters(clone), _parameters(model))
    assert same_bits(_parameters(loaded), _parameters(model))


@every_optimizer
def test_no_gradient_means_no_penalty(name):
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    reg = Regularizer(model, L1(10.0), gate=AlwaysOpen()).attach(optimizer)
    model[2].weight.requires_grad_(False)  # frozen after attaching: its grad stays None
    before = model[2].weight.detach().clone()
    first = model[0].weight.detach().clone()
    train(model, optimizer, range(2))
    assert same_bits(model[2].weight.detach(), before)
    assert not torch.equal(model[0].weight, first)
    assert reg.summary().layers[1].open_fraction == 0


@every_optimizer
def test_a_non_finite_gradient_closes_the_gate_is_counted_and_warned_about_once(name):
    if name.startswith("lbfgs"):
        pytest.skip("LBFGS itself fails on a non-finite gradient")
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    reg = Regularizer(model, L1(10.0), gate=AlwaysOpen()).attach(optimizer)
    with pytest.warns(RuntimeWarning, match="NaN or infinity") as caught:
        for value in (float("nan"), float("inf")):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            model[0].weight.grad[0, 0] = value
            kept = model[2].weight.detach().clone()
            optimizer.step()
            if name.startswith(("sgd", "adam", "adagrad")) and "weight-decay" not in name and name != "adamw":
                # a zero gradient moves no weight of these, so only the penalty could have: it did not
                assert reg.history.per_layer("open")[-1].tolist() == [0, 0]
            assert kept.shape == model[2].weight.shape
    assert len([w for w in caught if "NaN or infinity" in str(w.message)]) == 1
    assert reg.num_nonfinite == 2
    assert reg.history["open"].tolist() == [0.0, 0.0]
    assert "2 of them with a non-finite gradient" in str(reg.summary())


@every_optimizer
def test_the_penalty_follows_the_learning_rate_of_a_scheduler(name):
    if name == "lbfgs-wolfe":
        pytest.skip("torch's own line search divides by the learning rate 0")
    results = []
    for strength in (0.0, 5.0):
        model = make_model(name)
        optimizer = make_optimizer(name, model.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step >= 2 else 0.0)
        Regularizer(model, L1(strength), gate=AlwaysOpen()).attach(optimizer)
        weights = []
        for step in range(3):
            take_step(model, optimizer, step)
            scheduler.step()
            weights.append(_parameters(model))
        results.append(weights)
    free, penalized = results
    assert same_bits(penalized[:2], free[:2])  # learning rate 0: nothing to impose
    assert not same_bits(penalized[2], free[2])


def test_public_names_cover_the_contract():
    assert {"Regularizer", "CoherenceGate", "L1"} <= set(strongreg.__all__)
    assert isinstance(make_model(), nn.Module)
