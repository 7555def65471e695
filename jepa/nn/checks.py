"""Checks of settings: each says the key, the value and what would do."""

from collections.abc import Sequence


def check_range(key: str, value: float | int, *, low: int, high: int | None = None) -> None:
    """Refuse a number outside [low, high]; without `high`, below `low`.

    Raises:
        ValueError: then.
    """
    if not low <= value or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{key} must be {bounds}, got {value}")


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is not among `choices`.

    Raises:
        ValueError: then.
    """
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def check_heads(prefix: str, width: int, n_heads: int) -> None:
    """Refuse a width that the heads do not divide; `prefix` begins the two keys.

    Raises:
        ValueError: then, with the nearest values that fit.
    """
    check_range(f"{prefix}width", width, low=1)
    check_range(f"{prefix}n_heads", n_heads, low=1)
    if width % n_heads:
        widths = sorted({max(width // n_heads, 1) * n_heads, -(-width // n_heads) * n_heads})
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        heads = sorted(sorted(divisors, key=lambda n: abs(n - n_heads))[:2])
        raise ValueError(
            f"{prefix}width={width} must be a multiple of {prefix}n_heads={n_heads}: take "
            f"{prefix}width={' or '.join(map(str, widths))}, or "
            f"{prefix}n_heads={' or '.join(map(str, heads))}"
        )


def check_shares(key: str, low: float, width: float, *, all_taken: str | None = None) -> None:
    """Refuse shares [low, low + width] outside (0, 1]; `key` begins the two keys.

    `all_taken` says what goes wrong if every share is 1; None where nothing does.

    Raises:
        ValueError: then.
    """
    if not (0 < low <= 1 and width >= 0 and low + width <= 1 + 1e-9):
        raise ValueError(
            f"{key}_low and {key}_low + {key}_width must lie in (0, 1] and {key}_width must not be "
            f"negative, got {key}_low={low}, {key}_width={width}"
        )
    if all_taken is not None and low >= 1:
        raise ValueError(f"{key}_low={low} {all_taken}: take less than 1")
