"""What a model, its controls and the baselines score on one split: the numbers of a report."""

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jepa import baselines
from jepa.callbacks.probe import Probes, score_all
from jepa.data.batches import OrderedBatches
from jepa.encoding import OWN, ROLES, Encoding
from jepa.features import Codes
from jepa.forecasting import Forecaster, score_forecasts
from jepa.metrics import Measured, chance, mean_over_blocks, score
from jepa.probes.label_free import label_free
from jepa.report import entry
from jepa.samples import Samples, identify
from jepa.spec import SeriesSpec

Content = dict[str, Any]
Describe = Callable[[str, Tensor], dict[str, float]]


def measure(
    model: Any,
    untrained: Any,
    data: Any,
    probes: dict[str, Callable[..., dict[str, float]]],
    *,
    split: str,
    max_rows: int | None,
    max_split_rows: int | None = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
    encoding: Encoding | None = None,
    names: Sequence[str] = (OWN,),
    describe: Describe | None = None,
) -> Content:
    """Return `metrics`, `controls`, `samples` and, for forecasts, `baselines` and `breakdown`.

    All of one split; `samples` are the losses behind the model's own errors, by metric.
    A model that predicts the target is scored on every sample of the split. Every probe is fitted
    on training rows alone, at most `max_rows` of them, and scored once. See `probe_content` for
    the other arguments.
    """
    content: Content = {"metrics": {}, "controls": {}, "samples": {}}
    predicts = getattr(model, "predicts_target", False)
    forecasts = isinstance(data.spec, SeriesSpec) and data.spec.task == "forecast"
    if forecasts:
        own = {"model": model.predict, "untrained": untrained.predict} if predicts else {}
        merge(content, forecast_content(own, data, split, model.device, n_bootstrap, seed))
    elif predicts:
        merge(content, class_content(model, untrained, data, split, n_bootstrap, seed))
    if probes or not predicts:
        sizes = {"train": max_rows, split: max_split_rows}
        encoding = encoding or Encoding(model, untrained, data, sizes=sizes, seed=seed)
        more = probe_content(encoding, probes, split, n_bootstrap, names=names, describe=describe)
        merge(content, more)
    return stamped(content, getattr(data, "stamp", ""))


def merge(content: Content, more: Content) -> None:
    """Add the entries of one part of the report to those of another."""
    for key, value in more.items():
        if key == "controls":
            for name, entries in value.items():
                content["controls"].setdefault(name, {}).update(entries)
        elif isinstance(value, dict):
            content.setdefault(key, {}).update(value)
        else:
            content[key] = value


def stamped(content: Content, stamp: str) -> Content:
    """Put the stamp of a protocol that flatters on every number; none, where there is no stamp."""
    if not stamp:
        return content
    groups = (*content["controls"].values(), *content.get("baselines", {}).values())
    for entries in (content["metrics"], *groups):
        for one in entries.values():
            one["stamp"] = stamp
    return content | {"stamp": stamp}


def every_sample(data: Any, split: str) -> OrderedBatches:
    """Return the whole split in order, on the device where it lies."""
    return OrderedBatches(data.on_device.get(split, data.splits[split]), data.batch_size)


def forecast_content(
    own: dict[str, Forecaster],
    data: Any,
    split: str,
    device: torch.device,
    n_bootstrap: int,
    seed: int,
) -> Content:
    """Score the model's forecasts, if it makes any, and the baselines, in one pass.

    Beside a model, an entry of another forecaster has the `difference` model - other, with an
    interval from the same resamples of the same windows: theirs may overlap where this is clear.
    """
    spec = data.spec
    everyone = own | build_baselines(data)
    errors = score_forecasts(everyone, every_sample(data, split), scale=spec.scale, device=device)
    settings = {"block": spec.look_back + spec.horizon, "n_bootstrap": n_bootstrap, "seed": seed}

    def scores(name: str) -> Content:
        found = {
            f"{split}/{key}": entry(value)
            for key, value in errors[name].metrics(**settings).items()
        }
        if own and name != "model":
            gaps = errors["model"].metrics(less=errors[name], **settings)
            for key, gap in gaps.items():
                found[f"{split}/{key}"]["difference"] = entry(gap)
        return found

    def parts(name: str) -> Content:
        return {f"{split}/{key}": value for key, value in errors[name].breakdown().items()}

    content: Content = {
        "baselines": {name: scores(name) for name in errors if name not in own},
        "breakdown": {name: parts(name) for name in ("model", "closed_form") if name in errors},
    }
    if own:
        content["metrics"] = scores("model")
        n = sum(one.shape[1] for one in errors["model"].windows)
        futures = identify(spec.channels, spec.horizon, spec.location, spec.scale, n)
        content["samples"] = samples_of(
            errors["model"].metrics(block=settings["block"]), split, futures
        )
        content["controls"] = {"untrained": scores("untrained")}
    return content


def build_baselines(data: Any) -> dict[str, Forecaster]:
    """Return the baselines of a forecast: strongest first, those that the series allows."""
    spec, train = data.spec, data.splits["train"]
    found: dict[str, Forecaster] = {}
    try:
        weights = baselines.fit_linear(
            train.values,
            train.starts,
            look_back=spec.look_back,
            horizon=spec.horizon,
            observed=train.observed,
        ).float()  # float64 stays on the CPU
        found["closed_form"] = lambda x, mask: baselines.linear_forecast(
            baselines.fill(x, mask), weights
        )
    except ValueError as error:
        warnings.warn(f"no closed-form baseline: {error}", stacklevel=2)
    if spec.period:
        found["seasonal_naive"] = lambda x, mask: baselines.seasonal_naive(
            baselines.fill(x, mask), horizon=spec.horizon, period=spec.period
        )
    found["repeat_last"] = lambda x, mask: baselines.repeat_last(
        baselines.fill(x, mask), horizon=spec.horizon
    )
    return found


def class_content(
    model: Any, untrained: Any, data: Any, split: str, n_bootstrap: int, seed: int
) -> Content:
    """Score a classifier's own probabilities beside its untrained self and the class shares."""
    spec = data.spec
    block = spec.look_back + spec.horizon if isinstance(spec, SeriesSpec) else 1
    y = torch.cat([batch["y"].cpu() for batch in every_sample(data, split)])

    def scores(one: Any) -> dict[str, Measured]:
        logits = [one.predict(b["x"].to(model.device)).cpu() for b in every_sample(data, split)]
        p = torch.cat(logits).double().sigmoid()[:, 0]
        found = score(p, y, task="binary")
        wrong = ((p > 0.5) != y.bool()).double()
        error = mean_over_blocks(
            wrong, torch.ones_like(wrong), block=block, n_bootstrap=n_bootstrap, seed=seed
        )
        return found | {"error": error, "accuracy": complement(error)}

    def entries(found: dict[str, Measured]) -> Content:
        return {f"{split}/{key}": entry(value) for key, value in found.items()}

    with torch.no_grad():
        found = scores(model)
        own, other = entries(found), entries(scores(untrained))
    y_train = torch.cat([batch["y"].cpu() for batch in every_sample(data, "train")])
    controls = {"untrained": other, "chance": entries(chance(y_train, y))}
    samples = samples_of(found, split, identify(y.double().cpu().numpy()))
    return {"metrics": own, "controls": controls, "samples": samples}


def samples_of(scores: dict[str, Any], split: str, identity: str) -> dict[str, Samples]:
    """Return the losses of each sample behind the errors among some scores."""
    errors = {key: one for key, one in scores.items() if key.split("/")[-1] == "error"}
    return {
        f"{split}/{key}": Samples(one.rows.numpy(), one.block, one.root, identity)
        for key, one in errors.items()
        if getattr(one, "rows", None) is not None
    }


def complement(error: Measured) -> Measured:
    """Return 1 - error with its interval."""
    low, high = (None if one is None else 1.0 - one for one in (error.high, error.low))
    return Measured(1.0 - error, low, high, error.n)


def probe_content(
    encoding: Encoding,
    probes: Probes,
    split: str,
    n_bootstrap: int,
    *,
    names: Sequence[str] = (OWN,),
    place: str = "",
    describe: Describe | None = None,
) -> Content:
    """Score the codes of the trained encoder, of the untrained one, and the raw input.

    The keys of a representation other than the model's own hold its name, `<split>/<name>/...`.

    Args:
        encoding: gives the codes.
        probes: by name.
        split: the one that is scored.
        n_bootstrap: resamples behind intervals.
        names: representations.
        place: stands before the names, as `<split>/<place>/...`.
        describe: looks at the codes of a representation, without labels; by default `label_free`.
    """
    content: Content = {"metrics": {}, "controls": {}, "samples": {}}
    describe = describe or (lambda _, x: label_free(x))
    shared: dict[str, dict[str, float]] | None = None
    for name in names:
        start = "/".join(part for part in (split, place, name) if part not in ("", OWN))
        codes = {role: encoding.both(role, split, name) for role in ROLES}
        (_, y_train), (_, y) = codes["trained"]
        block = block_rows(encoding.data.spec, len(y), len(encoding.data.splits[split]))
        bound = {k: bind(v, block=block, n_bootstrap=n_bootstrap) for k, v in probes.items()}
        scored = functools.partial(score_codes, bound, functools.partial(describe, name))
        found = {role: scored(*both) for role, both in codes.items()}
        if shared is None:  # the same beside every representation
            shared = no_encoder(encoding, split, scored, probes, y_train, y) if len(y) else {}
        for role, scores in (found | shared).items():
            own = content["metrics"] if role == "trained" else content["controls"]
            own = own if role == "trained" else own.setdefault(role, {})
            own |= {f"{start}/{key}": entry(value) for key, value in scores.items()}
        identity = identify(y.double().cpu().numpy())
        content["samples"] |= samples_of(found["trained"], start, identity)
    return content


def score_codes(
    probes: Probes, describe: Callable[[Tensor], dict[str, float]], train: Codes, val: Codes
) -> dict[str, float]:
    """Return what probes and `describe` find on the codes of a split, as `<probe>/<metric>`."""
    scores = score_all(probes, train, val) if len(val[1]) else {}
    return scores | {f"label_free/{key}": value for key, value in describe(val[0]).items()}


def no_encoder(
    encoding: Encoding,
    split: str,
    scored: Callable[[Codes, Codes], dict[str, float]],
    probes: Probes,
    y_train: Tensor,
    y: Tensor,
) -> dict[str, dict[str, float]]:
    """Return the controls that need no encoder: the raw input, and a guess that sees nothing."""
    x_train, x = encoding.raw(split, n_rows=len(y))
    controls = {"raw": scored((x_train, y_train), (x, y))}
    if y.ndim == 1:
        base = chance(y_train, y)
        controls["chance"] = {f"{name}/{k}": v for name in probes for k, v in base.items()}
    return controls


def bind(probe: Callable, **settings: Any) -> Callable[..., dict[str, float]]:
    """Give a probe those of the settings that it has."""
    known = inspect.signature(probe).parameters
    return functools.partial(probe, **{k: v for k, v in settings.items() if k in known})


def block_rows(spec: Any, n_rows: int, n_samples: int) -> int:
    """Return how many neighbouring rows of codes err together: those of windows that overlap."""
    if not isinstance(spec, SeriesSpec):
        return 1
    return max(1, round((spec.look_back + spec.horizon) * n_rows / n_samples))
