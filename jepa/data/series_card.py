"""The published sets: where a file lies, and what it must hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from jepa.data.files import check_sha256, fetch
from jepa.data.series_frames import SeriesFrame, read_series

# rows are steps as they stand: weather lacks a few times
READING: dict[str, Any] = {"format": "wide", "time_column": "date", "gaps": "rows"}


@dataclass(frozen=True, kw_only=True)
class SeriesCard:
    """A published wide csv: a date and one column a channel.

    Args:
        place: below the data folder.
        source: who publishes it, for messages.
        rows: time steps.
        channels: columns beside the date.
        sha256: None where none is known; then rows and channels alone tell.
        url: None where no address of the plain file is known; then it must be put there by hand.
    """

    place: str
    source: str
    rows: int
    channels: int
    sha256: str | None = None
    url: str | None = None

    def read(
        self, data_dir: str, *, drop: Sequence[str] = (), sentinel: float | None = None
    ) -> SeriesFrame:
        """Find, verify and read the file; `sentinel` stands for a missing value.

        Raises:
            FileNotFoundError: if it is absent and cannot be downloaded.
            ValueError: for a wrong checksum or another number of rows or columns.
        """
        path = self._find(data_dir)
        frame = read_series(path, drop=drop, sentinel=sentinel, ordered=False, **READING)
        found = (frame.lengths[0], len(frame.channels) + len(drop))
        if found != (self.rows, self.channels):
            raise ValueError(
                f"{self.place} must have {self.rows:,} rows and {self.channels} channels, found "
                f"{found[0]:,} and {found[1]}: this is not the published series ({self.source})"
            )
        return frame

    def _find(self, data_dir: str) -> Path:
        path = Path(data_dir) / self.place
        if self.url is not None:
            return fetch(self.url, path, sha256=self.sha256)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.name} is absent: looked for {path.absolute()}; no address of the plain "
                f"file is known, it is published as {self.source}: get it and put it there, or "
                "point paths.data_dir (or JEPA_DATA) to the folder that holds it"
            )
        if self.sha256 is None:
            rank_zero_warn(
                f"{path}: unverified (no checksum is published; rows and channels are checked)"
            )
        else:
            check_sha256(path, self.sha256)
        return path
