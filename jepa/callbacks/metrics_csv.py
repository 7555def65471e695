"""`metrics.csv` at the root of the run directory, appended when a run resumes."""

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger


class AppendingWriter(_ExperimentWriter):
    """Keep the rows of an earlier session of the same run; the stock writer deletes them."""

    def _check_log_dir_exists(self) -> None:
        self.n_rows = 0
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="") as file:
                reader = csv.reader(file)
                self.metrics_keys = next(reader, [])
                self.n_rows = sum(1 for _ in reader)

    def save(self) -> None:
        """Append what was logged."""
        self.n_rows += len(self.metrics)
        super().save()

    def keep(self, n_rows: int) -> None:
        """Cut the file after so many rows: a killed run logged the later ones, and logs them again.

        A last row that was being written when the run was killed goes with them.
        """
        if self.n_rows >= n_rows and self.n_rows:
            self.n_rows = n_rows
            self._rewrite_with_new_header(self.metrics_keys)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Write the file anew, whole or not at all."""
        path = Path(self.metrics_file_path)
        temporary = path.with_name(f".{path.name}.tmp")
        with path.open(newline="") as old, temporary.open("w", newline="") as new:
            writer = csv.DictWriter(new, fieldnames=fieldnames)
            writer.writeheader()
            for row, _ in zip(csv.DictReader(old), range(self.n_rows), strict=False):
                writer.writerow(row)
        os.replace(temporary, path)


class MetricsCSV(CSVLogger):
    """Lightning's CSV logger with the file at `<run_dir>/metrics.csv` and nothing else."""

    def __init__(self, *, run_dir: str):
        super().__init__(run_dir, name="", version="", flush_logs_every_n_steps=20)

    def log_hyperparams(self, params=None) -> None:
        """Write nothing: the run's config.yaml is the one record of its settings."""

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The writer, opened at its first use."""
        if self._experiment is None:
            self._experiment = AppendingWriter(self.log_dir)
        return self._experiment

    def n_rows(self) -> int:
        """Write what was logged so far; return how many rows there are."""
        self.save()
        return self.experiment.n_rows  # pyright: ignore[reportAttributeAccessIssue]

    def keep(self, n_rows: int) -> None:
        """Cut the file after so many rows."""
        self.experiment.keep(n_rows)  # pyright: ignore[reportAttributeAccessIssue]
