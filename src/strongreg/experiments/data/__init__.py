"""Images and texts as uint8 tensors that live on the device as a whole: sources, splits, what a network reads."""

from strongreg.experiments.data.augment import Augmentation
from strongreg.experiments.data.datasets import from_datasets
from strongreg.experiments.data.examples import Data, Examples, InputShape
from strongreg.experiments.data.images import ImageData, Split
from strongreg.experiments.data.load import DATA_SETS, input_format, load_data
from strongreg.experiments.data.text import TextData

__all__ = [
    "DATA_SETS",
    "Augmentation",
    "Data",
    "Examples",
    "ImageData",
    "InputShape",
    "Split",
    "TextData",
    "from_datasets",
    "input_format",
    "load_data",
]
