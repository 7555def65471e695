"""Drawn daily market bars: a stand-in where there is no file."""

import numpy as np
import pandas as pd
from jaxtyping import Int

from jepa.data.market import CLASSES, check_label, reach_labels
from jepa.data.series import SeriesData
from jepa.data.series_card import READING
from jepa.data.series_frames import SeriesFrame, from_wide

_TICKS = 16  # moves of the price within a day


class ToyOhlcv(SeriesData):
    """A random walk whose volatility comes in waves; so large moves can be foreseen, not which way.

    The draw does not depend on `seed`: runs that differ in it share one market.

    Args:
        n_days: business days.
        threshold, price: see `Ohlcv`.
        series: settings of `SeriesData`.
    """

    classes = CLASSES
    season = 0
    reading = READING

    def __init__(
        self, *, n_days: int = 3000, threshold: float = 0.01, price: str = "high", **series
    ):
        super().__init__(**series)
        check_label(price, threshold)
        if n_days < 2:
            raise ValueError(f"data.n_days must be at least 2, got {n_days}")
        self.n_days = n_days
        self.threshold = threshold
        self.price = price

    def load(self) -> SeriesFrame:
        """Draw the bars."""
        rng = np.random.default_rng(0)
        waves = np.cumsum(rng.normal(0, 0.1, self.n_days))
        waves = np.sin(waves + 2 * np.pi * np.arange(self.n_days) / 120)
        daily = 0.009 * np.exp(0.6 * waves)
        moves = rng.normal(size=(self.n_days, _TICKS)) * daily[:, None] / np.sqrt(_TICKS)
        path = 100.0 * np.exp(np.cumsum(moves.ravel())).reshape(self.n_days, _TICKS)
        table = pd.DataFrame(
            {
                "date": pd.bdate_range("2010-01-01", periods=self.n_days),
                "open": path[:, 0],
                "high": path.max(1),
                "low": path.min(1),
                "close": path[:, -1],
                "volume": 1e6 * daily / 0.009 * rng.lognormal(0, 0.2, self.n_days),
            }
        )
        return from_wide(table.drop(columns=self.drop), time_column="date", gaps="rows")

    def labels(self, frame: SeriesFrame) -> Int[np.ndarray, " t"]:
        """Look ahead from every day."""
        return reach_labels(frame, price=self.price, threshold=self.threshold, horizon=self.horizon)
