"""CIFAR-100: 50,000 training and 10,000 test images, 32 x 32, colour, 100 classes.

Metric: accuracy. Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
2009, through torchvision, which verifies every file by checksum before it is unpickled.
"""

from pathlib import Path

from jepa.data.images import Card, Collection, ImageData
from jepa.data.torchvision_sets import images_of, open_set


class Cifar100(ImageData):
    """Small photographs of many things.

    Args:
        data_dir: folder that holds, or is to hold, cifar100/cifar-100-python/; cifar-100-python/
            in it is taken too.
        images: settings of `ImageData`.
    """

    def __init__(self, *, data_dir: str, **images):
        super().__init__(**images)
        self.data_dir = Path(data_dir)

    def load(self) -> Collection:
        """Read both splits."""
        from torchvision.datasets import CIFAR100  # here: importing it takes a second

        places = [self.data_dir / "cifar100", self.data_dir]
        splits, classes = {}, ()
        for name in ("train", "test"):
            images = open_set(CIFAR100, places, "cifar-100-python", train=name == "train")
            splits[name] = images_of(images.data.transpose(0, 3, 1, 2), images.targets)
            classes = tuple(images.classes)
        self.card = Card(
            source="https://www.cs.toronto.edu/~kriz/cifar.html",
            images={"train": 50_000, "test": 10_000},
            shape=(3, 32, 32),
            classes=classes,
        )
        return Collection(splits=splits, classes=classes)
