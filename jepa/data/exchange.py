"""Exchange rates of 8 countries against the dollar: 8 channels, 7,588 days from 1990.

Lai et al., arXiv:1703.07015, Sec. 4.2; the file of Wu et al., "Autoformer", arXiv:2106.13008,
Sec. 4, and its split by 70, 10 and 20 %. Daily rates have no season.
"""

from jepa.data.series import SeriesData
from jepa.data.series_card import READING, SeriesCard
from jepa.data.series_frames import SeriesFrame


class Exchange(SeriesData):
    """Daily exchange rates.

    Args:
        data_dir: folder that holds exchange_rate/exchange_rate.csv.
        series: settings of `SeriesData`.
    """

    card = SeriesCard(
        place="exchange_rate/exchange_rate.csv",
        source="exchange_rate.csv of the Autoformer data sets (arXiv:2106.13008)",
        rows=7_588,
        channels=8,
        sha256="48b4d9d3d508f5104162e85b9a6042e3557fde11aa9f2944eba8c0d0efc89842",
    )
    season = 0
    reading = READING

    def __init__(self, *, data_dir: str, **series):
        super().__init__(**series)
        self.data_dir = data_dir

    def load(self) -> SeriesFrame:
        """Read the file."""
        return self.card.read(self.data_dir, drop=self.drop)
