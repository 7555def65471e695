"""Handwritten digits as a table: 1,797 rows, 64 columns (8 x 8 pixels, 0 to 16), 10 classes.

Metric: accuracy. Source: scikit-learn's `load_digits`, a copy of the test set of UCI's "Optical
Recognition of Handwritten Digits"; it comes with scikit-learn, so nothing is downloaded. It has no
published split. Pixels that are blank in every training row are dropped as constant.
"""

from typing import cast

import pandas as pd
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from jepa.data.tabular import Card, TableData


class DigitsTable(TableData):
    """The offline default."""

    target = "digit"
    task = "multiclass"
    card = Card(
        source="scikit-learn, load_digits",
        rows={"train": 1797},
        columns=64,
        classes=10,
        metric="accuracy",
    )

    def load(self) -> dict[str, pd.DataFrame]:
        """Return pixels and digit."""
        frame = cast(Bunch, load_digits(as_frame=True)).frame
        return {"train": frame.rename(columns={"target": self.target})}
