"""Run by tests/test_ddp.py: two processes train; each writes what it has seen."""

import json
import sys
from functools import partial
from pathlib import Path

import lightning as L
import torch
from support import settings

from jepa.callbacks.probe import Probe
from jepa.data.table import Table
from jepa.probes.linear import ridge
from jepa.run import build_model


class Watch(L.Callback):
    def __init__(self, out):
        self.out, self.rows, self.masks = out, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.append(batch["x"].nan_to_num().sum(1).tolist())
        masks = pl_module.masks(batch["x"], pl_module.seed, trainer.current_epoch, batch_idx)
        self.masks.append(masks.context.tolist())

    def on_train_end(self, trainer, pl_module):
        seen = {
            "weights": {k: v.double().sum().item() for k, v in pl_module.state_dict().items()},
            "metrics": {
                k: v.item()
                for k, v in trainer.callback_metrics.items()
                if not k.startswith(("train/", "time/"))
            },
            "rows": self.rows,
            "masks": self.masks,
            "steps": trainer.global_step,
        }
        (self.out / f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))


def main(folder: Path, devices: int) -> None:
    L.seed_everything(0, verbose=False)
    arguments = [
        "data=table", f"data.path={folder}/t.csv", "data.target=label",
        "model.width=8", "model.depth=1", "model.n_heads=2", "model.predictor_width=8",
        "model.predictor_depth=1", "model.predictor_n_heads=2",
    ]  # fmt: skip
    data = Table(path=f"{folder}/t.csv", target="label", batch_size=16 // devices)
    data.prepare()
    model = build_model(settings(folder, *arguments), data.spec)
    probe = Probe(
        probes={"ridge": partial(ridge, l2=1.0, seed=0)}, max_rows=50, max_val_rows=10, seed=0
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        callbacks=[probe, Watch(folder)],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
