"""Electricity: the hourly consumption of 321 clients; 321 channels, 26,304 steps.

UCI's ElectricityLoadDiagrams20112014, in the file of Wu et al., "Autoformer", arXiv:2106.13008,
Sec. 4, and its split by 70, 10 and 20 %. No checksum of it is published.
"""

from jepa.data.series import SeriesData
from jepa.data.series_card import READING, SeriesCard
from jepa.data.series_frames import SeriesFrame


class Electricity(SeriesData):
    """Hourly electricity consumption.

    Args:
        data_dir: folder that holds electricity/electricity.csv.
        series: settings of `SeriesData`.
    """

    card = SeriesCard(
        place="electricity/electricity.csv",
        source="electricity.csv of the Autoformer data sets (arXiv:2106.13008)",
        rows=26_304,
        channels=321,
    )
    season = 24
    reading = READING

    def __init__(self, *, data_dir: str, **series):
        super().__init__(**series)
        self.data_dir = data_dir

    def load(self) -> SeriesFrame:
        """Read the file."""
        return self.card.read(self.data_dir, drop=self.drop)
