"""The label of daily market bars: will a price reach a threshold within the next days?"""

import numpy as np
from jaxtyping import Int

from jepa.data.series_frames import SeriesFrame

CLASSES = ("below", "above")
PRICES = ("high", "close")


def check_label(price: str, threshold: float) -> None:
    """Refuse settings that give no label.

    Raises:
        ValueError: naming the setting.
    """
    if price not in PRICES:
        raise ValueError(f"data.price must be one of {', '.join(PRICES)}, got {price!r}")
    if not 0 < threshold < 10:
        raise ValueError(
            f"data.threshold must be above 0 and below 10 (0.01 is one percent), got {threshold}"
        )


def reach_labels(
    frame: SeriesFrame, *, price: str, threshold: float, horizon: int
) -> Int[np.ndarray, " t"]:
    """Return 1 where `price` reaches close * (1 + threshold) within `horizon` steps, else 0.

    -1 in the last `horizon` steps, of which the future is unknown.

    Raises:
        ValueError: for absent columns, and prices that are missing or not above 0.
    """
    close, reached = (_price(frame, name) for name in ("close", price))
    ahead = np.lib.stride_tricks.sliding_window_view(reached[1:], horizon).max(axis=1)
    labels = np.full(len(close), -1, dtype=np.int64)
    labels[: len(ahead)] = ahead >= close[: len(ahead)] * (1.0 + threshold)
    return labels


def _price(frame: SeriesFrame, name: str) -> np.ndarray:
    names = [channel.lower() for channel in frame.channels]
    if name not in names:
        raise ValueError(
            f"market bars need a column {name!r}, the file has: {', '.join(frame.channels)}"
        )
    values = frame.values[names.index(name)]
    wrong = np.flatnonzero(~(values > 0))
    if len(wrong):
        raise ValueError(
            f"column {name!r} holds {values[wrong[0]]} in row {wrong[0] + 1}: a price is above 0; "
            "remove that day"
        )
    return values
