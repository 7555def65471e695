"""Image files of a folder or an archive, one after the other; nothing is ever unpacked to disk.

An archive is untrusted: names that lead out of it, links, devices and contents out of all
proportion are refused.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path, PurePosixPath

from jepa.data.decode import MAX_BYTES

SUFFIXES = (".jpg", ".jpeg", ".png")
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_DAMAGE = (EOFError, OSError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
_MAX_DEPTH = 32  # folders inside folders

Found = Iterator[tuple[str, bytes | Path | None]]


def read_files(path: str | Path) -> Found:
    """Yield (name, content) of the images, and (name, None) of everything else.

    Names are relative, with `/`; those of folders end in `/`. The content is a place where it is a
    file, and bytes out of an archive (tar, plain or compressed by gzip, bzip2 or xz; zip).

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: for another kind of file, a damaged archive, and one that is not to be trusted.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"data.path={str(path)!r} does not exist (looked in {str(path.parent.resolve())!r}): "
            "give a folder, or a .tar, .tar.gz, .tar.xz or .zip file"
        )
    with open(path, "rb") as file:
        return read_zip(path) if file.read(2) == b"PK" else read_tar(path)


def is_image(name: str) -> bool:
    """Tell whether the name has one of our extensions, in any case, and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def read_folder(root: Path) -> Found:
    """Walk through a folder and its links, in the order of the names."""
    seen = set()
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        folder = PurePosixPath(Path(place).relative_to(root).as_posix())
        if real in seen or len(folder.parts) > _MAX_DEPTH:
            folders.clear()  # a link to what has been seen, perhaps to a parent
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from ((f"{folder / name}/", None) for name in folders)
        for name in sorted(files):
            yield str(folder / name), Path(place, name) if is_image(name) else None


def read_tar(path: Path) -> Found:
    """Read a tar file from its beginning to its end, once."""
    names = set()
    with (
        damage_told(path),
        decompressed(path) as file,
        tarfile.open(fileobj=file, mode="r|", bufsize=1 << 16) as tar,  # pyright: ignore
    ):
        for member in tar:
            check_name(path, member.name, None if member.isdir() else names)
            if member.isdir():
                yield f"{plain(member.name)}/", None
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                kind = "link" if member.islnk() or member.issym() else "special file"
                raise Untrusted(path, member.name, f"it is a {kind}; only plain files are read")
            wanted = is_image(member.name)
            content = tar.extractfile(member) if wanted else None
            yield plain(member.name), content and content.read(MAX_BYTES + 1)
        if file.ended:  # a whole one has a mark at its end, after which nothing is read
            raise tarfile.ReadError("it is cut short")


def read_zip(path: Path) -> Found:
    """Read a zip file in the order of its table of contents."""
    names = set()
    with damage_told(path), zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
        if total > most_bytes(path):
            raise Untrusted(path, "as a whole", f"it would unpack to {total:,} bytes")
        for member in archive.infolist():
            check_name(path, member.filename, None if member.is_dir() else names)
            mode = stat.S_IFMT(member.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Untrusted(path, member.filename, "it is a link or special file")
            if member.flag_bits & 1:
                raise ValueError(f"{str(path)!r} is encrypted: give one that is not")
            if member.is_dir():
                yield f"{plain(member.filename)}/", None
            elif not is_image(member.filename):
                yield plain(member.filename), None
            else:
                with archive.open(member) as file:  # stops at the size it states
                    yield plain(member.filename), file.read(MAX_BYTES + 1)


class Untrusted(ValueError):
    """Something in an archive that a collection of images has no use for."""

    def __init__(self, path: Path, member: str, reason: str):
        super().__init__(
            f"{str(path)!r} is refused: {member!r}: {reason}; nothing was unpacked; make "
            "an archive of plain image files with relative names"
        )


def check_name(path: Path, name: str, seen: set[str] | None) -> None:
    """Refuse a name that leads out of the archive, or a file's that is among those seen before.

    Raises:
        ValueError: naming it.
    """
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or name.startswith("/") or ".." in parts:
        raise Untrusted(path, name, "its name leads out of the archive")
    if len(parts) > _MAX_DEPTH:
        raise Untrusted(path, name[:100], f"it lies more than {_MAX_DEPTH} folders deep")
    if seen is not None:
        if plain(name) in seen:
            raise Untrusted(path, name, "the archive holds it twice")
        seen.add(plain(name))


def plain(name: str) -> str:
    """Return the name without `./` at its beginning and `/` at its end."""
    return name.removeprefix("./").rstrip("/")


def most_bytes(path: Path) -> int:
    """Return how much an archive may unpack to: images shrink little, so more is a bomb."""
    return (1 << 30) + 100 * path.stat().st_size


class Limited:
    """A tar file, decompressed, that ends with an error where it gets too long."""

    def __init__(self, file: BufferedIOBase, path: Path):
        self.file, self.path, self.left = file, path, most_bytes(path)
        self.ended = False

    def read(self, n_bytes: int) -> bytes:
        """Return the next bytes."""
        content = self.file.read(n_bytes)
        self.ended = not content
        self.left -= len(content)
        if self.left < 0:
            raise Untrusted(self.path, "as a whole", "it unpacks to more than 100 times its size")
        return content


@contextmanager
def decompressed(path: Path) -> Iterator[Limited]:
    """Open a tar file, whatever it is compressed by."""
    with open(path, "rb") as file:
        start = file.read(6)
    opener = next((opened for magic, opened in _OPENERS.items() if start.startswith(magic)), open)
    with opener(path, "rb") as file:
        yield Limited(file, path)


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turn what the readers of archives raise into one message."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}): it is damaged, or not a .tar, "
            ".tar.gz, .tar.xz or .zip file; make or download it again"
        ) from error
