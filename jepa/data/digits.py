"""Handwritten digits: 1,797 images, 8 x 8, gray in 17 steps, 10 classes.

Metric: accuracy. Source: scikit-learn's `load_digits`, a copy of the test set of UCI's "Optical
Recognition of Handwritten Digits"; it comes with scikit-learn, so nothing is downloaded. It has no
published split.
"""

from typing import cast

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from jepa.data.images import Card, Collection, ImageData
from jepa.data.pixels import Images


class Digits(ImageData):
    """The offline default."""

    card = Card(
        source="scikit-learn, load_digits",
        images={"train": 1797},
        shape=(1, 8, 8),
        classes=tuple("0123456789"),
    )

    def load(self) -> Collection:
        """Return all images; their values 0 to 16 become 0 to 255."""
        bunch = cast(Bunch, load_digits())
        x = torch.from_numpy(np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8))
        y = torch.from_numpy(bunch.target.astype(np.int64))
        return Collection(splits={"train": Images(x[:, None], y)}, classes=tuple("0123456789"))
