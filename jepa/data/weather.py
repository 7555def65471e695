"""Weather: 21 readings of a station in Jena every 10 minutes of 2020; 21 channels, 52,696 steps.

Max Planck Institute for Biogeochemistry, in the file of Wu et al., "Autoformer", arXiv:2106.13008,
Sec. 4, and its split by 70, 10 and 20 %. -9999 stands for a reading that failed.
"""

from jepa.data.series import SeriesData
from jepa.data.series_card import READING, SeriesCard
from jepa.data.series_frames import SeriesFrame

SENTINELS = ("missing", "keep")
_FAILED = -9999.0


class Weather(SeriesData):
    """Temperature, pressure, humidity, wind, rain and light.

    Args:
        data_dir: folder that holds weather/weather.csv.
        sentinels: `missing`: -9999 is masked; `keep`: it is a value, as in published tables.
        series: settings of `SeriesData`.
    """

    card = SeriesCard(
        place="weather/weather.csv",
        source="weather.csv of the Autoformer data sets (arXiv:2106.13008)",
        rows=52_696,
        channels=21,
        sha256="34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",
    )
    season = 144  # a day

    def __init__(self, *, data_dir: str, sentinels: str = "missing", **series):
        super().__init__(**series)
        if sentinels not in SENTINELS:
            raise ValueError(
                f"data.sentinels must be one of {', '.join(SENTINELS)}, got {sentinels!r}"
            )
        self.data_dir = data_dir
        self.reading = READING | ({"sentinel": _FAILED} if sentinels == "missing" else {})

    def load(self) -> SeriesFrame:
        """Read the file."""
        return self.card.read(self.data_dir, drop=self.drop, sentinel=self.reading.get("sentinel"))
