"""samples.npz: the loss of each scored sample, so that two runs can be compared in pairs.

Plain arrays and one JSON text; nothing in it is unpickled.
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NAME = "samples.npz"
ABOUT = "about"


@dataclass(frozen=True)
class Samples:
    """One error metric, sample by sample.

    Args:
        rows: loss of each sample, in the order of the split: 1 where a label is wrong, a squared
            error, or the mean squared error of a window.
        block: neighbouring samples that err together, as overlapping windows do.
        root: the metric is the square root of the mean, not the mean.
        identity: equal for the same samples in the same order.
    """

    rows: np.ndarray
    block: int
    root: bool
    identity: str

    @property
    def labels(self) -> bool:
        """Whether the rows say right or wrong."""
        return bool(np.isin(self.rows, (0.0, 1.0)).all())


def identify(*parts: Any) -> str:
    """Return a text that is equal for equal targets: arrays by bytes, the rest by its repr."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()[:16]


def write_samples(folder: Path, samples: dict[str, Samples]) -> None:
    """Write the file, whole or not at all; nothing where there are none."""
    if not samples:
        return
    about = {
        key: {"block": one.block, "root": one.root, "identity": one.identity}
        for key, one in samples.items()
    }
    arrays: dict[str, Any] = {k: one.rows.astype(np.float32) for k, one in samples.items()}
    arrays[ABOUT] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    temporary = folder / f".{NAME}.tmp"
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        temporary.replace(folder / NAME)
    finally:
        temporary.unlink(missing_ok=True)


def read_samples(folder: Path) -> dict[str, Samples]:
    """Return the samples of a run directory by metric; none where there is no file.

    Raises:
        ValueError: for a file that no run has written.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file[ABOUT].tobytes())
            return {
                key: Samples(
                    rows=file[key].astype(np.float64),
                    block=int(one["block"]),
                    root=bool(one["root"]),
                    identity=str(one["identity"]),
                )
                for key, one in about.items()
            }
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or no file of jepa: {error}") from error
