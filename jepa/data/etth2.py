"""ETTh2: the second transformer, by the hour. 7 channels, 17,420 steps, the official borders.

Training 8,640, validation and test 2,880 steps each; see `jepa/data/ett.py`.
"""

from jepa.data.ett import ett_card
from jepa.data.series import SeriesData
from jepa.data.series_card import READING
from jepa.data.series_frames import SeriesFrame
from jepa.data.series_splits import EttSplit


class ETTh2(SeriesData):
    """Loads and oil temperature of a power transformer.

    Args:
        data_dir: folder that holds, or is to hold, ett/ETTh2.csv.
        series: settings of `SeriesData`.
    """

    card = ett_card(
        "ETTh2",
        rows=17_420,
        sha256="a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
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
