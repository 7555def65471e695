"""What a model, its controls and the baselines score on one split: the numbers of a report.

Axes: b windows or rows, c channels, l look-back, n training rows, m scored rows, e features.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jepa import baselines
from jepa.callbacks.probe import embed_all, score_all
from jepa.data.batches import OrderedBatches
from jepa.forecasting import Forecaster, score_forecasts
from jepa.metrics import Measured, chance, mean_over_blocks, score
from jepa.nn.norm import normalize
from jepa.probes.label_free import label_free
from jepa.probes.raw import raw_features
from jepa.report import entry
from jepa.samples import Samples, identify
from jepa.spec import ImageSpec, SeriesSpec

RAW_SIDE = 32  # largest side of an image whose pixels stand as features
Content = dict[str, Any]


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
) -> Content:
    """Return `metrics`, `controls`, `samples` and, for forecasts, `baselines` and `breakdown`.

    All of one split; `samples` are the losses behind the model's own errors, by metric.
    A model that predicts the target is scored on every sample of the split. Every probe is fitted
    on training rows alone, at most `max_rows` of them, and scored once.
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
        batches = functools.partial(probe_batches, data, sizes, seed)
        merge(content, probe_content(model, untrained, data, probes, batches, split, n_bootstrap))
    return stamped(content, getattr(data, "stamp", ""))


def merge(content: Content, more: Content) -> None:
    """Add the entries of one part of the report to those of another."""
    for key, value in more.items():
        if key == "controls":
            for name, entries in value.items():
                content["controls"].setdefault(name, {}).update(entries)
        else:
            content.setdefault(key, {}).update(value)


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


def probe_batches(
    data: Any, sizes: dict[str, int | None], seed: int, split: str
) -> Iterator[dict[str, Tensor]]:
    """Yield the rows of a split that probes see."""
    return data.probe_batches(split, max_rows=sizes[split], seed=seed)


def probe_content(
    model: Any,
    untrained: Any,
    data: Any,
    probes: dict[str, Callable[..., dict[str, float]]],
    batches: Callable[[str], Iterable[dict[str, Tensor]]],
    split: str,
    n_bootstrap: int,
) -> Content:
    """Score the codes of the trained encoder, of the untrained one, and the raw input."""

    def both(encoder: Any) -> tuple[Any, Any]:
        return embed_all(encoder, batches("train")), embed_all(encoder, batches(split))

    trained = both(model)
    (_, y_train), (_, y) = trained
    block = block_rows(data.spec, len(y), len(data.splits[split]))
    bound = {name: bind(one, block=block, n_bootstrap=n_bootstrap) for name, one in probes.items()}

    def scored(train: Any, val: Any) -> Content:
        return written(score_all(bound, train, val) if len(y) else {}, val)

    def written(scores: dict, val: Any) -> Content:
        scores |= {f"label_free/{key}": value for key, value in label_free(val[0]).items()}
        return {f"{split}/{key}": entry(value) for key, value in scores.items()}

    own = score_all(bound, *trained) if len(y) else {}
    content: Content = {"samples": samples_of(own, split, identify(y.double().cpu().numpy()))}
    content["metrics"] = written(own, trained[1])
    content["controls"] = {"untrained": scored(*both(untrained))}
    if not len(y):
        return content
    raw_train, raw_val = raw_inputs(data.spec, batches("train"), batches(split), n_rows=len(y))
    content["controls"]["raw"] = scored((raw_train, y_train), (raw_val, y))
    if y.ndim == 1:
        base = {key: entry(value) for key, value in chance(y_train, y).items()}
        content["controls"]["chance"] = {
            f"{split}/{name}/{key}": value for name in probes for key, value in base.items()
        }
    return content


def bind(probe: Callable, **settings: Any) -> Callable[..., dict[str, float]]:
    """Give a probe those of the settings that it has."""
    known = inspect.signature(probe).parameters
    return functools.partial(probe, **{k: v for k, v in settings.items() if k in known})


def block_rows(spec: Any, n_rows: int, n_samples: int) -> int:
    """Return how many neighbouring rows of codes err together: those of windows that overlap."""
    if not isinstance(spec, SeriesSpec):
        return 1
    return max(1, round((spec.look_back + spec.horizon) * n_rows / n_samples))


def collect(batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """Return the inputs of all batches as one tensor on the CPU; missing steps are filled."""
    inputs = []
    for batch in batches:
        x = batch["x"]
        if "mask" in batch:
            x = baselines.fill(x, batch["mask"][..., : x.shape[-1]])
        inputs.append(x.cpu())
    return torch.cat(inputs)


def raw_inputs(
    spec: Any, train: Iterable[dict[str, Tensor]], val: Iterable[dict[str, Tensor]], *, n_rows: int
) -> tuple[Float[Tensor, "n e"], Float[Tensor, "m e"]]:
    """Return the input itself as features: columns, windows or pixels.

    `n_rows` is how many rows the codes of `val` have: one for each window, or for each channel.
    """
    x_train, x_val = collect(train), collect(val)
    if isinstance(spec, SeriesSpec):
        apart = n_rows != len(x_val)
        return raw_windows(x_train, apart=apart), raw_windows(x_val, apart=apart)
    if isinstance(spec, ImageSpec):
        return raw_pixels(x_train), raw_pixels(x_val)
    return raw_features(x_train, x_val, spec.cardinalities)


def raw_windows(x: Float[Tensor, "b c l"], *, apart: bool) -> Float[Tensor, "n e"]:
    """Return windows normalised as a model sees them, then what normalisation took from them.

    A row for each channel if `apart`, else a row for each window.
    """
    z, location, scale = normalize(x)
    if apart:
        return rearrange(torch.cat([z, location, scale], dim=-1), "b c l -> (b c) l")
    return torch.cat([part.flatten(1) for part in (z, location, scale)], dim=1)


def raw_pixels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
    """Return the pixels, averaged where an image is larger than 32 x 32."""
    height, width = x.shape[-2:]
    size = (min(height, RAW_SIDE), min(width, RAW_SIDE))
    return F.adaptive_avg_pool2d(x.float(), size).flatten(1)
