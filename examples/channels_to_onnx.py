"""A group penalty empties channels, shrink removes them, and what is left is an ONNX file that onnxruntime runs."""

import tempfile
from pathlib import Path

import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.benchmark import Timer

import strongreg

EPOCHS, BATCH_SIZE = 30, 64
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16).float().view(-1, 1, 8, 8)
x, x_test, y, y_test = train_test_split(images, torch.tensor(labels), random_state=0)


def train(penalty: strongreg.Penalty) -> nn.Module:
    """A small CNN. Half of the epochs empty filters and neurons, the other half refits those that are left."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 - 2 * epoch / EPOCHS))
    refit = strongreg.Refit(start=EPOCHS // 2 * -(-len(x) // BATCH_SIZE))
    strongreg.Regularizer(model, penalty, schedule=refit).attach(optimizer)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        scheduler.step()
    return model.eval()


@torch.no_grad()
def to_onnx(name: str, model: nn.Module) -> None:
    """Write a file and run it on the test images: its size, accuracy, time, and how far it is from torch."""
    exported = strongreg.export_onnx(model, x_test[:2], Path(tempfile.mkdtemp()) / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported.path, options)
    feed = {session.get_inputs()[0].name: x_test.numpy()}
    outputs = torch.tensor(session.run(None, feed)[0])
    accuracy = (outputs.argmax(dim=1) == y_test).float().mean().item()
    print(f"{name}: test accuracy {accuracy:.1%}, {exported.file_bytes:,} bytes of ONNX")
    time = Timer("session.run(None, feed)", globals={"session": session, "feed": feed}).blocked_autorange().median
    difference = (outputs - model(x_test)).abs().max().item()
    print(f"  {1e3 * time:.2f} ms on one thread; largest difference from torch {difference:.1e}")


to_onnx("dense", train(strongreg.GroupL2(0)))
small, report = strongreg.shrink_and_report(train(strongreg.GroupL2(0.015)), x_test[:2])
print(report)
to_onnx("shrunk", small)
