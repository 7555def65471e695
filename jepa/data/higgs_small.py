"""Higgs-small: 98,049 or 98,050 rows of HIGGS, 28 numbers, 2 classes.

Metric: accuracy (and ROC-AUC). Source: OpenML's "higgs" in the split of Gorishniy et al.,
arXiv:2106.11959 (62,752 training, 15,688 validation, 19,610 test rows), or as TabDDPM has it (one
training row fewer). Data: see `jepa/data/higgs.py`.

The whole is read from higgs_small/; no checksum of it is published. Without it the partial set of
higgs_small_subset/ is used, verified by checksum: it lacks the training part, so the validation
part becomes the training rows, and results cannot be compared with published ones.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from lightning.pytorch.utilities import rank_zero_warn

from jepa.data.files import fetch
from jepa.data.higgs import COLUMNS
from jepa.data.tabular import Card, TableData

_URL = (
    "https://raw.githubusercontent.com/ruheyun/tab-ddpm-dp/"
    "ec7254ad810d34b7fe403fca1aa076acf3de274b/data/higgs-small/"
)
_SHA256 = {
    "X_num_val.npy": "b44efc5cabfb183fd342d746d8fb2d11bd61f63240fac730c7e0b6d34511443f",
    "X_num_test.npy": "d6bb596fa4e6eda90868a42ad4929385067e32599c4a8d70d744c4893ed4617f",
    "y_val.npy": "ee4f8cb3db339cbf0601b413da12f856d063ce6bb1f842ab49945a4335e8f30b",
    "y_test.npy": "b11cb8e1768037d615c8d25122f86c4daf39872f1bacce8c44c45a4bd776bee0",
}
_TRAIN_ROWS = {"N": 62_752, "X_num": 62_751}  # by the name of the arrays: rtdl's, TabDDPM's


class HiggsSmall(TableData):
    """Simulated collisions; was it a Higgs boson?

    Args:
        data_dir: folder that holds higgs_small/ (X_num or N, and y: _train, _val, _test.npy), or
            holds, or is to hold, higgs_small_subset/ (X_num and y: _val, _test.npy).
        table: settings of `TableData`.
    """

    target = "signal"
    task = "binary"

    def __init__(self, *, data_dir: str, **table):
        super().__init__(**table)
        self.data_dir = Path(data_dir)

    def load(self) -> dict[str, pd.DataFrame]:
        """Read the whole set if it is there, else the partial one."""
        whole = self.data_dir / "higgs_small"
        if not whole.is_dir():
            return self._load_partial()
        name = "N" if (whole / "N_train.npy").is_file() else "X_num"
        self.card = self._card(train=_TRAIN_ROWS[name], val=15_688, test=19_610)
        rank_zero_warn(
            f"{whole}: unverified (no checksum is published; rows, columns and classes are checked)"
        )
        frames = {}
        for split in ("train", "val", "test"):
            files = [whole / f"{prefix}_{split}.npy" for prefix in (name, "y")]
            absent = [str(path) for path in files if not path.is_file()]
            if absent:
                raise FileNotFoundError(
                    f"higgs_small is incomplete, {absent[0]} is absent: put it there, or remove "
                    "the folder to use the partial set (paths.data_dir says where to look)"
                )
            frames[split] = self._frame(*files)
        return frames

    def _load_partial(self) -> dict[str, pd.DataFrame]:
        self.card = self._card(train=15_688, test=19_610)
        rank_zero_warn(
            "higgs_small is partial: its validation part serves as training rows; results cannot "
            "be compared with published ones"
        )
        frames = {}
        for name, split in (("train", "val"), ("test", "test")):
            files = [f"X_num_{split}.npy", f"y_{split}.npy"]
            folder = self.data_dir / "higgs_small_subset"
            frames[name] = self._frame(
                *(fetch(_URL + file, folder / file, sha256=_SHA256[file]) for file in files)
            )
        return frames

    def _frame(self, x: Path, y: Path) -> pd.DataFrame:
        frame = pd.DataFrame(np.load(x), columns=pd.Index(COLUMNS))
        return frame.assign(signal=np.load(y))

    @staticmethod
    def _card(**rows: int) -> Card:
        return Card(source=_URL, rows=rows, columns=28, classes=2, metric="accuracy")
