"""Save in the middle of training and go on elsewhere: the optimizer's state carries the regularizer's."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import strongreg


def build() -> tuple[nn.Module, torch.optim.Optimizer, strongreg.Regularizer]:
    """A network with different penalties for its two halves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    penalties = {"0.weight": strongreg.GroupL2(0.02), "*.weight": strongreg.L1(0.05)}
    return model, optimizer, strongreg.Regularizer(model, penalties, schedule=strongreg.Refit(150)).attach(optimizer)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """An ordinary loop on made-up images."""
    for step in steps:
        batch = torch.Generator().manual_seed(step)
        images, labels = torch.randn(32, 1, 8, 8, generator=batch), torch.randint(10, (32,), generator=batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


whole, optimizer, _ = build()
train(whole, optimizer, range(200))

first, optimizer, _ = build()
train(first, optimizer, range(100))
file = Path(tempfile.mkdtemp()) / "checkpoint.pt"
torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)

second, optimizer, reg = build()
checkpoint = torch.load(file, weights_only=True)
second.load_state_dict(checkpoint["model"])
optimizer.load_state_dict(checkpoint["optimizer"])
train(second, optimizer, range(100, 200))

same = all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))
print(f"bit for bit the run without interruption: {same}")
print(reg.summary())
