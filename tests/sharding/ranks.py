"""What each of several processes does in test_sharded_networks: it trains a network alone and its part of a shared one.

Every process has the whole network as plain tensors, too, and trains it on the whole batch; the shared one it trains on
its share of the batch. It says by how much they differ.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard

from sharding.cases import LAYOUTS, Case, OfNorm, batches, fsdp, new_network, share_of, train
from strongreg import L1, Regularizer
from strongreg.dtensors import local, whole
from strongreg.integrations.distributed_checkpoint import StatefulRegularizer


def in_all_processes(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def step_silently(optimizer: torch.optim.Optimizer) -> None:
    """A step that may warn of what is not finite."""
    with warnings.catch_warnings(record=True):
        optimizer.step()


def plain(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(param.detach()) for name, param in model.named_parameters()}


def compare(case: Case) -> dict[str, Any]:
    """Train a network alone and shared out; what they differ by."""
    alone, shared = new_network(), new_network()
    forward = LAYOUTS[case.layout](shared)
    optimizer, reg_alone = case.build(alone)
    train(alone, optimizer, batches(case.num_steps), slice(None))
    optimizer, reg = case.build(shared)
    train(forward, optimizer, batches(case.num_steps), share_of(case.layout))
    ours, theirs = plain(shared), plain(alone)
    opened, summary = reg.history.per_layer("open"), reg.summary()
    seen = in_all_processes(opened.tolist())
    return {
        "weights": max((ours[name] - theirs[name]).abs().max().item() for name in theirs),
        "history": max(
            float(abs(reg.history.per_layer(name) - reg_alone.history.per_layer(name)).max())
            for name in ("coherence", "gradient_norm", "penalty_norm", "weight_norm")
        ),
        "value": abs(float(reg.penalty_value()) - float(reg_alone.penalty_value())),
        "same_decisions": all(each == seen[0] for each in seen)
        and bool((opened == reg_alone.history.per_layer("open")).all()),
        "same_summary": str(summary) == str(reg_alone.summary()),
        "open": float(opened.mean()),
        "zeros": summary.total.num_zeros,
        "scales": max(abs(a - b) for a, b in zip(reg._scales or (), reg_alone._scales or (), strict=True)),
    }


def main() -> None:
    """Do what a file of the test asks, and write what was found."""
    task, directory = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo")
    try:
        found = TASKS[task](directory)
        if dist.get_rank() == 0:
            (directory / f"{task}-{dist.get_world_size()}.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


def compare_all(directory: Path) -> list[dict[str, Any]]:
    cases = [Case(**case) for case in json.loads((directory / "cases.json").read_text())]
    return [compare(case) for case in cases]


CHECKPOINTED = Case("fsdp", "l1", refit=10)
SPLIT = 6  # just after a step at a closed gate, which has set zeros free


def save_checkpoint(directory: Path) -> dict[str, Any]:
    """Train the first steps in these processes and save; then go on, for a run that was not interrupted."""
    model = fsdp(new_network()) if dist.get_world_size() > 1 else new_network()
    optimizer, reg = CHECKPOINTED.build(model)
    share = share_of("fsdp")
    train(model, optimizer, batches()[:SPLIT], share)
    weights, state = get_state_dict(model, optimizer)
    everything = {"model": weights, "optimizer": state, "strongreg": StatefulRegularizer(reg)}
    dcp.save(everything, checkpoint_id=directory / f"from-{dist.get_world_size()}")
    hidden = sum(int(whole(mask).sum()) for mask in reg.state_dict()["zero_masks"].values())
    train(model, optimizer, batches()[SPLIT:], share)
    return {"weights": {name: w.tolist() for name, w in plain(model).items()}, "hidden": hidden, "steps": reg.num_steps}


def load_checkpoint(directory: Path) -> dict[str, Any]:
    """Go on with what another number of processes has saved."""
    size = dist.get_world_size()
    model = fsdp(new_network(seed=5)) if size > 1 else new_network(seed=5)
    optimizer, reg = CHECKPOINTED.build(model)
    weights, state = get_state_dict(model, optimizer)
    checkpoint = directory / f"from-{3 - size}"
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=checkpoint)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    dcp.load({"strongreg": StatefulRegularizer(reg)}, checkpoint_id=checkpoint)
    train(model, optimizer, batches()[SPLIT:], share_of("fsdp"))
    return {
        "weights": {name: w.tolist() for name, w in plain(model).items()},
        "steps": reg.num_steps,
        "records": len(reg.history),
    }


def nonfinite_in_one_process() -> dict[str, Any]:
    """A NaN in one part of a gradient closes the gate of all."""
    model = fsdp(new_network())
    optimizer, reg = Case("fsdp", "l1").build(model)
    model(batches()[0][0]).sum().backward()
    if dist.get_rank() == 1:
        local(model.conv.bias.grad).fill_(float("nan"))
    step_silently(optimizer)
    seen = in_all_processes((reg.num_nonfinite, reg.history["open"].tolist()))
    return {"seen": seen}


def nonfinite_beside_the_shared() -> dict[str, Any]:
    """A NaN in one process, in a weight that is no DTensor; the gathers of the others must not wait for it."""
    model = new_network()
    ignored = {model.conv.weight, model.conv.bias}
    fully_shard(model, ignored_params=ignored)  # type: ignore[arg-type]
    optimizer, reg = Case("fsdp", "columns").build(model)
    for i, (inputs, _) in enumerate(batches()[:3]):
        optimizer.zero_grad()
        model(inputs).sum().backward()
        if dist.get_rank() == i == 1:
            model.conv.weight.grad.fill_(float("nan"))
        step_silently(optimizer)
    seen = in_all_processes((reg.num_nonfinite, reg.history["open"].tolist()))
    return {"seen": seen}


def value_in_bfloat16() -> dict[str, Any]:
    model = fsdp(new_network().bfloat16())
    reg = Regularizer(model, OfNorm(0.1)).attach(torch.optim.SGD(model.parameters(), lr=0.1))
    return {
        "value": float(reg.penalty_value()),
        "norms": sum(float(whole(t.param.detach()).norm()) for t in reg.targets),
    }


def fully_sharded_1() -> dict[str, Any]:
    model = FullyShardedDataParallel(new_network(), use_orig_params=True, device_id=torch.device("cpu"))
    try:
        Regularizer(model, {"*weight": L1(0.1)})
    except TypeError as error:
        return {"error": str(error)}
    return {}


def saved_by_each_process() -> dict[str, Any]:
    """The optimizer's own state through torch.save, in the middle of a refit to come; each process its part."""
    model = fsdp(new_network())
    optimizer, _ = CHECKPOINTED.build(model)
    train(model, optimizer, batches()[:SPLIT], share_of("fsdp"))
    stream = io.BytesIO()
    torch.save(optimizer.state_dict(), stream)
    state = torch.load(io.BytesIO(stream.getvalue()), weights_only=True)
    resumed = fsdp(new_network(seed=5))
    optimizer_resumed, _ = CHECKPOINTED.build(resumed)
    optimizer_resumed.load_state_dict(state)
    resumed.load_state_dict(model.state_dict())
    train(model, optimizer, batches()[SPLIT:], share_of("fsdp"))
    train(resumed, optimizer_resumed, batches()[SPLIT:], share_of("fsdp"))
    ours, theirs = plain(resumed), plain(model)
    return {
        "num_masks": len(state["strongreg"]["zero_masks"]),
        "identical": all(bool((ours[name] == theirs[name]).all()) for name in theirs),
    }


def state_of_one_process() -> dict[str, Any]:
    """The first process asks for the optimizer's state, and the others do not."""
    model = fsdp(new_network())
    optimizer, _ = CHECKPOINTED.build(model)
    train(model, optimizer, batches()[:SPLIT], share_of("fsdp"))
    if dist.get_rank() == 0:
        return {"num_masks": len(optimizer.state_dict()["strongreg"]["zero_masks"])}
    return {}


def built_too_early() -> dict[str, Any]:
    """The Regularizer first, then fully_shard."""
    model = new_network()
    reg = Regularizer(model, L1(0.1))
    fsdp(model)
    try:
        reg.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    except ValueError as error:
        return {"error": str(error)}
    return {}


def bfloat16_and_clipped() -> dict[str, Any]:
    """Gradients in bfloat16 of weights in float32, every other one accumulated, norms clipped."""
    model = new_network().float()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(model, mp_policy=policy)
    optimizer, reg = Case("fsdp", "of_norm").build(model)
    for i, (inputs, _) in enumerate(batches()):
        model.set_requires_gradient_sync(i % 2 == 1)  # type: ignore[operator]
        (model(inputs.bfloat16()) - 3).square().mean().backward()
        if i % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    seen = in_all_processes(reg.history["open"].tolist())
    return {"seen": seen, "steps": reg.num_steps, "weights": reg.summary().total.num_weights}


def all_odd(directory: Path) -> dict[str, Any]:
    del directory
    odd = (
        nonfinite_in_one_process,
        nonfinite_beside_the_shared,
        value_in_bfloat16,
        fully_sharded_1,
        saved_by_each_process,
        state_of_one_process,
        built_too_early,
        bfloat16_and_clipped,
    )
    return {each.__name__: each() for each in odd}


TASKS: dict[str, Callable[[Path], Any]] = {
    "compare_all": compare_all,
    "all_odd": all_odd,
    "save_checkpoint": save_checkpoint,
    "load_checkpoint": load_checkpoint,
}

if __name__ == "__main__":
    main()
