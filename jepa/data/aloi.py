"""Aloi: 108,000 rows, 128 numbers, 1,000 classes.

Metric: accuracy. Source: OpenML 42396 (Amsterdam Library of Object Images), through
scikit-learn, which compares the download with the MD5 that OpenML states. It has no published
split.
"""

import pandas as pd

from jepa.data.openml import read_openml
from jepa.data.tabular import Card, TableData


class Aloi(TableData):
    """Colour histograms of 1,000 small objects.

    Args:
        data_dir: folder that holds, or is to hold, scikit-learn's cache openml/.
        table: settings of `TableData`.
    """

    target = "class"
    task = "multiclass"
    card = Card(
        source="https://www.openml.org/d/42396",
        rows={"train": 108_000},
        columns=128,
        classes=1_000,
        metric="accuracy",
    )

    def __init__(self, *, data_dir: str, **table):
        super().__init__(**table)
        self.data_dir = data_dir

    def load(self) -> dict[str, pd.DataFrame]:
        """Return features and class."""
        return {"train": read_openml(42396, self.data_dir, target="class")}
