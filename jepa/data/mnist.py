"""MNIST: 60,000 training and 10,000 test images, 28 x 28, gray, 10 classes.

Metric: accuracy. Source: LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to
Document Recognition", Proc. IEEE 1998; the mirror that torchvision uses. Files are verified by
checksum.
"""

from pathlib import Path

from jepa.data.idx import load_idx
from jepa.data.images import Card, Collection, ImageData

_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


class Mnist(ImageData):
    """Handwritten digits.

    Args:
        data_dir: folder that holds, or is to hold, mnist/*.gz; MNIST/raw/ is taken too.
        images: settings of `ImageData`.
    """

    card = Card(
        source=_URL,
        images={"train": 60_000, "test": 10_000},
        shape=(1, 28, 28),
        classes=tuple("0123456789"),
    )

    def __init__(self, *, data_dir: str, **images):
        super().__init__(**images)
        self.data_dir = Path(data_dir)

    def load(self) -> Collection:
        """Read the four files."""
        raw = self.data_dir / "MNIST" / "raw"
        splits = load_idx(_URL, self.data_dir / "mnist", raw, _SHA256)
        return Collection(splits=splits, classes=tuple("0123456789"))
