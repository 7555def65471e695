"""Illness: influenza-like illness in the United States by the week; 7 channels, 966 steps.

CDC, in the file of Wu et al., "Autoformer", arXiv:2106.13008, Sec. 4, and its split by 70, 10 and
20 %. Papers use a look-back of 104 (PatchTST) and horizons of 24, 36, 48 and 60.
"""

from jepa.data.series import SeriesData
from jepa.data.series_card import READING, SeriesCard
from jepa.data.series_frames import SeriesFrame


class Illness(SeriesData):
    """Weekly shares and counts of patients.

    Args:
        data_dir: folder that holds illness/national_illness.csv.
        series: settings of `SeriesData`.
    """

    card = SeriesCard(
        place="illness/national_illness.csv",
        source="national_illness.csv of the Autoformer data sets (arXiv:2106.13008)",
        rows=966,
        channels=7,
        sha256="93601f64d2566dc796ca4305adad8b8560c2db1a1ff04543c3bd813a7263570a",
    )
    season = 52
    reading = READING

    def __init__(self, *, data_dir: str, **series):
        super().__init__(**series)
        self.data_dir = data_dir

    def load(self) -> SeriesFrame:
        """Read the file."""
        return self.card.read(self.data_dir, drop=self.drop)
