"""CIFAR-10: 50,000 training and 10,000 test images, 32 x 32, colour, 10 classes.

Metric: accuracy. Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
2009, through torchvision. Where these originals are not, a copy as JPEG files of quality 75 is
used, `cifar10/cifar10_jpeg_q75.tar.xz`; it is about 30 dB away from the originals, so every number
measured on it carries the stamp "JPEG q75".
"""

from pathlib import Path

from jepa.data.files import check_sha256
from jepa.data.image_folder import read_images
from jepa.data.images import Card, Collection, ImageData
from jepa.data.torchvision_sets import images_of, open_set

_JPEG_SHA256 = "e07e0e30715fb42d2d644bc9d2516ff610c9f7afb891c5e29e2a428db7951aae"
_FOLDER = "cifar-10-batches-py"
_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


class Cifar10(ImageData):
    """Small photographs of animals and vehicles.

    Args:
        data_dir: folder that holds, or is to hold, cifar10/ with cifar-10-batches-py/ or
            cifar10_jpeg_q75.tar.xz; cifar-10-batches-py/ beside it is taken too.
        images: settings of `ImageData`.
    """

    card = Card(
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        images={"train": 50_000, "test": 10_000},
        shape=(3, 32, 32),
        classes=_CLASSES,
    )

    def __init__(self, *, data_dir: str, **images):
        super().__init__(**images)
        self.data_dir = Path(data_dir)

    def load(self) -> Collection:
        """Read the originals if they are there, else the JPEG copy, else download the originals."""
        places = [self.data_dir / "cifar10", self.data_dir]
        archive = self.data_dir / "cifar10" / "cifar10_jpeg_q75.tar.xz"
        if archive.is_file() and not any((place / _FOLDER).is_dir() for place in places):
            return self._load_jpeg(archive)
        from torchvision.datasets import CIFAR10  # here: importing it takes a second

        splits = {}
        for name in ("train", "test"):
            images = open_set(CIFAR10, places, _FOLDER, train=name == "train")
            splits[name] = images_of(images.data.transpose(0, 3, 1, 2), images.targets)
        return Collection(splits=splits, classes=_CLASSES)

    def _load_jpeg(self, archive: Path) -> Collection:
        check_sha256(archive, _JPEG_SHA256)
        splits, tree, _ = read_images(
            archive, side=32, n_workers=self.n_workers, max_corrupt_share=0.0
        )
        return Collection(splits=splits, classes=tree.classes, stamp="JPEG q75")
