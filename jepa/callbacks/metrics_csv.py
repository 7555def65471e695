"""`metrics.csv` at the root of the run directory, appended when a run resumes."""

import csv
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger


class AppendingWriter(_ExperimentWriter):
    """Keep the rows of an earlier session of the same run; the stock writer deletes them."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


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
