"""Wisconsin diagnostic breast cancer: 569 rows, 30 numeric columns, 2 classes.

Metric: accuracy. Source: scikit-learn's `load_breast_cancer`, a copy of UCI's set; it comes with
scikit-learn, so nothing is downloaded. It has no published split.
"""

from typing import cast

import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.utils import Bunch

from jepa.data.tabular import Card, TableData


class BreastCancer(TableData):
    """Measurements of cell nuclei; benign or malignant."""

    target = "diagnosis"
    task = "binary"
    card = Card(
        source="scikit-learn, load_breast_cancer",
        rows={"train": 569},
        columns=30,
        classes=2,
        metric="accuracy",
    )

    def load(self) -> dict[str, pd.DataFrame]:
        """Return measurements and diagnosis."""
        bunch = cast(Bunch, load_breast_cancer(as_frame=True))
        frame = bunch.frame.rename(columns={"target": self.target})
        frame[self.target] = frame[self.target].map(dict(enumerate(bunch.target_names)))
        return {"train": frame}
