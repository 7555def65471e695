"""What `jepa.evaluate` can measure of a trained encoder beside its probes, and what fits a run.

Axes: n samples, o patches of one, e features.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jepa.encoding import OWN, ROLES, Encoding
from jepa.finetune import labels
from jepa.metrics import Measured, chance
from jepa.probes.quality import cka, quality
from jepa.report import entry
from jepa.spec import ImageSpec, Spec

PROBES = {"linear": "auto", "knn": "knn", "few_shot": "few_shot"}
PROTOCOLS = (*PROBES, "feature_quality", "finetune", "transfer")
Content = dict[str, Any]


def chosen(protocol: Any) -> tuple[str, ...]:
    """Return the protocols of a list, or of `all`, in their order of record.

    Raises:
        ValueError: for what is neither.
    """
    if protocol == "all":
        return PROTOCOLS
    names = [protocol] if isinstance(protocol, str) else list(protocol or [])
    wrong = [name for name in names if name not in PROTOCOLS]
    if wrong or not names or isinstance(protocol, str):
        raise ValueError(
            f"protocol={protocol}: it takes all, or a list of {', '.join(PROTOCOLS)}, as "
            "protocol=[linear,knn]"
        )
    return tuple(name for name in PROTOCOLS if name in names)


def fitting(
    wanted: Sequence[str], spec: Spec, *, everything: bool, elsewhere: bool
) -> tuple[list[str], list[str]]:
    """Return the protocols that a run allows, and in words those that were left out of `all`.

    Args:
        wanted: protocols.
        spec: of the run's data.
        everything: whether `all` was asked for, so that what does not fit is left out.
        elsewhere: whether another data set was named.

    Raises:
        ValueError: naming one that does not fit and was asked for by name.
    """
    images, labelled = isinstance(spec, ImageSpec), spec.task not in ("none", "forecast")
    reasons = {
        "knn": None if labelled else "the data has no labels",
        "few_shot": None if labelled else "the data has no labels",
        "finetune": None if images and labelled else "it trains image encoders on labels",
        "transfer": None if elsewhere else "it needs data=<another set>, as data=cifar10",
    }
    if not images:
        reasons["transfer"] = "it codes other images"
    lost = {name: reasons[name] for name in wanted if reasons.get(name)}
    if lost and not everything:
        name, why = next(iter(lost.items()))
        raise ValueError(f"protocol=[{name}]: {why}")
    if elsewhere and "transfer" not in wanted:
        raise ValueError("data= names what protocol=[transfer] probes: add transfer to protocol")
    kept = [name for name in wanted if name not in lost]
    return kept, [f"{name} is left out: {why}" for name, why in lost.items()]


def representations_of(
    model: Any, asked: Any, *, everything: bool, max_codes: int
) -> tuple[list[str], list[str]]:
    """Return the representations that are probed, the model's own first, and what was left out.

    Raises:
        ValueError: for one that the model does not have.
    """
    offered = model.representations() if hasattr(model, "representations") else []
    if asked == "auto":
        others = [n for n in offered if everything and n != model.representation]
        widths = {name: len(model.code_names(name)) for name in others}
        wide = [f"{n} is left out: {w:,} numbers a code, above max_codes={max_codes}"
                for n, w in widths.items() if w > max_codes]  # fmt: skip
        return [OWN, *(name for name in others if widths[name] <= max_codes)], wide
    names = [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        if name not in (OWN, *offered):
            raise ValueError(
                f"representations={names}: this model has {', '.join((OWN, *offered))}"
            )
    own = getattr(model, "representation", None)
    return list(dict.fromkeys(OWN if name == own else name for name in names)), []


def levels_of(model: Any, max_codes: int) -> list[str]:
    """Return the representations that stand for the levels of a model: the mean, then the grids."""
    if not hasattr(model, "representations") or model.levels.n < 2:
        return []
    names = ["mean", *(f"level{level}" for level in range(1, model.levels.n))]
    names = [name for name in names if len(model.code_names(name)) <= max_codes]
    return [OWN if name == model.representation else name for name in names]


def look(width: int | None, name: str, x: Float[Tensor, "n e"]) -> dict[str, float]:
    """Return the quality of codes; those of a level are looked at patch by patch."""
    o = x.shape[1] // width if width and name.startswith("level") else 1
    return dict(quality(rearrange(x, "n (o e) -> n o e", o=o)))


def level_content(encoding: Encoding, split: str, names: Sequence[str]) -> Content:
    """Compare the codes of every two levels: 1 - CKA is how much the hierarchy tells them apart."""
    found: dict[str, Content] = {role: {} for role in ROLES}
    for role in ROLES:
        codes = {name: encoding.codes(role, split, name)[0] for name in names}
        for a, b in combinations(names, 2):
            key = f"{split}/label_free/cka_{'_'.join(n if n != OWN else 'mean' for n in (a, b))}"
            found[role][key] = entry(cka(codes[a], codes[b]))
    return {"metrics": found["trained"], "controls": {"untrained": found["untrained"]}}


def finetune_content(
    model: Any,
    untrained: Any,
    data: Any,
    finetune: Callable[..., dict[str, Measured]],
    *,
    split: str,
    max_rows: int | None,
    max_split_rows: int | None,
    n_bootstrap: int = 1000,
) -> Content:
    """Fine-tune the trained encoder, and with as many steps the untrained one."""
    rows = {"max_rows": max_rows, "max_split_rows": max_split_rows}
    found: dict[str, dict[str, Measured]] = {
        role: finetune(one.teacher.net, data, split=split, n_bootstrap=n_bootstrap, **rows)
        for role, one in zip(ROLES, (model, untrained), strict=True)
    }
    y_train, y = labels(data, "train", max_rows), labels(data, split, max_split_rows)
    found["chance"] = chance(y_train, y)
    entries = {
        role: {f"{split}/finetune/{key}": entry(value) for key, value in scores.items()}
        for role, scores in found.items()
    }
    return {"metrics": entries.pop("trained"), "controls": entries}
