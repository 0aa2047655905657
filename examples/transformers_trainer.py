"""In the Trainer of Hugging Face Transformers: a callback. A small ResNet with 9 times fewer weights.

The same callback in a run that goes on from a checkpoint goes on from there, too.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import strongreg
from strongreg.integrations.transformers import RegularizerCallback

EPOCHS, BATCH_SIZE = 12, 64

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(labels)
x, x_test, y, y_test = train_test_split(images, labels, random_state=0)
dataset = [{"pixel_values": image, "labels": label} for image, label in zip(x, y, strict=True)]
num_steps = EPOCHS * -(-len(x) // BATCH_SIZE)

torch.manual_seed(0)
size = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "basic"}
model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **size))

arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    num_train_epochs=EPOCHS,
    per_device_train_batch_size=BATCH_SIZE,
    optim="sgd",
    optim_args="momentum=0.9",
    learning_rate=0.05,
    lr_scheduler_type="cosine",
    max_grad_norm=0,  # clipping to a norm far below the usual one closes the gate
    logging_steps=num_steps // 5,
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
)
# what to impose, when; the second half of the steps refits the kept weights
callback = RegularizerCallback(strongreg.L1(1e-2), schedule=strongreg.Refit(start=num_steps // 2))
Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[callback]).train()

with torch.no_grad():
    accuracy = (model.eval()(x_test).logits.argmax(dim=1) == y_test).float().mean().item()
print(callback.regularizer.summary())
print(f"test accuracy {accuracy:.1%}")
