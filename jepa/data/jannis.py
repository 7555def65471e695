"""Jannis: 83,733 rows, 54 numbers, 4 classes.

Metric: accuracy. Source: OpenML 41168 (AutoML challenge 2015 to 2018), through
scikit-learn, which compares the download with the MD5 that OpenML states. It has no published
split.
"""

import pandas as pd

from jepa.data.openml import read_openml
from jepa.data.tabular import Card, TableData


class Jannis(TableData):
    """An anonymous set of the AutoML challenge.

    Args:
        data_dir: folder that holds, or is to hold, scikit-learn's cache openml/.
        table: settings of `TableData`.
    """

    target = "class"
    task = "multiclass"
    card = Card(
        source="https://www.openml.org/d/41168",
        rows={"train": 83_733},
        columns=54,
        classes=4,
        metric="accuracy",
    )

    def __init__(self, *, data_dir: str, **table):
        super().__init__(**table)
        self.data_dir = data_dir

    def load(self) -> dict[str, pd.DataFrame]:
        """Return features and class."""
        return {"train": read_openml(41168, self.data_dir, target="class")}
