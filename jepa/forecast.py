"""Forecast a file: `python -m jepa.forecast run=<run> data.path=<file> data.horizon=<steps>`.

The checkpoint alone is enough: it holds the config, the spec, the scale of each channel and the
frequency. `windows=<n>` forecasts from n cutoffs inside the file instead of its end, and scores
them.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config import CONF, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from jepa.forecasting import Errors
    from jepa.origins import Forecasts, Origins
    from jepa.plots import Panel

SUFFIXES = (".csv", ".parquet")
_CHUNK = 1 << 18  # rows written at a time
_SHOWN = 12  # cutoffs on the screen
_HISTORY = 3  # horizons of history in a picture


@hydra.main(config_path=str(CONF), config_name="forecast")
def main(cfg: DictConfig) -> None:
    """Open the checkpoint, read the file, forecast, write, and score what is known."""
    out = check_settings(cfg)
    from jepa import new_series, origins, run, screen
    from jepa.codes import pick_device
    from jepa.data.readers import check_path

    check_path(cfg.data.path)
    device = pick_device(cfg.accelerator)
    checkpoint = run.find_checkpoint(cfg.run)
    _, model, content = run.load_model(checkpoint, cfg.trust)
    spec = new_series.check_model(run.spec_of(content), model, cfg.run)
    horizon = new_series.check_horizon(cfg.data.horizon, spec.horizon, roll=cfg.roll)
    reading = cast(dict, OmegaConf.to_container(cfg.data))
    path = reading.pop("path")
    reading.pop("horizon")
    state = content["preprocessing"]
    frame = new_series.read_file(path, state, spec, reading)
    where = origins.place_origins(
        frame, look_back=spec.look_back, horizon=horizon, windows=cfg.windows, step=cfg.step
    )
    say_of(where, state, quantiles=bool(getattr(model, "quantiles", None)), trained=spec.horizon)
    started = time.perf_counter()
    n_windows = max(1, cfg.batch_size // spec.n_channels)
    forecasts, errors = origins.forecast_windows(
        model.to(device),
        where.windows(spec),
        batches(len(where), n_windows),
        spec=spec,
        horizon=horizon,
        device=device,
    )
    seconds = time.perf_counter() - started
    n_rows = write_frames(out, origins.long_frames(where, forecasts, n_rows=_CHUNK))
    screen.say(
        f"written: {out}: {n_rows:,} forecasts from {len(where):,} windows of {spec.n_channels} "
        f"channels in {seconds:.1f} s ({len(where) / seconds:,.0f} windows/s on {device})"
    )
    if errors:
        head = {"run": str(checkpoint), "path": path, "step": cfg.step or horizon}
        write_scores(out.with_suffix(".json"), head, where, errors)
    if cfg.n_plots:
        draw(out.with_suffix(".png"), where, forecasts, cfg.n_plots)


def check_settings(cfg: DictConfig) -> Path:
    """Return the path to write to.

    Raises:
        ValueError: if it is of another kind, in no folder, or the file that is to be read; for
            counts that are none, and for settings without effect.
    """
    path = Path(cfg.out).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"out={cfg.out!r} must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"out={cfg.out!r}: there is no folder {str(path.parent)!r}; make it first")
    if path.is_dir():
        raise ValueError(f"out={cfg.out!r} is a folder: name a file in it")
    if path.resolve() == Path(cfg.data.path).expanduser().resolve():
        raise ValueError(f"out={cfg.out!r} would overwrite the series data.path={cfg.data.path!r}")
    for key, least in (("windows", 0), ("n_plots", 0), ("batch_size", 1), ("step", 1)):
        value = least if key == "step" and cfg.step is None else cfg[key]
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{key} must be a whole number from {least}, got {value}")
    if cfg.step is not None and not cfg.windows:
        raise ValueError(f"step={cfg.step} has no effect without windows=<number of cutoffs>")
    return path


def say_of(where: "Origins", state: dict[str, Any], *, quantiles: bool, trained: int) -> None:
    """Say what is forecast, and what a reader must know of it."""
    from jepa import screen

    n, frame = len(where), where.frame
    cutoffs = [where.cutoff(i) for i in range(n)]
    screen.say(
        f"{len(frame.channels)} channels, {len(frame.series)} series, {max(frame.lengths):,} steps "
        f"of {frame.frequency}; {where.horizon} steps after {min(cutoffs)}"
        + (f" to {max(cutoffs)} ({n} windows)" if n > 1 else "")
    )
    kind = type(cutoffs[0])
    last = max(kind(text) for text in state["last"])
    early = sum(cutoff < last for cutoff in cutoffs)
    if where.known and early:
        screen.say(
            f"{early} of {n} windows end within the time of the training file (to {last}): the "
            "model may have been fitted to what they are scored on"
        )
    if quantiles and where.horizon > trained:
        screen.say(
            f"quantiles are left out: beyond the {trained} steps trained they would take forecasts "
            "for known values, and be too narrow"
        )


def batches(n: int, size: int) -> "Iterator[Tensor]":
    """Yield the windows in order, and show a progress bar."""
    import torch
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    from jepa import screen

    shown = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    bar = Progress(
        *shown, TextColumn("left"), TimeLeft(), console=screen.console,
        disable=not screen.console.is_terminal,
    )  # fmt: skip
    started = time.perf_counter()
    with bar:
        task = bar.add_task("forecasting", total=n, rate="")
        for index in torch.arange(n).split(size):
            yield index
            done = int(index[-1]) + 1
            rate = done / (time.perf_counter() - started)
            bar.update(task, completed=done, rate=f"{done:,} windows  {rate:,.0f} windows/s")


def write_frames(out: Path, frames: "Iterator[Any]") -> int:
    """Write frames of one kind below each other, whole or not at all; return the number of rows.

    Raises:
        ValueError: if the file cannot be written; nothing of it is left then.
    """
    part = out.with_name(f".{out.name}.part")
    write = write_csv if out.suffix.lower() == ".csv" else write_parquet
    try:
        n_rows = write(part, frames)
        part.replace(out)
    except OSError as error:
        raise ValueError(
            f"out={str(out)!r} cannot be written ({error.strerror or error}): free some space, or "
            "choose another place; nothing was left behind"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return n_rows


def write_csv(path: Path, frames: "Iterator[Any]") -> int:
    """Write text; every time of a file in one form."""
    n_rows, form = 0, None
    with open(path, "w", encoding="utf-8", newline="") as file:
        for frame in frames:
            form = form or time_form(frame)
            frame.to_csv(file, index=False, header=not n_rows, date_format=form)
            n_rows += len(frame)
    return n_rows


def time_form(frame: Any) -> str:
    """Return the shortest form of dates that says all; frames of one file agree in it."""
    times = frame["ds"]
    if times.dtype.kind != "M" or (times == times.dt.normalize()).all():
        return "%Y-%m-%d"
    fine = (times != times.dt.floor("s")).any()
    return "%Y-%m-%d %H:%M:%S.%f" if fine else "%Y-%m-%d %H:%M:%S"


def write_parquet(path: Path, frames: "Iterator[Any]") -> int:
    """Write one row group for each frame."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_rows, file = 0, None
    try:
        for frame in frames:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            file = file or pq.ParquetWriter(path, table.schema)
            file.write_table(table)
            n_rows += len(frame)
    finally:
        if file is not None:
            file.close()
    return n_rows


def write_scores(
    path: Path, head: dict[str, Any], where: "Origins", errors: "dict[str, Errors]"
) -> None:
    """Write the errors of every cutoff and of all, beside those of forecasts without a model."""
    from jepa import report, screen
    from jepa.origins import score_cutoffs

    totals = {
        name: {key: report.entry(value) for key, value in one.metrics(block=1).items()}
        for name, one in errors.items()
    }
    cutoffs = {name: score_cutoffs(where, one) for name, one in errors.items()}
    content = {
        **head,
        "look_back": where.look_back,
        "horizon": where.horizon,
        "metrics": totals.pop("model"),
        "baselines": totals,
        "breakdown": errors["model"].breakdown(),
        "cutoffs": cutoffs["model"],
        "baseline_cutoffs": {name: cutoffs[name] for name in totals},
    }
    report.write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    screen.show_table(
        "errors after each cutoff, scaled; *: in units of the file; last, season: the scaled mse "
        "of repeating them",
        table(content),
    )
    screen.say(f"written: {path}")


def table(content: dict[str, Any]) -> list[list[str]]:
    """Return the errors as text: those of the last cutoffs, then of all."""
    from jepa.report import digits

    keys = {"mse": "mse", "mae": "mae", "mse*": "original/mse", "mae*": "original/mae"}
    others = {"last": "repeat_last", "season": "seasonal_naive"}
    others = {head: name for head, name in others.items() if name in content["baselines"]}
    first = max(0, len(content["cutoffs"]) - _SHOWN)
    rows = [
        [one["cutoff"], *(one[key] for key in keys.values())]
        + [content["baseline_cutoffs"][name][i]["mse"] for name in others.values()]
        for i, one in enumerate(content["cutoffs"][first:], first)
    ]
    total = [content["metrics"][key]["value"] for key in keys.values()]
    total += [content["baselines"][name]["mse"]["value"] for name in others.values()]
    rows.append([f"all {len(content['cutoffs'])}", *total])
    body = [[name, *("-" if v is None else digits(v) for v in values)] for name, *values in rows]
    return [["cutoff", *keys, *others], *body]


def draw(path: Path, where: "Origins", forecasts: "Forecasts", n_plots: int) -> None:
    """Draw the last cutoff of the first channels."""
    from jepa import screen
    from jepa.origins import names_of
    from jepa.plots import draw_forecasts

    panels = [
        panel_of(where, forecasts, name, row, int(own[-1]))
        for name, row, own in names_of(where)[:n_plots]
    ]
    draw_forecasts(path, panels)
    screen.say(f"written: {path}")


def panel_of(where: "Origins", forecasts: "Forecasts", name: str, row: int, window: int) -> "Panel":
    """Return what a picture shows of one channel window."""
    from jepa.plots import Panel

    end = int(where.starts[window]) + where.look_back
    n = min(where.look_back, _HISTORY * where.horizon)
    times, seen = where.frame.times[where.series[window]], int(where.seen[window])
    values = where.frame.values[row]
    return Panel(
        title=f"{name}, after {where.cutoff(window)}",
        times=times[seen - n : seen].append(where.ahead(window)).to_numpy(),
        history=values[end - n : end],
        forecast=forecasts.point[window, row],
        fan=forecasts.quantiles[window, row],
        levels=forecasts.levels,
        truth=values[end : end + where.horizon] if where.known else None,
    )


def cli() -> None:
    """Run the command."""
    run_command(main, "forecast")


if __name__ == "__main__":
    cli()
