"""Files below the data folder: found, verified, and downloaded where they are absent."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import HTTPRedirectHandler, Request, build_opener

from lightning.pytorch.utilities import rank_zero_warn
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

_BLOCK = 1 << 20
_LOCAL = ("localhost", "127.0.0.1", "::1")


_allowed = ContextVar("downloads_allowed", default=True)


@contextmanager
def without_downloads() -> Iterator[None]:
    """Take what is absent for absent: for whoever only looks."""
    before = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(before)


def check_downloads() -> None:
    """Refuse a download inside `without_downloads`.

    Raises:
        OSError: then.
    """
    if not _allowed.get():
        raise OSError("this command downloads nothing; jepa.train would")


def fetch(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    max_bytes: int = 1 << 30,
    timeout_s: float = 20.0,
) -> Path:
    """Return `path`, downloaded first if it is absent, and verified in any case.

    The download goes to a temporary file beside it, which takes the name only when it is complete
    and its checksum is right; so a file under that name is never a part of one.

    Args:
        url: https; http for this machine only.
        path: where the file lies, or is to lie.
        sha256: None where none is published; then the log says `unverified`.
        max_bytes: a longer download is given up.
        timeout_s: longest silence of the server.

    Raises:
        FileNotFoundError: if the file is absent and cannot be downloaded.
        ValueError: for a wrong checksum, a download cut short or too long, and a full disk.
    """
    path = Path(path)
    if not path.is_file():
        _download(url, path, sha256=sha256, max_bytes=max_bytes, timeout_s=timeout_s)
    elif sha256 is not None:
        check_sha256(path, sha256)
    if sha256 is None:
        rank_zero_warn(
            f"{path}: unverified (no checksum is published; rows, columns and classes are checked)"
        )
    return path


def check_sha256(path: str | Path, sha256: str) -> None:
    """Compare a file with its published checksum.

    Raises:
        ValueError: if they differ; names both.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    _compare(str(path), digest.hexdigest(), sha256)


def _compare(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"{name} has the wrong checksum: sha256 {found}, expected {expected}; the file is "
            "damaged or another one: delete it, and get it again"
        )


def _download(
    url: str, path: Path, *, sha256: str | None, max_bytes: int, timeout_s: float
) -> None:
    _check_url(url)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        check_downloads()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            found = _stream(url, path, file, max_bytes=max_bytes, timeout_s=timeout_s)
        if sha256 is not None:
            _compare(url, found, sha256)
        os.replace(part, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ValueError(
                f"the disk is full while downloading {url} to {path}: free some space, or point "
                "paths.data_dir (or JEPA_DATA) to another disk"
            ) from error
        raise FileNotFoundError(_absent(url, path, error)) from error
    except HTTPException as error:
        raise FileNotFoundError(_absent(url, path, error)) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _check_url(url: str) -> None:
    if urlparse(url).scheme != "https" and not _is_local(url):
        raise ValueError(f"downloads need an https address, got {url!r}")


def _is_local(url: str) -> bool:
    parts = urlparse(url)
    return parts.scheme == "http" and parts.hostname in _LOCAL


class _Redirects(HTTPRedirectHandler):
    """Follow to https only; what this machine sends may lead on to this machine."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        may = urlparse(newurl).scheme == "https" or (_is_local(req.full_url) and _is_local(newurl))
        if not may:
            reason = f"a redirect to {newurl} is refused: it is not https"
            raise HTTPError(req.full_url, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = build_opener(_Redirects)


def _stream(url: str, path: Path, file: BinaryIO, *, max_bytes: int, timeout_s: float) -> str:
    """Copy the answer to `file`; return its SHA-256."""
    digest = hashlib.sha256()
    done = 0
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    request = Request(url, headers={"User-Agent": "jepa"})
    with _opener.open(request, timeout=timeout_s) as answer, Progress(*columns) as progress:
        length = int(answer.headers.get("Content-Length") or 0)
        _check_length(url, length, max_bytes)
        bar = progress.add_task(path.name, total=length or None)
        while block := answer.read(_BLOCK):
            done += len(block)
            _check_length(url, done, max_bytes)
            file.write(block)
            digest.update(block)
            progress.update(bar, completed=done)
    if length and done != length:
        raise ValueError(
            f"the download of {url} was cut short: {done:,} of {length:,} bytes; run again"
        )
    return digest.hexdigest()


def _check_length(url: str, n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise ValueError(f"{url} is longer than {max_bytes:,} bytes: not the file meant")


def _absent(url: str, path: Path, error: Exception) -> str:
    return (
        f"{path.name} is absent and cannot be downloaded ({error}): looked for {path.absolute()}, "
        f"tried {url}; download it elsewhere and put it there, or point paths.data_dir (or "
        "JEPA_DATA) to the folder that holds it"
    )
