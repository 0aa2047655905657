"""In a loop of Accelerate: two lines, after prepare. With accumulation, bfloat16; about 45 times fewer weights."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import strongreg

EPOCHS, BATCH_SIZE, ACCUMULATE = 20, 32, 2

images, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(torch.tensor(images / 16).float(), torch.tensor(labels), random_state=0)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
# the refit needs learning rate left: hold it for half of the epochs
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 - 2 * epoch / EPOCHS))
loader = DataLoader(TensorDataset(x, y), batch_size=BATCH_SIZE, shuffle=True)

accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=ACCUMULATE)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

# what to impose, when, counted in steps of the optimizer; the second half refits the kept weights
refit = strongreg.Refit(start=EPOCHS // 2 * -(-len(loader) // ACCUMULATE))
# on the prepared optimizer: accelerator.save_state and load_state carry the state of it
reg = strongreg.Regularizer(model, strongreg.L1(5e-3), schedule=refit).attach(optimizer)

for _ in range(EPOCHS):
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
    scheduler.step()

with torch.no_grad():
    accuracy = (model(x_test).argmax(dim=1) == y_test).float().mean().item()
print(reg.summary())
print(f"test accuracy {accuracy:.1%}")
