"""Run by tests/test_guard_ddp.py: two processes train; one of them reads broken values."""

import json
import sys
from pathlib import Path

import torch
from guard_cases import Plant, fit


class OnOne(Plant):
    """Only the second process reads them."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 0:
            self.steps = ()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)


def main(folder: Path) -> None:
    plant = OnOne(3, 6, 7)
    settings = {"max_skips": 1, "dumps": 1}
    more = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    runner, model, guard = fit(folder, plant, settings=settings, **more)
    seen = {
        "still": [step for step, moved in plant.moved.items() if not moved],
        "weights": sum(p.double().sum().item() for p in model.parameters()),
        "restores": guard.n_restores,
        "skipped": guard.n_skipped,
    }
    (folder / f"rank{runner.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
