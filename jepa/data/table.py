"""Any table of yours: `data=table data.path=<csv|csv.gz|tsv|parquet> data.target=<column>`."""

import pandas as pd

from jepa.data.readers import read_table
from jepa.data.tabular import TableData


class Table(TableData):
    """A csv, tsv (plain or gzipped) or parquet file. Rows, columns and classes are the file's.

    Args:
        path: the file, relative to the working directory.
        target: the column to predict; None for none.
        task: `auto`, `binary`, `multiclass`, `regression` or `none`; see `choose_task`.
        table: settings of `TableData`.
    """

    def __init__(self, *, path: str, target: str | None = None, task: str = "auto", **table):
        self.path = path
        self.target = target
        self.task = task
        super().__init__(**table)

    def load(self) -> dict[str, pd.DataFrame]:
        """Read the file."""
        return {"train": read_table(self.path)}
