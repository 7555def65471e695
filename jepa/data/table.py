"""Any table of yours: `data=table data.path=<csv|tsv|parquet> data.target=<column>`."""

import pandas as pd

from jepa.data.base import TableData
from jepa.data.readers import read_table


class Table(TableData):
    """A csv, csv.gz, tsv or parquet file. Rows, columns and classes are those of the file.

    Args:
        path: the file, relative to the working directory.
        table: settings of `TableData`.
    """

    def __init__(self, *, path: str, **table):
        super().__init__(**table)
        self.path = path

    def load(self) -> dict[str, pd.DataFrame]:
        """Read the file."""
        return {"train": read_table(self.path)}
