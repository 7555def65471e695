"""Drawn series with a trend, two seasons and noise: tests and smoke runs need no file."""

import numpy as np
import pandas as pd

from jepa.data.series import SeriesData
from jepa.data.series_frames import SeriesFrame, from_wide

_DAY, _WEEK = 24, 168


class ToySeries(SeriesData):
    """Hourly channels that share a daily season; each has a trend and a noise of its own.

    The draw does not depend on `seed`: runs that differ in it share one series.

    Args:
        n_steps: hours.
        n_channels: how many.
        noise: deviation of the noise; the daily season has an amplitude of 1.
        missing_share: of the values, drawn by lot.
        series: settings of `SeriesData`.
    """

    def __init__(
        self,
        *,
        n_steps: int = 1500,
        n_channels: int = 3,
        noise: float = 0.3,
        missing_share: float = 0.0,
        **series,
    ):
        super().__init__(**series)
        if n_steps < 2 or n_channels < 1:
            raise ValueError(
                f"data.n_steps must be at least 2 and data.n_channels at least 1, got {n_steps=}, "
                f"{n_channels=}"
            )
        if noise < 0 or not 0 <= missing_share < 1:
            raise ValueError(
                "data.noise must be at least 0 and data.missing_share at least 0 and below 1, got "
                f"{noise=}, {missing_share=}"
            )
        self.n_steps = n_steps
        self.n_channels = n_channels
        self.noise = noise
        self.missing_share = missing_share

    def load(self) -> SeriesFrame:
        """Draw the series."""
        rng = np.random.default_rng(0)
        hours = np.arange(self.n_steps)
        table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=self.n_steps, freq="h")})
        for channel in range(self.n_channels):
            phase, slope = rng.uniform(0, 2 * np.pi), rng.normal(0, 1 / 1000)
            season = np.sin(2 * np.pi * hours / _DAY + phase)
            season += 0.5 * np.sin(2 * np.pi * hours / _WEEK + rng.uniform(0, 2 * np.pi))
            values = season + slope * hours + self.noise * rng.normal(size=self.n_steps)
            values[rng.random(self.n_steps) < self.missing_share] = np.nan
            table[f"c{channel}"] = 10.0 * channel + (channel + 1) * values
        return from_wide(table.drop(columns=self.drop), time_column="date", gaps="refuse")
