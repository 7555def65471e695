"""Diabetes: 442 rows, 10 numeric columns, regression.

Metric: RMSE in the unit of the target, a score of disease progression from 25 to 346. Source:
scikit-learn's `load_diabetes` (Efron et al., "Least Angle Regression", 2004) in the original units;
it comes with scikit-learn, so nothing is downloaded. It has no published split.
"""

from typing import cast

import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.utils import Bunch

from jepa.data.tabular import Card, TableData


class Diabetes(TableData):
    """Ten measurements at the start; how far the disease went in a year."""

    target = "progression"
    task = "regression"
    card = Card(
        source="scikit-learn, load_diabetes",
        rows={"train": 442},
        columns=10,
        classes=0,
        metric="rmse",
    )

    def load(self) -> dict[str, pd.DataFrame]:
        """Return measurements and progression."""
        frame = cast(Bunch, load_diabetes(as_frame=True, scaled=False)).frame
        return {"train": frame.rename(columns={"target": self.target})}
