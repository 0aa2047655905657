"""Fully sharded training, FSDP2: each process holds a part of the weights (torchrun --nproc-per-node 2 sharded.py)."""

import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, Optimizer

import strongreg
from strongreg.integrations.distributed_checkpoint import StatefulRegularizer


def build() -> tuple[nn.Module, Optimizer, strongreg.Regularizer]:
    """The two lines are those of every loop; they come after ``fully_shard``."""
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
    fully_shard(model)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = strongreg.Refit(start=300)
    return model, optimizer, strongreg.Regularizer(model, strongreg.L1(0.01), schedule=schedule).attach(optimizer)


def train(model: nn.Module, optimizer: Optimizer, num_steps: int) -> None:
    """Of 20 inputs two matter; each process draws its own share of the data."""
    for _ in range(num_steps):
        inputs, noise = torch.randn(64, 20, generator=draws), torch.randn(64, 1, generator=draws)
        answers = inputs[:, :1] * inputs[:, 1:2] + 0.3 * noise
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), answers).backward()
        optimizer.step()


dist.init_process_group()
torch.manual_seed(0)  # the same weights in all processes
draws = torch.Generator().manual_seed(dist.get_rank())
model, optimizer, regularizer = build()
train(model, optimizer, 200)

folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
dist.broadcast_object_list(folder)
weights, state = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optimizer": state, "strongreg": StatefulRegularizer(regularizer)}, checkpoint_id=folder[0])

model, optimizer, regularizer = build()  # any number of processes may go on from here
weights, state = get_state_dict(model, optimizer)
dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
with warnings.catch_warnings(action="ignore"):  # that our state is not there: it is read next
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
dcp.load({"strongreg": StatefulRegularizer(regularizer)}, checkpoint_id=folder[0])
train(model, optimizer, 200)
summary = regularizer.summary()  # all processes must ask
if dist.get_rank() == 0:
    print(summary)
dist.destroy_process_group()
