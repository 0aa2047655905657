"""In the Trainer of Lightning: a callback. A digit classifier with 50 times fewer weights.

Without the callback, the two lines in configure_optimizers do the same, but for the logs.
"""

import logging
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import strongreg
from strongreg.integrations.lightning import RegularizerCallback

EPOCHS, BATCH_SIZE = 20, 64

# Lightning's hints, and how it uses torch
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers")
warnings.filterwarnings("ignore", r".isinstance\(treespec, LeafSpec\)", FutureWarning)


class Classifier(LightningModule):
    """An ordinary module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        # the refit needs learning rate left: hold it for half of the epochs
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 - 2 * epoch / EPOCHS))
        return [optimizer], [scheduler]


images, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(torch.tensor(images / 16).float(), torch.tensor(labels), random_state=0)
loader = DataLoader(TensorDataset(x, y), batch_size=BATCH_SIZE, shuffle=True)

torch.manual_seed(0)
module = Classifier()
# what to impose, when; the second half of the steps refits the kept weights
callback = RegularizerCallback(strongreg.L1(5e-3), schedule=strongreg.Refit(start=EPOCHS // 2 * len(loader)))
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[callback], **quiet).fit(module, loader)

accuracy = (module.net(x_test).argmax(dim=1) == y_test).float().mean().item()
print(callback.regularizer.summary())
print(f"test accuracy {accuracy:.1%}")
