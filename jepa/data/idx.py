"""The idx format of MNIST and the sets that copy it, gzipped.

Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", file formats.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from jepa.data.files import fetch
from jepa.data.pixels import Images

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load_idx(url: str, folder: Path, raw: Path, sha256: dict[str, str]) -> dict[str, Images]:
    """Read the train and test images, downloaded first if they are absent, verified in any case.

    Args:
        url: of the folder that holds the files on the web.
        folder: where they lie, or are to lie.
        raw: where torchvision puts them; used if it is there.
        sha256: by file name, without .gz.
    """
    splits = {}
    for split, names in _FILES.items():
        files = [f"{name}.gz" for name in names]
        place = raw if all((raw / file).is_file() for file in files) else folder
        paths = [
            fetch(url + file, place / file, sha256=sha256[name])
            for name, file in zip(names, files, strict=True)
        ]
        x, y = map(read_idx, paths)
        splits[split] = Images(torch.from_numpy(x)[:, None], torch.from_numpy(y.astype(np.int64)))
    return splits


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of one file.

    Raises:
        ValueError: for a file that is damaged or of another kind.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run again") from error
    start = 4 + 4 * content[3] if len(content) > 4 else 0
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if content[:3] != b"\0\0\x08" or len(content) - start != math.prod(shape):
        raise ValueError(f"{path} is no idx file of bytes, or cut short: delete it and run again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
