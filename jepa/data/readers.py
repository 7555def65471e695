"""Read a table from a file; a file that cannot be read gives one message with the fix."""

import gzip
import zlib
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a csv, tsv (plain or gzipped) or parquet file, all columns as they are stored.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of file, and for one that is empty, damaged or not UTF-8.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(_absent(path))
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise ValueError(f"data.path={str(path)!r} must end in one of {', '.join(SUFFIXES)}")
    try:
        if name.endswith(".parquet"):
            return pd.read_parquet(path)
        separator = "\t" if name.endswith((".tsv", ".tsv.gz")) else ","
        _check_header(path, separator)
        return pd.read_csv(path, sep=separator, encoding="utf-8", low_memory=False)
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"data.path={str(path)!r} is empty: it has no header line") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.path={str(path)!r} is not UTF-8 (byte {error.object[error.start]:#04x} at "
            f"{error.start}): save it as UTF-8, e.g. iconv -f latin1 -t utf-8 OLD > NEW"
        ) from error
    except (EOFError, OSError, zlib.error) as error:  # pyarrow's errors are OSError or ValueError
        raise ValueError(_damaged(path, error)) from error
    except ValueError as error:  # parser errors of pandas and pyarrow
        raise ValueError(_damaged(path, error)) from error


def quoted(key: str, value: str) -> str:
    """Write a setting so that shell and Hydra both read it as meant.

    >>> print(quoted("data.path", "my file (1).csv"))
    'data.path="my file (1).csv"'
    """
    inner = value.replace("\\", "\\\\").replace('"', '\\"')
    return "'" + f'{key}="{inner}"'.replace("'", "'\\''") + "'"


def _check_header(path: Path, separator: str) -> None:
    """Refuse a repeated column name, which pandas would rename in silence."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        header = pd.read_csv(file, sep=separator, header=None, nrows=1, dtype=str)
    names = header.iloc[0].dropna()
    twice = names[names.duplicated()].unique()
    if len(twice):
        raise pd.errors.DataError(
            f"column names must be unique, it has several of: {', '.join(map(repr, twice))}; "
            "rename them"
        )


def _absent(path: Path) -> str:
    folder = path.parent
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    close = get_close_matches(path.name, there, n=3, cutoff=0.5)
    hint = f"nearest in that folder: {', '.join(map(repr, close))}. " if close else ""
    return (
        f"data.path={str(path)!r} does not exist (looked in {str(folder.resolve())!r}). {hint}"
        "A name with spaces, brackets, commas or = needs two pairs of quotes: "
        f"{quoted('data.path', str(path))}"
    )


def _damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, pd.errors.DataError):
        return f"data.path={str(path)!r}: {reason}"
    return (
        f"data.path={str(path)!r} cannot be read, it is damaged, cut short or of another format "
        f"({reason}): copy or write the file again"
    )
