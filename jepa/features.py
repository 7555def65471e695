"""Codes that were computed once, kept in files: every probe and every job of a grid reads the same.

A file is named by all that its codes depend on (`digest` of a checkpoint, the data, the rows, the
representation), so nothing stale is ever read. In it: that key as a line of JSON, the codes and the
labels as numpy arrays without pickles, and the sha256 of everything before.

Axes: n rows, e code.
"""

import fcntl
import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from jepa.checkpoint import sync

FOLDER = "features"  # of a run directory
FORMAT = 1  # of the files; another number makes all of them anew
N_SAMPLED = 64  # rows of a split that stand for its content, beside what was fitted on it
_HASH_BYTES = 32

Codes = tuple[Tensor, Tensor]  # codes [n, e] in float32, and their labels [n, ...]
Key = Mapping[str, Any]


class Damaged(Exception):
    """A file that is not what was written."""


def cached(
    folder: Path | None,
    keys: Mapping[str, Key],
    make: Callable[[Sequence[str]], Mapping[str, Codes]],
    *,
    wanted: Sequence[str] | None = None,
) -> dict[str, Codes]:
    """Return the codes of each name: from their files, or from `make`, and then kept in files.

    Processes that ask for the same codes at once wait for the first of them. A file that is damaged
    is made anew; a folder that cannot be written costs the file alone.

    Args:
        folder: where the files lie; None keeps nothing.
        keys: for each name, plain values that its codes depend on.
        make: computes the codes of the names it is given, in one pass.
        wanted: the names that are returned, all of them if None; where one of these has to be made,
            those of the others that have no file are made with it.
    """
    wanted = list(keys) if wanted is None else wanted
    if folder is None:
        made = make(wanted)
        return {name: made[name] for name in wanted}
    paths = {
        name: folder / f"{digest({'format': FORMAT, **key})[:20]}.codes"
        for name, key in keys.items()
    }

    def look(names: Iterable[str]) -> dict[str, Codes]:
        read_all = ((name, read(paths[name], keys[name])) for name in names)
        return {name: codes for name, codes in read_all if codes is not None}

    found = look(wanted)
    if len(found) == len(wanted):
        return found
    with alone(folder / ".lock"):
        # another process may have made them meanwhile
        found |= look(name for name in wanted if name not in found)
        if len(found) < len(wanted):
            lost = [name for name in wanted if name not in found]
            others = [n for n in keys if n not in wanted and not paths[n].exists()]
            made = dict(make([*lost, *others]))
            for name, codes in made.items():
                write(paths[name], keys[name], codes)
            found |= {name: made[name] for name in lost}
    return found


def read(path: Path, key: Key) -> Codes | None:
    """Return what a file holds; None where there is none, or it is damaged, which is said."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            check_hash(file)
            if json.loads(file.readline()) != json.loads(describe(key)):
                raise Damaged("it holds other codes")
            x, y = (torch.from_numpy(np.lib.format.read_array(file)) for _ in range(2))
            return x, y
    except (OSError, ValueError, Damaged) as error:
        warnings.warn(f"{path} is damaged ({error}): computed again", stacklevel=2)
        return None


def check_hash(file: BinaryIO) -> None:
    """Compare the last bytes of a file with the sha256 of those before; go back to the start.

    Raises:
        Damaged: if they differ.
    """
    left = os.fstat(file.fileno()).st_size - _HASH_BYTES
    hashed = hashlib.sha256()
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        hashed.update(part)
        left -= len(part)
    if file.read(_HASH_BYTES) != hashed.digest():
        raise Damaged("its checksum differs")
    file.seek(0)


class _Hashing:
    """A file that is hashed as it is written."""

    def __init__(self, file: BinaryIO):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self.file.write(data)


def write(path: Path, key: Key, codes: Codes) -> None:
    """Write a file, whole or not at all; say so where it cannot be written."""
    # a name of its own: processes on other machines may have the same number
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            hashed = _Hashing(file)
            hashed.write(describe(key).encode() + b"\n")
            for part in codes:
                array = np.ascontiguousarray(part.numpy())
                np.lib.format.write_array(hashed, array, allow_pickle=False)  # pyright: ignore
            file.write(hashed.hash.digest())
            sync(file)
        os.replace(temporary, path)
    except OSError as error:
        warnings.warn(f"the codes are not kept: {path}: {error}", stacklevel=2)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock; where there are no locks, go on without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):  # a file system without locks: the codes may be computed twice
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def describe(key: Key) -> str:
    """Return a key as one line of JSON."""
    return json.dumps(dict(key), sort_keys=True)


def digest(value: Any) -> str:
    """Return the sha256 of nested plain values and tensors."""
    hashed = hashlib.sha256()
    _feed(hashed, value)
    return hashed.hexdigest()


def _feed(hashed: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        array = np.ascontiguousarray(value.detach().cpu().numpy())
        hashed.update(f"tensor {array.dtype} {array.shape}:".encode() + array.tobytes())
    elif isinstance(value, Mapping):
        hashed.update(f"mapping {len(value)}:".encode())
        for key in sorted(value, key=str):
            _feed(hashed, str(key))
            _feed(hashed, value[key])
    elif isinstance(value, list | tuple):
        hashed.update(f"list {len(value)}:".encode())
        for one in value:
            _feed(hashed, one)
    else:
        text = repr(value).encode()
        hashed.update(f"{type(value).__name__} {len(text)}:".encode() + text)


def fingerprint(data: Any, split: str) -> str:
    """Return what identifies a prepared split: its spec, what was fitted on it, some of its rows.

    Two sets with the same training statistics and sizes, and these rows alike, count as one.
    """
    rows = data.splits[split]
    index = torch.linspace(0, len(rows) - 1, min(N_SAMPLED, len(rows))).long()
    sample = rows.take(index.to(rows.device)) if len(rows) else {}
    return digest([repr(data.spec), data.preprocessing, len(rows), sample])
