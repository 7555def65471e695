"""Wine recognition: 178 rows, 13 numeric columns, 3 classes.

Metric: accuracy. Source: scikit-learn's `load_wine`, a copy of UCI's set; it comes with
scikit-learn, so nothing is downloaded. It has no published split.
"""

from typing import cast

import pandas as pd
from sklearn.datasets import load_wine
from sklearn.utils import Bunch

from jepa.data.tabular import Card, TableData


class Wine(TableData):
    """Chemical analysis of wines of three growers."""

    target = "grower"
    task = "multiclass"
    card = Card(
        source="scikit-learn, load_wine",
        rows={"train": 178},
        columns=13,
        classes=3,
        metric="accuracy",
    )

    def load(self) -> dict[str, pd.DataFrame]:
        """Return analysis and grower."""
        frame = cast(Bunch, load_wine(as_frame=True)).frame
        return {"train": frame.rename(columns={"target": self.target})}
