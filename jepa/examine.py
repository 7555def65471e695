"""The checks of jepa.doctor: a little of everything that a run would do, in order."""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from jepa import checks, report, run, train
from jepa.callbacks.record import Record
from jepa.checks import Result
from jepa.config import explain, refuse_used
from jepa.data.files import without_downloads
from jepa.plan import SAFETY, count_parameters, device_bytes, show
from jepa.resolve import build, pick_device
from jepa.settle import n_devices, predicts_target, settle
from jepa.stages import check_stages, stages_of
from jepa.step_memory import build_unallocated
from jepa.trial import (
    PeakMemory,
    decoding_rates,
    first_and_last,
    n_train_batches,
    predictor,
    probe_a_little,
    train_a_little,
    validate_a_little,
)

TRIAL_S = 2.0  # of training, for each size of batch
BUDGET_S = 35.0  # after so long no other settings are tried: a minute is what a check may take
MOST_S = 8.0  # a larger batch that would take longer is not tried
GROWTH = (2, 4)  # larger batches that are tried
THREADS = (1, 2, 4)
N_FILES = 256  # decoded with each number of threads
WAITING = 0.1  # of a step, for its data: worth a suggestion
FASTER = 1.1  # times the samples a second: worth a suggestion
MOST_CHARACTERS = 1000  # of an error: a compiler prints pages


class Skip(Exception):
    """A check before this one has left nothing to look at."""


class Patient:
    """What the checks share; a part is there once the check that makes it has passed."""

    def __init__(self, cfg: DictConfig, folder: Path):
        self.cfg, self.folder = cfg, folder
        self.run_dir = Path(cfg.run_dir)
        self.parts: dict[str, Any] = {}
        self.started = time.perf_counter()

    def need(self, name: str) -> Any:
        """Return a part.

        Raises:
            Skip: if the check that makes it has failed.
        """
        if name not in self.parts:
            raise Skip("not tried: a check above has failed")
        return self.parts[name]

    def trainer(self) -> Callable[..., Any]:
        """Return what builds the trainer."""
        return instantiate(self.need("settings").trainer)


def check_config(patient: Patient) -> Result:
    """Resolve the config; the command line has been checked for unknown keys before."""
    OmegaConf.to_container(patient.cfg, resolve=True)
    report.grade(train.criteria_of(patient.cfg), report.new(status="", reason=""))
    return Result("config", "pass", "every key is known, every value resolves")


def check_data(patient: Patient) -> Result:
    """Prepare the data as the run would, but for downloads; decode the ends of each split."""
    started = time.perf_counter()
    data = instantiate(patient.cfg.data)
    with without_downloads():
        data.prepare()
    first_and_last(data)
    patient.parts["data"] = data
    seconds = time.perf_counter() - started
    rows = {name: len(part) for name, part in data.splits.items()}
    found = ", ".join(f"{name} {n:,}" for name, n in rows.items())
    found += f"; the first and last of each read; prepared in {seconds:.1f} s"
    return Result("data", "pass", found, values={"rows": rows, "prepare_s": seconds})


def check_plan(patient: Patient) -> Result:
    """Settle what the config leaves open, and build all parts of the run."""
    cfg, data = patient.cfg, patient.need("data")
    settings = settle(cfg, data, predicts_target=predicts_target(cfg))
    data.batch_size = settings.data.batch_size
    stages = stages_of(cfg, settings, patient.run_dir)
    probes = run.build_probes(settings, data.spec)
    run.check_probes(settings, probes, data.spec)
    empty = build_unallocated(lambda: build(settings, data.spec))
    train.build_callbacks(settings, data, empty, probes, "")  # pyright: ignore[reportArgumentType]
    patient.parts |= {"probes": probes, "stages": stages, "empty": empty, "settings": settings}
    accumulate = settings.trainer.accumulate_grad_batches
    n = count_parameters(empty)
    found = f"{n:,} parameters, {settings.data.batch_size} samples x {accumulate} a step, "
    found += f"objective {settings.objective}"
    found += f", stages {', '.join(stages)}" if stages else ""
    return Result("plan", "pass", found, values={"parameters": n, "accumulate": accumulate})


def check_machine(patient: Patient) -> Result:
    """See whether device, precision, attention and compilation work."""
    cfg = patient.cfg
    device = pick_device(cfg.trainer.accelerator)
    result = checks.check_device(
        device,
        accelerator=str(cfg.trainer.accelerator),
        precision=str(cfg.trainer.precision),
        n_devices=n_devices(cfg.trainer),
        compiled=bool(cfg.model.get("compile")),
    )
    if result.status != "fail":
        patient.parts["device"] = device
    return result


def check_step(patient: Patient) -> Result:
    """Take real training steps at the planned micro-batch, if they fit."""
    settings, data, device = (patient.need(one) for one in ("settings", "data", "device"))
    n, accumulate = settings.data.batch_size, settings.trainer.accumulate_grad_batches
    predict = predictor(
        patient.need("empty"), precision=settings.trainer.precision, device=device,
        most=max(GROWTH) * n,
    )  # fmt: skip
    usable = int(SAFETY * device_bytes(device))
    patient.parts["memory"] = {"predicted": predict(n), "usable": usable, "measured": None}
    if predict(n) > usable:
        raise Skip("the batch does not fit the memory: see there")
    memory = PeakMemory(device)
    model = run.build_model(settings, data.spec)
    check_stages(patient.need("stages"), settings, data, model)
    record = Record(
        config=OmegaConf.to_yaml(settings),
        spec=run.spec_state(data.spec),
        preprocessing=data.preprocessing,
    )
    trial = train_a_little(
        patient.trainer(), model, data, batch_size=n, accumulate=accumulate, seconds=TRIAL_S,
        folder=patient.folder, record=record,
    )  # fmt: skip
    patient.parts["memory"]["measured"] = memory.read()
    patient.parts["predict"] = predict
    rate = n / trial.batch_s
    values = {"batch_s": trial.batch_s, "samples_per_s": rate, "losses": trial.losses[:3]}
    values |= {"wait_s": trial.wait_s, "step_samples_per_s": n / (trial.batch_s - trial.wait_s)}
    if not all(abs(one) < float("inf") for one in trial.losses):  # false for NaN as well
        return Result(
            "step",
            "fail",
            f"the loss is not finite: {trial.losses[:5]}",
            "lower model.optimizer.lr, give trainer.precision=32-true, look at the data",
            values,
        )
    patient.parts |= {"model": model, "trial": trial}
    found = f"{len(trial.losses)} batches of {n}, {1000 * trial.batch_s:.1f} ms and "
    found += f"{rate:,.0f} samples/s, loss {trial.losses[0]:.4g} to {trial.losses[-1]:.4g}"
    share = trial.wait_s / trial.batch_s
    found += f"; {share:.0%} of it waits for data, the step alone does "
    found += f"{values['step_samples_per_s']:,.0f} samples/s"
    todo = ""
    if share > WAITING and settings.data.get("storage") == "files":
        todo = "give data.storage=packed, or another data.n_workers (see below)"
    return Result("step", "pass", found, todo, values)


def check_probe(patient: Patient) -> Result:
    """Run one probe on some rows, and a part of a validation."""
    settings, data, model = (patient.need(one) for one in ("settings", "data", "model"))
    probes, node = patient.need("probes"), settings.callbacks.get("probe")
    val_s = validate_a_little(patient.trainer(), model, data, patient.folder)
    patient.parts["validation_s"] = val_s
    found = f"a validation takes about {words(val_s)}"
    predicts = getattr(model, "predicts_target", False)
    if node is None or "val" not in data.splits or (predicts and not probes):
        return Result("probe", "pass", f"no probe runs; {found}", values={"validation_s": val_s})
    model.to(patient.need("device")).eval()
    scores, probe_s = probe_a_little(instantiate(node)(probes=probes), model, data)
    patient.parts["validation_s"] = val_s + probe_s
    value = scores.get(settings.objective.removeprefix("probe/"))
    values = {"validation_s": val_s, "probe_s": probe_s, "objective": value}
    if value is not None and not abs(value) < float("inf"):
        return Result(
            "probe", "fail", f"{settings.objective} is {value} on untrained codes",
            "give another probe=", values,
        )  # fmt: skip
    found += f", its probes about {words(probe_s)}"
    found += "" if value is None else f"; {settings.objective} {value:.4g} on some rows"
    return Result("probe", "pass", found, values=values)


def compare_memory(patient: Patient) -> Result:
    """Set what was predicted beside what was measured."""
    batch_size = patient.need("settings").data.batch_size
    return checks.check_memory(patient.need("device"), batch_size, **patient.need("memory"))


def check_storage(patient: Patient) -> Result:
    """Compare the free disk with the checkpoints to come."""
    settings, trial = patient.need("settings"), patient.need("trial")
    resume, best = (settings.callbacks.get(name) for name in ("resume", "best"))
    return checks.check_disk(
        patient.run_dir,
        checkpoint_bytes=trial.checkpoint_bytes,
        n_kept=(resume.keep if resume else 0) + (1 if best else 0),
        n_runs=1 + len(patient.need("stages")),
    )


def check_places(patient: Patient) -> Result:
    """See whether the run directory can be written, and is not another run's."""
    refuse_used(str(patient.cfg.resume), patient.run_dir)
    return checks.check_folders(patient.run_dir)


def check_leaving(patient: Patient) -> Result:
    """See whether signals are heard, and what SLURM does."""
    launcher = dict(HydraConfig.get().launcher) if HydraConfig.initialized() else {}
    return checks.check_signals(os.environ, launcher)


def check_faster(patient: Patient) -> Result:
    """Try larger micro-batches and other numbers of threads that decode; suggest the better."""
    settings, data, trial = (patient.need(one) for one in ("settings", "data", "trial"))
    predict, usable = patient.need("predict"), patient.need("memory")["usable"]
    n = settings.data.batch_size
    rates, refused = {n: n / trial.batch_s}, []
    for size in (factor * n for factor in GROWTH):
        if predict(size) > usable:
            refused.append(f"{size}: does not fit ({show(predict(size))})")
        elif time.perf_counter() - patient.started > BUDGET_S:
            refused.append(f"{size}: no time left to try")
        elif 5 * trial.batch_s * size / n > MOST_S:
            refused.append(f"{size}: too long to try")
        elif 2 * size > len(data.splits["train"]):
            refused.append(f"{size}: too few rows")
        else:
            one = train_a_little(
                patient.trainer(), patient.need("model"), data, batch_size=size, accumulate=1,
                seconds=TRIAL_S / 2, folder=patient.folder,
            )  # fmt: skip
            rates[size] = size / one.batch_s
    tried = [f"{size}: {rate:,.0f} samples/s" for size, rate in rates.items()]
    found = "micro-batch " + "; ".join([*tried, *refused]) + decoding(patient)
    best = max(rates, key=lambda size: rates[size])
    todo = ""
    if rates[best] > FASTER * rates[n]:
        todo = f"{suggestion(settings, best)}: {rates[best] / rates[n]:.2f} times as fast, "
        todo += f"{show(usable - predict(best))} of memory to spare"
    return Result("faster", "pass", found, todo, {"samples_per_s": rates})


def suggestion(settings: DictConfig, best: int) -> str:
    """Word the settings of a larger micro-batch; where steps accumulate, their size is kept."""
    accumulate, factor = settings.trainer.accumulate_grad_batches, best // settings.data.batch_size
    if accumulate % factor == 0 and accumulate > 1:
        return f"data.batch_size={best} trainer.accumulate_grad_batches={accumulate // factor}"
    return f"data.batch_size={best} (steps of other sizes: model.optimizer.lr may have to follow)"


def decoding(patient: Patient) -> str:
    """Word how fast images are decoded; no other data uses workers."""
    path = patient.cfg.data.get("path") or patient.cfg.data.get("folder")
    side = patient.cfg.data.get("image_size")
    if path is None or side is None or "n_workers" not in patient.cfg.data:
        return ""
    rates = decoding_rates(path, side, THREADS, N_FILES)
    best = max(rates, key=lambda n: rates[n])
    tried = ", ".join(f"{n}: {rate:,.0f} images/s" for n, rate in rates.items())
    return f"; decoding by data.n_workers={tried}; the best is {best}"


def check_time(patient: Patient) -> Result:
    """Tell the time of an epoch and of the whole run."""
    settings, data, trial = (patient.need(one) for one in ("settings", "data", "trial"))
    trainer = settings.trainer
    n_batches = n_train_batches(trainer, len(data.train_dataloader()))
    every = trainer.check_val_every_n_epoch or 1
    epoch_s = n_batches * trial.batch_s + patient.parts.get("validation_s", 0.0) / every
    n_epochs = float("inf") if trainer.max_epochs in (None, -1) else trainer.max_epochs
    if trainer.max_steps not in (None, -1):
        per_step = trainer.accumulate_grad_batches
        n_epochs = min(n_epochs, trainer.max_steps * per_step / n_batches)
    total = n_epochs * epoch_s
    if trainer.max_time is not None:
        total = min(total, limit_s(trainer.max_time))
    if settings.time_budget.hours is not None:
        total = 3600.0 * settings.time_budget.hours
    found = f"{words(epoch_s)} an epoch of {n_batches} batches"
    values = {"epoch_s": epoch_s, "total_s": total if total < float("inf") else None}
    if total == float("inf"):
        todo = "give trainer.max_epochs=, trainer.max_steps= or trainer.max_time="
        return Result("time", "warn", f"{found}; the run has no end", todo, values)
    end = datetime.now() + timedelta(seconds=total)
    found += f"; {words(total)} in all, until about {end:%Y-%m-%d %H:%M}, on one device"
    found += ", before stages" if patient.need("stages") else ""
    return Result("time", "pass", f"{found}, before the report", values=values)


def limit_s(max_time: Any) -> float:
    """Return the seconds of `trainer.max_time`."""
    if isinstance(max_time, str):
        days, hours, minutes, seconds = (int(part) for part in max_time.split(":"))
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    return timedelta(**dict(max_time)).total_seconds()


def words(seconds: float) -> str:
    """Word a length of time."""
    size, unit = (3600, "h") if seconds >= 7200 else (60, "min") if seconds >= 120 else (1, "s")
    return f"{seconds / size:.3g} {unit}"


DATA_TODO = (
    "mend what is named; where data is absent: download it, put it there, or point paths.data_dir "
    "(or JEPA_DATA) to it"
)
# In this order: a check leaves what later ones need. With each, what to do when it breaks.
CHECKS: dict[str, tuple[Callable[[Patient], Result], str]] = {
    "config": (check_config, "mend the key that is named"),
    "data": (check_data, DATA_TODO),
    "plan": (check_plan, "mend the setting that is named"),
    "device": (check_machine, "give another trainer= or trainer.precision="),
    "step": (check_step, "lower data.batch_size, or mend the setting that is named"),
    "probe": (check_probe, "give another probe="),
    "memory": (compare_memory, "lower data.batch_size"),
    "disk": (check_storage, "give another hydra.run.dir="),
    "folders": (check_places, "give another hydra.run.dir="),
    "signals": (check_leaving, "start the run in a process of its own"),
    "faster": (check_faster, "nothing: this is a trial of other settings"),
    "time": (check_time, "mend the setting that is named"),
}


def examine(cfg: DictConfig) -> list[Result]:
    """Run every check in order."""
    train.quiet()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    with run.FROM_THE_USER, tempfile.TemporaryDirectory(prefix="jepa-doctor-") as folder:
        patient = Patient(cfg, Path(folder))
        return [
            attempt(name, partial(check, patient), todo) for name, (check, todo) in CHECKS.items()
        ]


def attempt(name: str, check: Callable[[], Result], todo: str) -> Result:
    """Return what a check found; whatever it raises is a failure."""
    started = time.perf_counter()
    try:
        found = check()
    except Skip as reason:
        found = Result(name, "skip", str(reason))
    except Exception as error:  # the run would break here; the checks that follow may still tell
        text = explain(error)
        if text is None:  # ours to mend, not the user's
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
        found = Result(name, "fail", text[:MOST_CHARACTERS], todo)
    return replace(found, seconds=time.perf_counter() - started)
