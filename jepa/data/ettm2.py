"""ETTm2: the second transformer, every 15 minutes. 7 channels, 69,680 steps, the official borders.

Training 34,560, validation and test 11,520 steps each; see `jepa/data/ett.py`.
"""

from jepa.data.ett import ett_card
from jepa.data.series import SeriesData
from jepa.data.series_card import READING
from jepa.data.series_frames import SeriesFrame
from jepa.data.series_splits import EttSplit


class ETTm2(SeriesData):
    """Loads and oil temperature of a power transformer.

    Args:
        data_dir: folder that holds, or is to hold, ett/ETTm2.csv.
        series: settings of `SeriesData`.
    """

    card = ett_card(
        "ETTm2",
        rows=69_680,
        sha256="db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd",
    )
    split = EttSplit()
    season = 96
    reading = READING

    def __init__(self, *, data_dir: str, **series):
        super().__init__(**series)
        self.data_dir = data_dir

    def load(self) -> SeriesFrame:
        """Read the file."""
        return self.card.read(self.data_dir, drop=self.drop)
