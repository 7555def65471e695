"""`data=own`: the data that a run was trained on. It names no set, so nothing trains on it."""

from typing import NoReturn


def own(*, path: str | None) -> NoReturn:
    """Refuse to be trained on.

    Raises:
        ValueError: naming what is meant.
    """
    raise ValueError(
        "data=own stands for the data of a run that is evaluated (jepa.evaluate): to train, name a "
        "set, as data=digits, or data=table data.path=<file>"
    )
