"""Daily market bars of yours: `data=ohlcv data.path=<csv|tsv|parquet>`; will the price rise enough?

The file has a row a trading day: a date, open, high, low, close, volume, and any indicators, each a
channel. A row is a step: days without trade are no gaps.
"""

import numpy as np
from jaxtyping import Int

from jepa.data.market import CLASSES, check_label, reach_labels
from jepa.data.series import SeriesData
from jepa.data.series_card import READING
from jepa.data.series_frames import SeriesFrame, read_series
from jepa.data.series_splits import choose_split


class Ohlcv(SeriesData):
    """Bars of one market; does `price` reach close * (1 + threshold) within `horizon` days?

    Args:
        path: the file, relative to the working directory.
        threshold: 0.01 is one percent.
        price: `high`, or `close` for the close alone.
        time_column: of the dates.
        split: `ratio`, `dates` or `chunks`; see `jepa/data/series_splits.py`.
        val_share, test_share, val_start, test_start, purge, chunk, split_seed: settings of the
            split. None: as there.
        series: settings of `SeriesData`.
    """

    classes = CLASSES
    season = 0

    def __init__(
        self,
        *,
        path: str,
        threshold: float = 0.01,
        price: str = "high",
        time_column: str = "date",
        split: str = "ratio",
        val_share: float | int | None = None,
        test_share: float | int | None = None,
        val_start: str | None = None,
        test_start: str | None = None,
        purge: int | None = None,
        chunk: int | None = None,
        split_seed: int | None = None,
        **series,
    ):
        super().__init__(**series)
        check_label(price, threshold)
        self.path = path
        self.threshold = threshold
        self.price = price
        self.reading = READING | {"time_column": time_column}
        settings = {
            "val_share": val_share,
            "test_share": test_share,
            "val_start": val_start,
            "test_start": test_start,
            "purge": purge,
            "chunk": chunk,
            "split_seed": split_seed,
        }
        self.split = choose_split(split, settings)

    def load(self) -> SeriesFrame:
        """Read the file."""
        return read_series(self.path, drop=self.drop, **self.reading)

    def labels(self, frame: SeriesFrame) -> Int[np.ndarray, " t"]:
        """Look ahead from every day."""
        return reach_labels(frame, price=self.price, threshold=self.threshold, horizon=self.horizon)
