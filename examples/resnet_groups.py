"""A group penalty on a ResNet: whole channels go, through the residual sums, too, and shrink takes them out."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import strongreg

EPOCHS, REFIT_AT, BATCH_SIZE = 16, 11, 32
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16).float().view(-1, 1, 8, 8)
x, x_test, y, y_test = train_test_split(images, torch.tensor(labels), random_state=0)


def conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """A convolution with batch normalization."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions next to a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3, 1)
        self.shortcut = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x).relu()) + self.shortcut(x)).relu()


def train(strength: float) -> nn.Module:
    """An ordinary loop. The weight decay takes the scales of the normalization along, so that more channels go."""
    torch.manual_seed(0)
    layers = [conv(1, 32, 3, stride=2), nn.ReLU(), Block(32, 32, stride=1), Block(32, 64, stride=2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (EPOCHS - i) / (EPOCHS - REFIT_AT)))
    penalty = strongreg.GroupL2(strength, weight_by_size=True)  # a group is a filter
    refit = strongreg.Refit(start=REFIT_AT * -(-len(x) // BATCH_SIZE))
    strongreg.Regularizer(model, penalty, gate=strongreg.CoherenceGate(0.3), schedule=refit).attach(optimizer)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        scheduler.step()
    return model.eval()


dense = train(0)
small, report = strongreg.shrink_and_report(train(6e-3), x_test[:1])
rows = zip(("dense", "shrunk"), (dense, small), report.num_parameters, report.flops, strict=True)
for name, model, parameters, flops in rows:
    accuracy = (model(x_test).argmax(dim=1) == y_test).float().mean().item()
    print(f"{name}: test accuracy {accuracy:.1%}, {parameters:,} parameters, {flops:,} FLOPs for an image")
