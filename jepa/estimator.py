"""The scikit-learn face of T-JEPA: `TJEPAEncoder().fit(table).transform(table)`."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from jepa.callbacks.progress import Progress
from jepa.codes import embed_parts, pick_device
from jepa.config import CONF
from jepa.data.batches import Batches, Rows
from jepa.data.columns import nearest
from jepa.data.tables import TableTransform
from jepa.run import FROM_A_FILE, build_model

_EMBED_ROWS = 4096  # rows of one forward pass


class TJEPAEncoder(TransformerMixin, BaseEstimator):
    """Learn codes of the rows of a table without labels, by T-JEPA.

    Takes DataFrames with columns of any kind (found by name, in any order), or arrays; NaN,
    categories that `fit` has not seen, and missing values are fine. At least two columns must vary.
    Every parameter that is None has the value of `conf/`: of the preset, of the trainer.

    Args:
        preset: a file of `conf/model`.
        width, depth, n_heads, dropout, numeric_embedding, representation: of the model, see
            `jepa.TJEPA`.
        predictor_width, predictor_depth, predictor_n_heads: likewise.
        lr, weight_decay: of the optimizer.
        model_settings: any other setting of `jepa.TJEPA`, by name.
        scaler: `quantile` (to a normal distribution), `standard` or `minmax`.
        table_settings: `kinds`, `min_count` and `max_categories` of
            `jepa.data.tables.TableTransform`.
        max_epochs: passes over the table.
        batch_size: rows of a step, at most all. None: an eighth of the table, from 32 to 256.
        accelerator: `auto`, `cpu`, `gpu` or `mps`.
        random_state: decides the weights, the masks and the order of the rows. The same int gives
            the same weights on the same machine. None: other ones in each fit. Whatever it is,
            numpy's and torch's global random states are left as they were.
        verbose: show the progress.

    Attributes:
        n_features_in_: columns seen in `fit`.
        feature_names_in_: their names, where all are text.
        table_: the fitted `TableTransform`.
        model_: the trained `TJEPA`, on the CPU.
    """

    def __init__(
        self,
        *,
        preset: str = "tjepa",
        width: int | None = None,
        depth: int | None = None,
        n_heads: int | None = None,
        dropout: float | None = None,
        numeric_embedding: str | None = None,
        representation: str | None = None,
        predictor_width: int | None = None,
        predictor_depth: int | None = None,
        predictor_n_heads: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        model_settings: Mapping[str, Any] | None = None,
        scaler: str = "quantile",
        table_settings: Mapping[str, Any] | None = None,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        accelerator: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.preset = preset
        self.width = width
        self.depth = depth
        self.n_heads = n_heads
        self.dropout = dropout
        self.numeric_embedding = numeric_embedding
        self.representation = representation
        self.predictor_width = predictor_width
        self.predictor_depth = predictor_depth
        self.predictor_n_heads = predictor_n_heads
        self.lr = lr
        self.weight_decay = weight_decay
        self.model_settings = model_settings
        self.scaler = scaler
        self.table_settings = table_settings
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.accelerator = accelerator
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> "TJEPAEncoder":
        """Train on the rows of `X`; `y` is not looked at.

        Raises:
            ValueError: for a table nothing can be learnt from, and a setting out of its range.
        """
        frame = self._frame(X, reset=True)
        if len(frame) < 2:
            raise ValueError("TJEPAEncoder needs at least 2 rows to learn from, got n_samples=1")
        table = TableTransform(scaler=self.scaler, task="none", **(self.table_settings or {}))
        x = table.fit(frame).encode(frame)
        if table.spec.n_features < 2:
            raise ValueError(
                "TJEPAEncoder predicts columns from one another and needs two that vary, got "
                f"n_features={frame.shape[1]}, of which "
                f"{', '.join(map(repr, table.feature_names))} varies"
            )
        seed = _draw_seed(self.random_state)
        with _leave_alone():
            torch.manual_seed(seed)
            with FROM_A_FILE:
                model = build_model(self._config(seed), table.spec)
            self._train(model, x, seed)
        del model.optimizer  # training is over, and Hydra's partial cannot be pickled
        self.table_, self.model_ = table, model.cpu().eval()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return one code per row, float32 `[rows, codes]`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: if columns of `fit` are absent, or hold what they cannot.
        """
        check_is_fitted(self)
        x = self.table_.encode(self._frame(X, reset=False))
        device = pick_device(self.accelerator)
        model = self.model_ if device.type == "cpu" else copy.deepcopy(self.model_).to(device)
        parts = embed_parts(cast(Any, model), [x], batch_size=_EMBED_ROWS, device=device)
        return torch.cat(list(parts)).numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name each entry of a code: column (or `mean`, or `reg0`, ...), `_`, dimension.

        Columns of arrays are called x0, x1, ..., or as `input_features` says.
        """
        check_is_fitted(self)
        # as it stands there: names of the input, checked against those of `fit`
        checked = OneToOneFeatureMixin.get_feature_names_out(cast(Any, self), input_features)
        called = {f"x{i}": name for i, name in enumerate(cast(np.ndarray, checked))}
        if hasattr(self, "feature_names_in_"):
            called = {}
        pairs = (name.rpartition("_") for name in cast(Any, self.model_).code_names())
        names = [f"{called.get(column, column)}_{i}" for column, _, i in pairs]
        return np.array(names, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # float32, whatever comes in
        return tags

    def _frame(self, X: Any, *, reset: bool) -> pd.DataFrame:
        """Return the input as a DataFrame, after scikit-learn's checks of columns and rows."""
        if not isinstance(X, pd.DataFrame):
            checked = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite=False)
            values = cast(np.ndarray, checked)
            names = [f"x{i}" for i in range(values.shape[1])]
            return pd.DataFrame(values, columns=pd.Index(names)).infer_objects()
        if not len(X):
            raise ValueError("Found a table with 0 sample(s) while a minimum of 1 is required")
        names = getattr(self, "feature_names_in_", None)
        if not reset and names is not None and set(names) <= set(X.columns):
            X = X[list(names)]
        validate_data(self, cast(Any, X), reset=reset, skip_check_array=True)
        if not hasattr(self, "feature_names_in_"):
            X = X.set_axis([f"x{i}" for i in range(X.shape[1])], axis=1)
        return X

    def _config(self, seed: int) -> DictConfig:
        """Return the preset with the settings given by hand."""
        model = _load_preset(self.preset)
        settings = {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name in model and value is not None
        } | dict(self.model_settings or {})
        for name, value in settings.items():
            if name not in model or name.startswith("_"):
                known = [str(key) for key in model if not str(key).startswith("_")]
                raise ValueError(f"model_settings names {name!r}; {nearest(name, known)}")
            model[name] = _plain(value)
        for name in ("lr", "weight_decay"):
            if getattr(self, name) is not None:
                model.optimizer[name] = _plain(getattr(self, name))
        return cast(DictConfig, OmegaConf.create({"seed": seed, "model": model}))

    def _train(self, model: L.LightningModule, x: Tensor, seed: int) -> None:
        defaults = cast(DictConfig, OmegaConf.load(CONF / "trainer" / "default.yaml"))
        max_epochs = defaults.max_epochs if self.max_epochs is None else self.max_epochs
        batch_size = self.batch_size
        if batch_size is None:
            batch_size = min(max(len(x) // 8, 32), 256)
        for name, value in (("max_epochs", max_epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        device = pick_device(self.accelerator)
        trainer = L.Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=1,
            max_epochs=int(max_epochs),
            gradient_clip_val=defaults.gradient_clip_val,
            callbacks=[Progress()] if self.verbose else [],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        rows = Rows(x.to(device))
        trainer.fit(model, Batches(rows, min(int(batch_size), len(x)), seed=seed))


def _load_preset(name: str) -> DictConfig:
    """Return a file of `conf/model` with the files it builds on.

    Raises:
        ValueError: if there is none of that name.
    """
    path = CONF / "model" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("tjepa*.yaml"))
        raise ValueError(f"preset must be one of {', '.join(known)}, got {name!r}")
    model = cast(DictConfig, OmegaConf.load(path))
    below = [base for base in model.pop("defaults", []) if base != "_self_"]
    return cast(DictConfig, OmegaConf.merge(*map(_load_preset, below), model))


def _plain(value: Any) -> Any:
    """Return a number of numpy's, as a grid search draws them, as a number of Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _draw_seed(random_state: int | np.random.RandomState | None) -> int:
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31 - 1))


@contextmanager
def _leave_alone() -> Iterator[None]:
    """Keep torch's random states, and Lightning's notes, from the caller."""
    notes = logging.getLogger("lightning.pytorch")
    level = notes.level
    devices = range(torch.cuda.device_count())
    try:
        notes.setLevel(logging.ERROR)
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        notes.setLevel(level)
