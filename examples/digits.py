"""Digits in 30 lines: a small CNN dense, under an L1 penalty that it does not endure, and under it with the gate."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from strongreg import L1, AlwaysOpen, CoherenceGate, Refit, Regularizer

EPOCHS, BATCH_SIZE = 20, 64
images, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(torch.tensor(images / 16).float(), torch.tensor(labels), random_state=0)

for penalty, gate in ((L1(0), AlwaysOpen()), (L1(3e-3), AlwaysOpen()), (L1(3e-3), CoherenceGate(0.7))):
    torch.manual_seed(0)
    convolutions = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()
    head = nn.Flatten(), nn.Linear(512, 100), nn.ReLU(), nn.Linear(100, 10)
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *convolutions, *head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 - 2 * epoch / EPOCHS))
    refit = Refit(start=EPOCHS // 2 * -(-len(x) // BATCH_SIZE))  # the second half trains the weights that are left
    reg = Regularizer(model, penalty, gate=gate, schedule=refit, warn_of_collapse=False).attach(optimizer)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        scheduler.step()
    accuracy = (model(x_test).argmax(dim=1) == y_test).float().mean().item()
    print(f"{penalty}, {gate}: accuracy {accuracy:.1%}, {reg.summary().total.compression:,.1f} times fewer weights")
