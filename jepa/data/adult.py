"""Adult (census income): 32,561 training and 16,281 test rows, 14 columns, 2 classes.

6 numbers and 8 categories, `?` for missing. Metric: accuracy. Source: UCI, "Adult" (Becker and
Kohavi, 1996), CC BY 4.0; its own test split is kept, validation rows are drawn from the training
rows. The files are read as UCI publishes them, and verified by checksum.
"""

from pathlib import Path

import pandas as pd

from jepa.data.files import fetch
from jepa.data.tabular import Card, TableData

_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/"
_SHA256 = {
    "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
    "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
}
_COLUMNS = [
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation"),
    *("relationship", "race", "sex", "capital_gain", "capital_loss", "hours_per_week"),
    *("native_country", "income"),
]


class Adult(TableData):
    """People of the US census of 1994; is their income above $50,000 a year?

    Args:
        data_dir: folder that holds, or is to hold, adult/adult.data and adult/adult.test.
        table: settings of `TableData`.
    """

    target = "income"
    task = "binary"
    card = Card(
        source=_URL,
        rows={"train": 32_561, "test": 16_281},
        columns=14,
        classes=2,
        metric="accuracy",
    )

    def __init__(self, *, data_dir: str, **table):
        super().__init__(**table)
        self.data_dir = data_dir

    def load(self) -> dict[str, pd.DataFrame]:
        """Read both files."""
        return {"train": self._read("adult.data"), "test": self._read("adult.test")}

    def _read(self, name: str) -> pd.DataFrame:
        path = fetch(_URL + name, Path(self.data_dir) / "adult" / name, sha256=_SHA256[name])
        frame = pd.read_csv(path, names=_COLUMNS, skipinitialspace=True, na_values="?", comment="|")
        # in adult.test the labels end in a dot
        return frame.assign(income=frame["income"].str.rstrip("."))
