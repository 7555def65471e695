"""How sure a difference is: of two runs on the same samples, of two groups of seeds, or of neither.

Every function returns a `Difference` b - a with an interval. Nothing here knows a run.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

FEW_SEEDS = 3  # two may agree by chance
_CHUNK = 2**22  # picks held at once


@dataclass(frozen=True)
class Difference:
    """b - a.

    Args:
        value: of the metrics.
        low, high: its interval at the level asked for; None where there is nothing to make one of.
        how: what the interval is made of, in words.
        effect: its size without a unit; `effect_name` says which.
        p: of McNemar's test, where it applies.
    """

    value: float
    low: float | None
    high: float | None
    how: str
    effect: float | None = None
    effect_name: str = ""
    p: float | None = None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_samples(
    a: np.ndarray,
    b: np.ndarray,
    *,
    root: bool = False,
    block: int = 1,
    level: float = 0.95,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare the losses of the same samples by a bootstrap of pairs.

    With `block` > 1 whole blocks of neighbours are drawn (Kuensch, 1989, Annals of Statistics 17,
    1217-1241). Losses of 0 and 1 also get McNemar's exact test (1947, Psychometrika 12, 153-157)
    and Cohen's h.

    Args:
        a: loss of each sample.
        b: likewise, of the same samples.
        root: compare the roots of the means.
        block: neighbours that err together.
        level: of the interval.
        n_bootstrap: resamples.
        seed: of them.
    """
    n, sides = len(a), np.stack([a, b]).astype(np.float64)
    means = sides.mean(1)
    finish = np.sqrt if root else np.asarray
    value = float(np.subtract(*finish(means)[::-1]))
    labels = bool(np.isin(sides, (0.0, 1.0)).all())
    block = max(1, min(block, n // 2))
    rng = np.random.default_rng(seed)
    if labels and block == 1:  # counts of the three kinds of pairs are all that matters
        worse, better = float((b > a).mean()), float((b < a).mean())
        drawn = rng.multinomial(n, [worse, better, max(0.0, 1 - worse - better)], n_bootstrap)
        gaps = (drawn[:, 0] - drawn[:, 1]) / n
    else:
        resampled = finish(block_means(sides, block, n_bootstrap, rng))
        gaps = resampled[1] - resampled[0]
    tail = 50 * (1 - level)
    low, high = (float(one) for one in np.percentile(gaps, [tail, 100 - tail]))
    kind = f" in blocks of {block}" if block > 1 else ""
    how = f"bootstrap of {n:,} pairs of samples{kind}"
    if not labels:
        spread = float((sides[1] - sides[0]).std())
        effect = float(means[1] - means[0]) / spread if spread else None
        return Difference(value, low, high, how, effect, "mean of the pairs / their std")
    p = mcnemar(int((b > a).sum()), int((b < a).sum())) if block == 1 else None
    return Difference(value, low, high, how, cohens_h(*means), "Cohen's h", p)


def block_means(
    sides: np.ndarray, block: int, n_bootstrap: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the means of resamples of whole blocks, [2, n_bootstrap]."""
    n = sides.shape[1]
    ends = np.pad(sides.cumsum(1), ((0, 0), (1, 0)))
    n_blocks, parts = round(n / block), []
    at_once = max(1, _CHUNK // n_blocks)
    for start in range(0, n_bootstrap, at_once):
        first = rng.integers(n - block + 1, size=(min(at_once, n_bootstrap - start), n_blocks))
        parts.append((ends[:, first + block] - ends[:, first]).sum(-1) / (n_blocks * block))
    return np.concatenate(parts, axis=1)


def mcnemar(n_worse: int, n_better: int) -> float:
    """Return the exact two-sided p of as uneven a split of the pairs that differ."""
    n, least = n_worse + n_better, min(n_worse, n_better)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1)]  # fmt: skip  # noqa: E501
    return min(1.0, 2 * sum(math.exp(one - n * math.log(2)) for one in logs))


def cohens_h(a: float, b: float) -> float:
    """Return the difference of two shares on the scale of arcsines (Cohen, 1988, ch. 6)."""
    return 2 * math.asin(math.sqrt(b)) - 2 * math.asin(math.sqrt(a))


def over_seeds(a: dict[str, float], b: dict[str, float], *, level: float = 0.95) -> Difference:
    """Compare values by seed: the same seeds in pairs, others by Welch's interval.

    Args:
        a: values by seed.
        b: likewise.
        level: of the interval.
    """
    value = statistics.fmean(b.values()) - statistics.fmean(a.values())
    how = f"{len(a)} and {len(b)} seeds"
    if min(len(a), len(b)) < FEW_SEEDS:
        return Difference(value, None, None, f"{how}: three of each make an interval")
    if a.keys() == b.keys():
        gaps = [b[seed] - a[seed] for seed in a]
        error, freedom = statistics.stdev(gaps) / math.sqrt(len(gaps)), len(gaps) - 1.0
        scale, name = statistics.stdev(gaps), "mean / std of the pairs"
        how = f"t interval of {len(a)} pairs of seeds"
    else:
        parts = [statistics.variance(one.values()) / len(one) for one in (a, b)]
        error = math.sqrt(sum(parts))
        rest = sum(v**2 / (len(one) - 1) for v, one in zip(parts, (a, b), strict=True))
        freedom = error**4 / rest if rest else 1.0
        scale = math.sqrt(statistics.fmean(statistics.variance(one.values()) for one in (a, b)))
        name, how = "Cohen's d", f"Welch's interval of {how}"
    if not scale:  # values are rounded to a whole number of samples: that is no certainty
        return Difference(value, None, None, f"{how}, which do not scatter")
    half = t_of(level, freedom) * error
    return Difference(value, value - half, value + half, how, value / scale, name)


def from_intervals(a: dict, b: dict, *, level: float = 0.95) -> Difference:
    """Compare two values by their own 95 % intervals, as if they were independent.

    On the same samples that is too wide: it may miss a difference, and claims none too many.
    """
    value = b["value"] - a["value"]
    if any(one[side] is None for one in (a, b) for side in ("low", "high")):
        return Difference(value, None, None, "one run each, without an interval")
    factor = normal_of(level) / normal_of(0.95)
    below = math.hypot(b["value"] - b["low"], a["high"] - a["value"]) * factor
    above = math.hypot(b["high"] - b["value"], a["value"] - a["low"]) * factor
    how = "the two intervals, as if independent"
    return Difference(value, value - below, value + above, how)


def interval_of_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % t interval of a mean over seeds."""
    half = t_of(0.95, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return middle - half, middle + half


def t_of(level: float, freedom: float | int) -> float:
    """Return the two-sided quantile of Student's distribution."""
    return float(stdtrit(freedom, 0.5 + level / 2))


def normal_of(level: float) -> float:
    """Return the two-sided quantile of the normal distribution."""
    return NormalDist().inv_cdf(0.5 + level / 2)
