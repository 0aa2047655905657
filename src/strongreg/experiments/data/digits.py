"""1,797 handwritten digits of 8x8 pixels (UCI), which scikit-learn carries: nothing to download."""

from __future__ import annotations

import torch

from strongreg.experiments.data.images import Split
from strongreg.experiments.data.optional import import_optional
from strongreg.experiments.data.splits import Source

DIGITS_MAX_VALUE = 16.0
DIGITS_SHAPE = (1, 8, 8)
DIGITS_NUM_CLASSES = 10
_SPLIT_SEED = 0


def read_digits() -> Source:
    """Read the digits, a stratified fifth of them held out for the test, the same ones always.

    Returns:
        1,437 training and 360 test images of one channel with values 0 to 16.

    Raises:
        UserError: scikit-learn is missing.
    """
    purpose = "the digits data"
    datasets = import_optional("sklearn.datasets", "scikit-learn", purpose)
    selection = import_optional("sklearn.model_selection", "scikit-learn", purpose)
    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images, dtype=torch.uint8).unsqueeze(1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    train, test = selection.train_test_split(
        range(len(labels)), test_size=0.2, random_state=_SPLIT_SEED, stratify=bunch.target
    )
    every = Split(images, labels)
    names = tuple(str(name) for name in bunch.target_names)
    return Source(every.select(torch.tensor(train)), every.select(torch.tensor(test)), names)
