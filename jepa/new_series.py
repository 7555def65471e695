"""What a forecaster asks of a new file: its channels, its step and its form are those of training.

Axes: c channels, t time steps.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from einops import rearrange
from pandas.tseries.frequencies import to_offset

from jepa.data.quoting import list_setting
from jepa.data.reading import read_header
from jepa.data.series_frames import SeriesFrame, read_series
from jepa.data.series_times import future_index
from jepa.spec import SeriesSpec, Spec, kind_of

_SAME_STEP = 40  # times over which two frequencies must agree: business days differ from days in 5


def check_model(spec: Spec, model: Any, run: str) -> SeriesSpec:
    """Return the spec of a model that forecasts.

    Raises:
        ValueError: for a model that does not, with what to do instead.
    """
    if not isinstance(spec, SeriesSpec):
        raise ValueError(
            f"run={run} holds a {type(model).__name__} of {kind_of(spec)}, and only a model of "
            "series forecasts: give the run of one"
        )
    if spec.task != "forecast":
        raise ValueError(
            f"run={run} tells {' from '.join(spec.classes)}, it does not forecast values: score it "
            "with python -m jepa.evaluate"
        )
    if not getattr(model, "predicts_target", False):
        raise ValueError(
            f"run={run} holds a {type(model).__name__}, which has no forecast head: train one on "
            "its encoder with python -m jepa.train model=patchtst_finetune "
            f"init_from={run} and the data= of that run, and give the new run"
        )
    return spec


def check_horizon(horizon: Any, trained: int, *, roll: bool) -> int:
    """Return the steps to forecast; None stands for those trained.

    Raises:
        ValueError: for none, and for more than trained without `roll`.
    """
    if horizon is None:
        return trained
    if not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"data.horizon must be a whole number of steps from 1, got {horizon}")
    if horizon > trained and not roll:
        raise ValueError(
            f"data.horizon={horizon} is longer than the {trained} steps the model was trained for: "
            f"ask for at most {trained}, train with data.horizon={horizon}, or give roll=true to "
            "go on from its own forecasts, whose errors add up"
        )
    return horizon


def read_file(
    path: str, state: Mapping[str, Any], spec: SeriesSpec, settings: Mapping[str, Any]
) -> SeriesFrame:
    """Read a file as the training file was read, where `settings` does not say otherwise.

    Args:
        path: csv, tsv or parquet.
        state: what the checkpoint says of the training file.
        spec: of the model.
        settings: of `read_series`; None: as in training.

    Raises:
        FileNotFoundError, ValueError: for a file that is no series, or not one of these channels.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    reading = dict(state["reading"])
    if given.get("format", reading["format"]) != reading["format"]:  # then columns have other names
        reading = {key: reading[key] for key in ("gaps", "sentinel") if key in reading}
    there = {str(name) for name in read_header(path).columns}
    reading["drop"] = [name for name in state["drop"] if name in there]
    frame = read_series(path, **{**reading, **given})
    _check_step(frame, state)
    return as_panel(frame, spec) if len(state["series"]) > 1 else in_order(frame, spec)


def as_panel(frame: SeriesFrame, spec: SeriesSpec) -> SeriesFrame:
    """Return every series of the file as one of the trained channel, whatever its name."""
    if len(frame.series) > 1:
        return replace(frame, channels=spec.channels)
    n, length = frame.values.shape
    return replace(
        frame,
        channels=spec.channels,
        values=rearrange(frame.values, "c t -> 1 (c t)"),
        series=frame.channels,
        bounds=tuple(length * i for i in range(n + 1)),
        times=frame.times * n,
    )


def in_order(frame: SeriesFrame, spec: SeriesSpec) -> SeriesFrame:
    """Return the file with its channels in the order of training.

    Raises:
        ValueError: naming a channel that is absent, and a column that is none.
    """
    if len(frame.series) > 1:
        raise ValueError(
            f"the {len(frame.series)} series of the file do not share their times, as the channels "
            "of the training file did: cut all of them to the same times"
        )
    absent = [name for name in spec.channels if name not in frame.channels]
    if absent:
        raise ValueError(
            f"the file lacks channel {absent[0]!r} ({len(absent)} of {spec.n_channels} channels "
            f"that the model was trained on); it has: {', '.join(map(repr, frame.channels[:20]))}"
        )
    others = [name for name in frame.channels if name not in spec.channels]
    if others:
        raise ValueError(
            f"the model was not trained on {others[0]!r} ({len(others)} such columns or series): "
            f"leave a column out with {list_setting('data.drop', others[0])}, and the rows of a "
            "series out of a long file"
        )
    order = [frame.channels.index(name) for name in spec.channels]
    return replace(frame, channels=spec.channels, values=frame.values[order])


def _check_step(frame: SeriesFrame, state: Mapping[str, Any]) -> None:
    """Refuse times that step otherwise than those of training."""
    ours, theirs = frame.frequency, state["frequency"]
    if ours != theirs and not _alike(ours, theirs, frame.times[0][0]):
        raise ValueError(
            f"the times of the file step by {ours}, those of training by {theirs}: the model knows "
            f"no other step; resample the file to {theirs}"
        )


def _alike(ours: str, theirs: str, first: Any) -> bool:
    """Tell whether two frequencies of dates mean one step, as W-SUN, W-MON and 7D do."""
    if not isinstance(first, pd.Timestamp) or theirs.isdigit():
        return False
    a, b = to_offset(ours), to_offset(theirs)
    if (a.n, a.rule_code.split("-")[0]) == (b.n, b.rule_code.split("-")[0]):
        return True
    return future_index(first, ours, _SAME_STEP).equals(future_index(first, theirs, _SAME_STEP))
