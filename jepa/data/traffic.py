"""Traffic: how full 862 places of Californian freeways are, by the hour; 17,544 steps.

California's Department of Transportation, in the file of Wu et al., "Autoformer",
arXiv:2106.13008, Sec. 4, and its split by 70, 10 and 20 %. No checksum of it is published.
"""

from jepa.data.series import SeriesData
from jepa.data.series_card import READING, SeriesCard
from jepa.data.series_frames import SeriesFrame


class Traffic(SeriesData):
    """Hourly occupancy of freeway lanes.

    Args:
        data_dir: folder that holds traffic/traffic.csv.
        series: settings of `SeriesData`.
    """

    card = SeriesCard(
        place="traffic/traffic.csv",
        source="traffic.csv of the Autoformer data sets (arXiv:2106.13008)",
        rows=17_544,
        channels=862,
    )
    season = 24
    reading = READING

    def __init__(self, *, data_dir: str, **series):
        super().__init__(**series)
        self.data_dir = data_dir

    def load(self) -> SeriesFrame:
        """Read the file."""
        return self.card.read(self.data_dir, drop=self.drop)
