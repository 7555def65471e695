"""Fashion-MNIST: 60,000 training and 10,000 test images, 28 x 28, gray, 10 classes.

Metric: accuracy. Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", arXiv:1708.07747, MIT licence. Files are verified by
checksum.
"""

from pathlib import Path

from jepa.data.idx import load_idx
from jepa.data.images import Card, Collection, ImageData

_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_SHA256 = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


class FashionMnist(ImageData):
    """Pieces of clothing.

    Args:
        data_dir: folder that holds, or is to hold, fashion_mnist/*.gz; FashionMNIST/raw/ is taken
            too.
        images: settings of `ImageData`.
    """

    card = Card(
        source=_URL,
        images={"train": 60_000, "test": 10_000},
        shape=(1, 28, 28),
        classes=_CLASSES,
    )

    def __init__(self, *, data_dir: str, **images):
        super().__init__(**images)
        self.data_dir = Path(data_dir)

    def load(self) -> Collection:
        """Read the four files."""
        raw = self.data_dir / "FashionMNIST" / "raw"
        splits = load_idx(_URL, self.data_dir / "fashion_mnist", raw, _SHA256)
        return Collection(splits=splits, classes=_CLASSES)
