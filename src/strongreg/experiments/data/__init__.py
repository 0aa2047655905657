"""Image data sets as uint8 tensors that live on the device as a whole: sources, splits, normalization, augmentation."""

from strongreg.experiments.data.augment import Augmentation
from strongreg.experiments.data.datasets import from_datasets
from strongreg.experiments.data.images import ImageData, Split
from strongreg.experiments.data.load import DATA_SETS, image_format, load_data

__all__ = ["DATA_SETS", "Augmentation", "ImageData", "Split", "from_datasets", "image_format", "load_data"]
