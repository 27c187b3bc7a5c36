"""Images as training, validation and test splits."""

from flatsearch.data.loading import load_data
from flatsearch.data.splits import Augmentation, ImageData, Split

__all__ = ["Augmentation", "ImageData", "Split", "load_data"]
