"""Score frozen codes at every validation.

Codes are extracted once, in eval mode, outside the training step, and handed to every probe;
the random state of training is put back, so that a run with probes has the same weights.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import lightning as L
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from torch import Tensor

from jepa.probes.label_free import label_free

Probes = dict[str, Callable[..., dict[str, float]]]
Codes = tuple[Tensor, Tensor]  # codes and their labels


@runtime_checkable
class Embedder(Protocol):
    """What a probe needs of a model."""

    device: Any

    def embed(self, x: Tensor, /) -> Tensor:
        """Return one code per row; where values can be absent it takes their `mask` as well."""
        ...


@contextmanager
def unnoticed() -> Iterator[None]:
    """Put every global random state back afterwards."""
    states = _collect_rng_states()
    try:
        yield
    finally:
        _set_rng_states(states)


@torch.no_grad()
def embed_all(module: Embedder, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return (codes, labels) of every batch, on the CPU; labels are empty where there are none.

    A model that codes each channel of a window apart gives a row per channel; the futures
    `y` [b, c, h] are then rows of channels too, NaN where they were not observed. Where a window
    has one label, its channels' codes stand side by side.
    """
    codes, labels = [], []
    for batch in batches:
        mask = {"mask": batch["mask"].to(module.device)} if "mask" in batch else {}
        code = module.embed(batch["x"].to(module.device), **mask).float().cpu()
        label = batch["y"].cpu() if "y" in batch else torch.empty(0)
        if label.ndim > 1:
            if mask:
                label = label.masked_fill(~batch["mask"][..., -label.shape[-1] :].cpu(), torch.nan)
            label = label.reshape(len(code), -1)
        elif len(label):
            code = code.reshape(len(label), -1)
        codes.append(code)
        labels.append(label)
    return torch.cat(codes), torch.cat(labels)


def score_all(probes: Probes, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> dict:
    """Return `{"<name>/<metric>": value}` of every probe on the same codes."""
    return {
        f"{name}/{metric}": value
        for name, probe in probes.items()
        for metric, value in probe(*train, *val).items()
    }


class Probe(L.Callback):
    """Log `probe/<name>/<metric>` and `probe/label_free/<metric>` at every validation.

    Args:
        probes: by name; each takes (train codes, train labels, val codes, val labels).
        max_rows, max_val_rows: sizes of the seeded subsets that are embedded.
        seed: of the subsets; every validation sees the same rows.
        at_start: also score the untrained codes, as step 0, and the raw input, as `raw/<name>/...`
            of that step: where a curve starts and what it has to pass.
        names: of the probes that are scored here; the report has them all. None: all.
        raw: returns the input of (train batches, val batches) as features, in `n_rows` for val;
            None leaves them out.
    """

    def __init__(
        self,
        *,
        probes: Probes,
        max_rows: int,
        max_val_rows: int,
        seed: int,
        at_start: bool = False,
        names: Sequence[str] | None = None,
        raw: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ):
        if min(max_rows, max_val_rows) < 2:
            raise ValueError(
                "callbacks.probe.max_rows and max_val_rows must be at least 2, "
                f"got {max_rows=}, {max_val_rows=}"
            )
        self.probes = {k: v for k, v in probes.items() if names is None or k in names}
        self.max_rows = max_rows
        self.max_val_rows = max_val_rows
        self.seed = seed
        self.at_start, self.raw = at_start, raw

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score what training starts from, unless it goes on."""
        if not self.at_start or trainer.global_step:
            return
        data = cast(Any, trainer).datamodule
        pl_module.eval()
        with unnoticed():
            train, val = self.codes(data, cast(Embedder, pl_module))
            scores = {f"probe/{key}": value for key, value in self.scores(train, val).items()}
            if self.raw is not None and self.probes and len(val[1]):
                inputs = (self.batches(data, split) for split in ("train", "val"))
                raw = self.raw(*inputs, n_rows=len(val[1]))
                rows = ((codes, y) for codes, (_, y) in zip(raw, (train, val), strict=True))
                scores |= {
                    f"raw/{key}": value for key, value in score_all(self.probes, *rows).items()
                }
        pl_module.train()
        for logger in trainer.loggers:
            logger.log_metrics(scores | {"time/samples": 0, "time/train_s": 0.0}, step=0)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Embed both splits once and score them, on every rank alike."""
        if trainer.sanity_checking:
            return
        started = time.perf_counter()
        with unnoticed():
            codes = self.codes(cast(Any, trainer).datamodule, cast(Embedder, pl_module))
            scores = self.scores(*codes)
        # float32: MPS has no float64
        pl_module.log("time/probe_s", time.perf_counter() - started)
        pl_module.log_dict({f"probe/{key}": torch.tensor(float(v)) for key, v in scores.items()})

    def batches(self, data: Any, split: str) -> Iterable[dict[str, Tensor]]:
        """Return the same rows of a split at every call."""
        n_rows = self.max_rows if split == "train" else self.max_val_rows
        return data.probe_batches(split, max_rows=n_rows, seed=self.seed)

    def codes(self, data: Any, model: Embedder) -> tuple[Codes, Codes]:
        """Return codes and labels of train, where probes are fitted, and of val."""
        val = embed_all(model, self.batches(data, "val"))
        if not self.probes or not len(val[1]):
            return (val[0][:0], val[1][:0]), val
        return embed_all(model, self.batches(data, "train")), val

    def scores(self, train: Codes, val: Codes) -> dict[str, float]:
        """Return `{"<name>/<metric>": value}` of every probe."""
        scores = {f"label_free/{key}": value for key, value in label_free(val[0]).items()}
        return scores | (score_all(self.probes, train, val) if len(train[0]) else {})
