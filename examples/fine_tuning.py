"""A trained network of your own, made 20 times smaller by fine-tuning it under a penalty, and kept as a small file."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import strongreg

EPOCHS, FINE_TUNING, BATCH_SIZE = 20, 40, 64
images, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(torch.tensor(images / 16).float(), torch.tensor(labels), random_state=0)


class Network(nn.Module):
    """Stands in for yours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """An ordinary loop. The learning rate is held for half of the epochs, since the refit needs some left."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 - 2 * epoch / epochs))
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        scheduler.step()


torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
trained = Network()
train(trained, torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9), EPOCHS)
torch.save(trained.state_dict(), folder / "trained.pt")

model = Network()
model.load_state_dict(torch.load(folder / "trained.pt", weights_only=True))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
refit = strongreg.Refit(start=FINE_TUNING // 2 * -(-len(x) // BATCH_SIZE))
# the strength adapts until 20 times fewer weights are left: 1e-3 is where it begins
reg = strongreg.Regularizer(model, strongreg.L1(1e-3), schedule=refit, target_compression=20).attach(optimizer)
train(model, optimizer, FINE_TUNING)
print(reg.summary())
strongreg.save_packed(model, folder / "small.packed")
strongreg.load_packed(folder / "small.packed", small := Network())

for network, file in ((trained, folder / "trained.pt"), (small, folder / "small.packed")):
    accuracy = (network(x_test).argmax(dim=1) == y_test).float().mean().item()
    print(f"{file.name}: test accuracy {accuracy:.1%}, {file.stat().st_size:,} bytes")
