"""A sweep from Python: many strengths by your own training function, a choice by validation images, then the test."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import strongreg

EPOCHS, BATCH_SIZE = 30, 64
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)
x_rest, x_test, y_rest, y_test = train_test_split(images, labels, random_state=0)
x, x_validation, y, y_validation = train_test_split(x_rest, y_rest, random_state=0)


def train(strength: float, x: Tensor, y: Tensor) -> tuple[nn.Module, strongreg.Summary]:
    """Stands in for yours; of strength 0 the penalty does nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 - 2 * epoch / EPOCHS))
    refit = strongreg.Refit(start=EPOCHS // 2 * -(-len(x) // BATCH_SIZE))
    reg = strongreg.Regularizer(model, strongreg.L1(strength), schedule=refit).attach(optimizer)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        scheduler.step()
    return model, reg.summary()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of right answers."""
    return (model(x).argmax(dim=1) == y).float().mean().item()


def trial(strength: float) -> tuple[float, float]:
    """What the search looks for: accuracy on validation images, and times fewer weights."""
    model, summary = train(strength, x, y)
    reached = accuracy(model, x_validation, y_validation)
    if reached < 0.2:  # at chance
        raise strongreg.DeadRunError
    return reached, summary.total.compression


# with storage="sqlite:///search.db" it goes on where it was stopped, and processes that make the same call share it
found = strongreg.search_strength(trial, 5e-4, 1e-2, num_trials=6)
best = found.best(max_loss=0.03)  # three points may be given up: 10 of 337 images
for tried in found.trials:
    chosen = " (chosen)" if tried is best else ""
    print(f"{tried.strength:.5f}: validation {tried.accuracy:.1%}, {tried.compression:.1f} times fewer weights{chosen}")
for strength in (0, best.strength):  # once more, with all images but those of the test
    model, summary = train(strength, x_rest, y_rest)
    times = summary.total.compression
    print(f"{strength:.5f}: test {accuracy(model, x_test, y_test):.1%}, {times:.1f} times fewer weights")
