"""Train a grid of T-JEPA on California housing once, for searches to be judged on the table.

`JEPA_DATA=<data> python -m tests.bench.tabulate` writes tjepa_grid.csv: the settings of each run,
its error on the validation split (probe/ridge/error) after each epoch, and the seconds of CPU.
It goes on with the points that are missing.
"""

import csv
import itertools
import tempfile
import time
from pathlib import Path

from tests.support import run_training

TABLE = Path(__file__).with_name("tjepa_grid.csv")
GRID = {
    "model.optimizer.lr": ["0.0003", "0.001", "0.003", "0.01"],
    "model.width": ["16", "32", "64"],
    "model.depth": ["1", "2"],
    "model.numeric_embedding": ["linear", "periodic", "piecewise"],
    "model.momentum": ["0.98", "0.996"],
}
N_EPOCHS = 5
FIXED = (
    "data=california", "trainer=cpu", f"trainer.max_epochs={N_EPOCHS}",
    "trainer.limit_train_batches=16", "trainer.check_val_every_n_epoch=1", "logger=csv",
    "callbacks.probe.max_rows=2000", "callbacks.probe.max_val_rows=2000", "callbacks.collapse=null",
    "test=false", "report.max_rows=200", "report.max_split_rows=200",
)  # fmt: skip


def main() -> None:
    """Run every point that is missing and add it to the table."""
    points = [dict(zip(GRID, one, strict=True)) for one in itertools.product(*GRID.values())]
    errors = [f"error_{n}" for n in range(1, N_EPOCHS + 1)]
    with TABLE.open("a+", newline="") as file:
        file.seek(0)
        known = [{key: row[key] for key in GRID} for row in csv.DictReader(file)]
        writer = csv.DictWriter(file, [*GRID, *errors, "seconds"], lineterminator="\n")
        if not known:
            writer.writeheader()
        for point in points:
            if point in known:
                continue
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                run_dir = Path(folder) / "run"
                run_training(run_dir, *FIXED, *(f"{k}={v}" for k, v in point.items()))
                seconds = time.process_time() - began
                with (run_dir / "metrics.csv").open() as metrics:
                    found = [one["probe/ridge/error"] for one in csv.DictReader(metrics)]
                values = [f"{float(value):.5f}" for value in found if value]
            row = point | dict(zip(errors, values, strict=True)) | {"seconds": f"{seconds:.2f}"}
            writer.writerow(row)
            file.flush()


if __name__ == "__main__":
    main()
