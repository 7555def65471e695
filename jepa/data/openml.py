"""Tables of OpenML, through scikit-learn and its cache below openml/ in the data folder."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import cast

import pandas as pd
from sklearn.datasets import fetch_openml
from sklearn.utils import Bunch

from jepa.data.files import check_downloads


def read_openml(
    data_id: int, data_dir: str, *, target: str, timeout_s: float = 20.0
) -> pd.DataFrame:
    """Read a data set, downloaded first if it is not cached; its target is renamed to `target`.

    scikit-learn compares the download with the MD5 that OpenML states.

    Raises:
        FileNotFoundError: if it is not cached and cannot be downloaded.
    """
    try:
        if not (Path(data_dir) / "openml").is_dir():  # nothing is cached
            check_downloads()
        with _timeout(timeout_s):
            bunch = fetch_openml(
                data_id=data_id, data_home=data_dir, as_frame="auto", n_retries=1, delay=0.1
            )
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"OpenML data set {data_id} is not cached and cannot be downloaded ({error}): looked "
            f"below {Path(data_dir).absolute() / 'openml'}, tried https://www.openml.org/d/{data_id}"
            "; load it once with a network, or point paths.data_dir (or JEPA_DATA) to the folder "
            "that holds openml/"
        ) from error
    bunch = cast(Bunch, bunch)
    data = bunch.data
    if not isinstance(data, pd.DataFrame):  # stored as a sparse matrix
        data = pd.DataFrame(data.toarray(), columns=pd.Index(bunch.feature_names))
    return data.assign(**{target: bunch.target})


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Give up on a silent server; scikit-learn would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
