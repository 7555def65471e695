"""ETTh1: the first transformer, by the hour. 7 channels, 17,420 steps, the official borders.

Training 8,640, validation and test 2,880 steps each; see `jepa/data/ett.py`.
"""

from jepa.data.ett import ett_card
from jepa.data.series import SeriesData
from jepa.data.series_card import READING
from jepa.data.series_frames import SeriesFrame
from jepa.data.series_splits import EttSplit


class ETTh1(SeriesData):
    """Loads and oil temperature of a power transformer.

    Args:
        data_dir: folder that holds, or is to hold, ett/ETTh1.csv.
        series: settings of `SeriesData`.
    """

    card = ett_card(
        "ETTh1",
        rows=17_420,
        sha256="f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    )
    split = EttSplit()
    season = 24
    reading = READING

    def __init__(self, *, data_dir: str, **series):
        super().__init__(**series)
        self.data_dir = data_dir

    def load(self) -> SeriesFrame:
        """Read the file."""
        return self.card.read(self.data_dir, drop=self.drop)
