"""The two lines in a training loop of your own: a digit classifier with more than 50 times fewer weights.

The strength is beyond what the network endures: with gate=strongreg.AlwaysOpen() it ends at chance.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import strongreg

EPOCHS, BATCH_SIZE = 40, 64

images, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(torch.tensor(images / 16).float(), torch.tensor(labels), random_state=0)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
# the refit needs learning rate left: hold it for half of the epochs
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 - 2 * epoch / EPOCHS))

# line one: what to impose, when; the second half of the steps refits the kept weights
refit = strongreg.Refit(start=EPOCHS // 2 * -(-len(x) // BATCH_SIZE))
# line two: on the optimizer you have
reg = strongreg.Regularizer(model, strongreg.L1(5e-3), gate=strongreg.CoherenceGate(0.7), schedule=refit).attach(
    optimizer
)

for _ in range(EPOCHS):
    for batch in torch.randperm(len(x)).split(BATCH_SIZE):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    scheduler.step()

accuracy = (model(x_test).argmax(dim=1) == y_test).float().mean().item()
print(reg.summary())
print(f"test accuracy {accuracy:.1%}")
