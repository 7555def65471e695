"""Codes that a grid of probes computes once: the first job writes a file, the others read it."""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from jepa.checkpoint import replacing

FOLDER = "codes"


class SharedCodes:
    """Files of codes in the directory of a grid.

    Args:
        grid: its directory.
        of: all that decides the codes, as plain values.
    """

    def __init__(self, grid: Path, **of: Any):
        text = json.dumps(of, sort_keys=True, default=str)
        self.folder = grid / FOLDER
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return tensors, or nested tuples of them, from the file, or compute and write them.

        Whoever is killed over it gives way to the next; nobody reads half of a file.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}_{self.digest}.pt"
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                with replacing(path) as temporary:
                    torch.save(compute(), temporary)
        return torch.load(path, weights_only=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes waiting; a file system without locks lets each do the work."""
    with path.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
