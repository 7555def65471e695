"""Seeded, stratified splits of the rows of a table."""

import numpy as np
from numpy.random import Generator


def split_rows(
    n_rows: int, shares: dict[str, float], *, labels: np.ndarray | None, seed: int
) -> dict[str, np.ndarray]:
    """Draw each named part, and leave the rest to `train`; row numbers are ascending.

    With labels every part has the classes in their shares (to within a row), and `train` has at
    least one row of each. A share of 0 gives no part; any other gives at least one row.

    Raises:
        ValueError: for shares outside [0, 1), or shares that leave no two rows for training.
    """
    wanted = {name: _count(name, share, n_rows) for name, share in shares.items() if share}
    setting = ", ".join(f"data.{name}_share={share}" for name, share in shares.items())
    if n_rows - sum(wanted.values()) < 2:
        raise ValueError(
            f"{n_rows} rows are too few: {setting} leave {n_rows - sum(wanted.values())} rows for "
            "training; give more rows, or lower the shares (0 means no such split)"
        )
    rng = np.random.default_rng(seed)
    groups = np.zeros(n_rows, dtype=np.int64) if labels is None else labels
    left = rng.permutation(n_rows)
    parts = {}
    for name, count in wanted.items():
        taken = _draw(groups[left], count, rng)
        if not taken.any():
            raise ValueError(
                f"{n_rows} rows of {len(np.unique(groups))} classes are too few for a {name} "
                f"split: {setting}; give more rows per class, or set data.{name}_share=0"
            )
        parts[name] = np.sort(left[taken])
        left = left[~taken]
    return {"train": np.sort(left)} | parts


def _count(name: str, share: float, n_rows: int) -> int:
    if not 0.0 <= share < 1.0:
        raise ValueError(f"data.{name}_share must be at least 0 and below 1, got {share}")
    return max(1, round(share * n_rows))


def _draw(groups: np.ndarray, count: int, rng: Generator) -> np.ndarray:
    """Mark `count` rows, each class in its share (largest remainders), never all of a class."""
    _, code, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    quota = sizes * count / len(groups)
    wanted = np.minimum(np.floor(quota).astype(np.int64), sizes - 1)
    order = np.argsort(-(quota - wanted) + rng.uniform(0.0, 1e-9, len(sizes)))  # ties: by lot
    order = order[wanted[order] < sizes[order] - 1]
    wanted[order[: count - wanted.sum()]] += 1
    rows = np.argsort(code, kind="stable")
    first = np.cumsum(sizes) - sizes
    place = np.arange(len(rows)) - first[code[rows]]  # how many of its class come before
    marked = np.zeros(len(groups), dtype=bool)
    marked[rows] = place < wanted[code[rows]]
    return marked
