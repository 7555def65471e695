"""Sets that torchvision reads, verified by it before anything in them is unpickled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch

from jepa.data.files import check_downloads
from jepa.data.pixels import Images


def open_set(build: Callable[..., Any], places: list[Path], folder: str, **settings: Any) -> Any:
    """Return torchvision's data set, from the first place that holds it, else downloaded there.

    Args:
        build: the class, as `torchvision.datasets.CIFAR10`.
        places: directories in which `folder` may lie; it is downloaded into the first.
        folder: name of the directory that torchvision unpacks to.
        settings: further arguments of the class.

    Raises:
        FileNotFoundError: if it is absent and cannot be downloaded.
        ValueError: if it is there and a checksum is wrong; nothing of it was read.
    """
    root = next((place for place in places if (place / folder).is_dir()), None)
    if root is not None:
        try:
            return build(root=str(root), download=False, **settings)
        except RuntimeError as error:
            raise ValueError(
                f"{root / folder} has a wrong checksum or lacks a file; nothing in it was read: "
                "delete it, and the next run downloads it again"
            ) from error
    try:
        check_downloads()
        places[0].mkdir(parents=True, exist_ok=True)
        return build(root=str(places[0]), download=True, **settings)
    except (URLError, OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{folder} is absent and cannot be downloaded ({error}): looked in "
            f"{', '.join(str(place.absolute()) for place in places)}; download it elsewhere and "
            "put it there, or point paths.data_dir (or JEPA_DATA) to the folder that holds it"
        ) from error


def images_of(x: np.ndarray, y: Any = None) -> Images:
    """Return [n, c, h, h] pixels with labels, if there are any."""
    labels = None if y is None else torch.as_tensor(np.asarray(y), dtype=torch.int64)
    return Images(torch.from_numpy(np.ascontiguousarray(x)), labels)
