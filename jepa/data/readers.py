"""Read a table from a file; a file that cannot be read gives one message with the fix."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from jepa.data.quoting import text_setting

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a csv, tsv (plain or gzipped) or parquet file, all columns as they are stored.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of file, and for one that is empty, damaged, not UTF-8, or
            names two columns alike.
    """
    path = check_path(path)
    if is_parquet(path):
        with plain_errors(path):
            return pd.read_parquet(path)
    check_header(path)
    with plain_errors(path):
        return pd.read_csv(path, sep=separator_of(path), encoding="utf-8", low_memory=False)


def check_path(path: str | Path) -> Path:
    """Return the path of a table that is there.

    Raises:
        FileNotFoundError: if there is no such file; shows how to quote its name.
        ValueError: for another kind of file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(_absent(path))
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"data.path={str(path)!r} must end in one of {', '.join(SUFFIXES)}")
    return path


def is_parquet(path: Path) -> bool:
    """Tell parquet from text by the name."""
    return path.suffix.lower() == ".parquet"


def separator_of(path: Path) -> str:
    """Return what stands between the cells of a text file of this name."""
    return "\t" if path.name.lower().endswith((".tsv", ".tsv.gz")) else ","


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn what pandas, pyarrow and gzip raise while reading into one message with the fix."""
    try:
        yield
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"data.path={str(path)!r} is empty: it has no header line") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.path={str(path)!r} is not UTF-8 (byte {error.object[error.start]:#04x} at "
            f"{error.start}): save it as UTF-8, e.g. iconv -f latin1 -t utf-8 OLD > NEW"
        ) from error
    except (EOFError, OSError, ValueError, zlib.error) as error:  # parser errors are ValueErrors
        raise ValueError(_damaged(path, error)) from error


def check_header(path: Path) -> None:
    """Refuse a text file that names two columns alike: pandas would rename one in silence.

    Raises:
        ValueError: for such a file, and for one that cannot be read.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with plain_errors(path), opened(path, "rt", encoding="utf-8") as file:
        header = pd.read_csv(file, sep=separator_of(path), header=None, nrows=1, dtype=str)
    names = header.iloc[0].dropna()
    twice = list(names[names.duplicated()].unique())
    if twice:
        raise ValueError(
            f"data.path={str(path)!r}: column names must be unique, it has several of: "
            f"{', '.join(map(repr, twice))}; rename them"
        )


def _absent(path: Path) -> str:
    folder = path.parent
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    close = get_close_matches(path.name, there, n=3, cutoff=0.5)
    hint = f"nearest in that folder: {', '.join(map(repr, close))}. " if close else ""
    return (
        f"data.path={str(path)!r} does not exist (looked in {str(folder.resolve())!r}). {hint}"
        "A name with spaces, brackets, commas or = needs two pairs of quotes: "
        f"{text_setting('data.path', str(path))}"
    )


def _damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return (
        f"data.path={str(path)!r} cannot be read, it is damaged, cut short or of another format "
        f"({reason}): copy or write the file again"
    )
