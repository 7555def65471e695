"""STL-10: 5,000 training, 8,000 test and 100,000 unlabeled images, 96 x 96, colour, 10 classes.

Metric: accuracy. Source: Coates, Lee and Ng, "An Analysis of Single-Layer Networks in Unsupervised
Feature Learning", AISTATS 2011, through torchvision, which verifies every file by checksum.
"""

from pathlib import Path

from jepa.data.images import Card, Collection, ImageData
from jepa.data.torchvision_sets import images_of, open_set

_CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)


class Stl10(ImageData):
    """Photographs of animals and vehicles, most of them without a label.

    Args:
        data_dir: folder that holds, or is to hold, stl10_binary/.
        unlabeled: pretrain on the unlabeled images; the labelled ones then serve the probes only.
        images: settings of `ImageData`.
    """

    card = Card(
        source="https://cs.stanford.edu/~acoates/stl10/",
        images={"train": 5_000, "test": 8_000},
        shape=(3, 96, 96),
        classes=_CLASSES,
    )

    def __init__(self, *, data_dir: str, unlabeled: bool, **images):
        super().__init__(**images)
        self.data_dir = Path(data_dir)
        self.use_unlabeled = unlabeled

    def load(self) -> Collection:
        """Read the splits."""
        train, test = (self._read(split) for split in ("train", "test"))
        more = self._read("unlabeled") if self.use_unlabeled else None
        if more is not None and len(more) != 100_000:
            raise ValueError(f"Stl10 must have 100,000 unlabeled images, found {len(more):,}")
        return Collection(splits={"train": train, "test": test}, classes=_CLASSES, unlabeled=more)

    def _read(self, split: str):
        from torchvision.datasets import STL10  # here: importing it takes a second

        images = open_set(STL10, [self.data_dir], "stl10_binary", split=split)
        return images_of(images.data, None if split == "unlabeled" else images.labels)
