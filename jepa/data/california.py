"""California housing: 13,209 training, 3,303 validation and 4,128 test rows, 8 numbers, regression.

Metric: RMSE in $100,000 (the unit of the target; 0.15 to 5.00001, cut off there). Source: the split
of Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data", arXiv:2106.11959, as npy
files in the repository HangtingYe/PTaRL; data from Pace and Barry, 1997 (US census of 1990). The
split is kept, and the files are verified by checksum.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from jepa.data.files import fetch
from jepa.data.tabular import Card, TableData

_URL = (
    "https://raw.githubusercontent.com/HangtingYe/PTaRL/"
    "c3fa26eb53cfcfd707b5a8765910e009f15141c4/data/california_housing/"
)
_SHA256 = {
    "N_train.npy": "a95dd08130733831b39e715abe14473ebb42feefa4c0aff311cdee6c5199b584",
    "N_val.npy": "af0c0400e4c18ea1fc1653fa23c203bbee5862756e67327b7a6d110f3de3c238",
    "N_test.npy": "249bdcd30a0bf3281ed83bbbe58233981b3cd5fc99bae1a6ae81a3eb16eb0313",
    "y_train.npy": "627d26ac933715fc92bbc369b34d92b9d31e242c764d961f3bd6ab2c9f9b9e09",
    "y_val.npy": "a6480088064d68a0ac50af20f27cfa0834127dfe8a0afbca6823709d4b7cd652",
    "y_test.npy": "93bfc0e8af7908026ab9d20cc3798579d97f4e5bfa558d39e5b03f5968ae078c",
}
_COLUMNS = [
    *("median_income", "house_age", "average_rooms", "average_bedrooms"),
    *("population", "average_occupation", "latitude", "longitude"),
]


class California(TableData):
    """Census blocks; the median value of their houses.

    Args:
        data_dir: folder that holds, or is to hold, california_housing/{N,y}_{train,val,test}.npy.
        table: settings of `TableData`.
    """

    target = "median_house_value"  # in $100,000
    task = "regression"
    card = Card(
        source=_URL,
        rows={"train": 13_209, "val": 3_303, "test": 4_128},
        columns=8,
        classes=0,
        metric="rmse",
    )

    def __init__(self, *, data_dir: str, **table):
        super().__init__(**table)
        self.data_dir = data_dir

    def load(self) -> dict[str, pd.DataFrame]:
        """Read the six arrays."""
        frames = {}
        for split in ("train", "val", "test"):
            frame = pd.DataFrame(self._read(f"N_{split}.npy"), columns=pd.Index(_COLUMNS))
            frames[split] = frame.assign(median_house_value=self._read(f"y_{split}.npy"))
        return frames

    def _read(self, name: str) -> np.ndarray:
        path = Path(self.data_dir) / "california_housing" / name
        return np.load(fetch(_URL + name, path, sha256=_SHA256[name]))
