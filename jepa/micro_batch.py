"""Micro-batches that need less memory and leave a run what it is; pure functions."""

from collections.abc import Mapping
from typing import Any

# Counts of micro-batches, which grow as these shrink; shares, which are floats, do not.
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")


def smaller(micro_batch: int) -> int:
    """Return the factor down to the next smaller micro-batch that divides this one; 1: none."""
    return next((n for n in range(2, micro_batch + 1) if micro_batch % n == 0), 1)


def less_memory(cfg: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the next smaller micro-batch with the same effective batch; nothing below 1.

    Args:
        cfg: settled.

    Returns:
        `{key: [what it is, what it is to be]}`
    """
    data, trainer = cfg["data"], cfg["trainer"]
    factor, rows = smaller(data["batch_size"]), data["batch_size"]
    if factor == 1:
        return {}
    n = trainer["accumulate_grad_batches"]
    changes = {
        "data.batch_size": [rows, rows // factor],
        "trainer.accumulate_grad_batches": [n, n * factor],
    }
    for name in LIMITS:
        limit = trainer.get(name)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit:
            changes[f"trainer.{name}"] = [limit, limit * factor]
    return changes
