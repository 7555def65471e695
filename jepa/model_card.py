"""The model card of an exported encoder: data, protocol, scores, controls, limits."""

import contextlib
from pathlib import Path
from typing import Any

from jepa import page, report
from jepa.encoder import Encoder
from jepa.recorded import Recorded, open_run
from jepa.spec import ImageSpec, TabularSpec

USE = {
    "table": "codes = encoder.embed(frame)  # a DataFrame with the columns below, in any order",
    "images": "codes = encoder.embed(images)  # [n, c, height, width], values from 0 to 255",
    "series": "codes = encoder.embed(windows)  # [n, channels, look_back], original units",
}

PROTOCOL = (
    "Probes are fitted on codes of training rows of the frozen encoder, and scored once, from the "
    "checkpoint that was best on validation. Beside each value its 95 % interval over samples, and "
    "the same probe on the untrained encoder, the raw input, and a guess without input."
)


def write_card(
    folder: Path, checkpoint: Path, encoder: Encoder, *, extra: tuple[str, str, float | None] | None
) -> None:
    """Write README.md.

    Args:
        folder: of the export.
        checkpoint: that it was made of; the report beside it is told where there is one.
        encoder: as exported.
        extra: name, function and parity figure of another format.
    """
    recorded = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        recorded = open_run(checkpoint)
    lines = [*head(encoder, recorded), *use(encoder, extra), *data(encoder, recorded)]
    lines += [*scores(recorded), *limits(encoder, recorded), *origin(checkpoint, recorded)]
    report.write_text(folder / "README.md", "\n".join(lines).rstrip() + "\n")


def head(encoder: Encoder, recorded: Recorded | None) -> list[str]:
    """Return the title and what the model is."""
    model = encoder.model
    name = type(model).__name__
    n = sum(one.numel() for one in model.parameters())
    on = f" on {recorded.data}" if recorded else ""
    first = (type(model).__doc__ or "").strip().splitlines()[0]
    return [
        f"# {name}{on}", "", first, "",
        f"- parameters: {n:,} (those that only training needs are left out of the file)",
        f"- length of a code: {len(encoder.names):,}", "",
    ]  # fmt: skip


def use(encoder: Encoder, extra: tuple[str, str, float | None] | None) -> list[str]:
    """Return how to open it."""
    kind = {"TabularSpec": "table", "ImageSpec": "images"}.get(
        type(encoder.spec).__name__, "series"
    )
    lines = [
        "## Use",
        "",
        "```python",
        "import jepa",
        "",
        'encoder = jepa.load_encoder("<this folder>")',
    ]
    lines.append(USE[kind])
    if getattr(encoder.model, "predicts_target", False):
        lines.append("forecast = encoder.predict(windows)  # original units")
    lines += ["```", ""]
    if extra is not None:
        name, function, parity = extra
        lines += [
            f"`{name}` is `{function}` of what `encoder.prepare(data)` returns, for any number of "
            f"rows; it differs from the model by {parity:.1e} of the largest entry.", "",
        ]  # fmt: skip
    return lines


def data(encoder: Encoder, recorded: Recorded | None) -> list[str]:
    """Return what it was trained on and takes."""
    spec: Any = encoder.spec
    lines = ["## Data", ""]
    if isinstance(spec, TabularSpec):
        kinds = ["category" if size else "number" for size in spec.cardinalities]
        listed = [f"`{name}` ({kind})" for name, kind in zip(spec.columns, kinds, strict=True)]
        lines += [f"- a table of {spec.n_features} columns: {', '.join(listed[:40])}"]
        lines += [f"- and {len(listed) - 40} more columns"] if len(listed) > 40 else []
    elif isinstance(spec, ImageSpec):
        lines += [f"- images of {spec.n_channels} x {spec.height} x {spec.width}"]
    else:
        lines += [
            f"- a series of {spec.n_channels} channels ({', '.join(spec.channels[:20])}), "
            f"{spec.look_back} steps seen, {spec.horizon} ahead"
        ]
    lines += [f"- task: {spec.task}" + (f", classes {', '.join(spec.classes[:20])}" if spec.classes else "")]  # fmt: skip  # noqa: E501
    if recorded:
        lines += [f"- {recorded.settings.get('data._target_', '')}"]
    return [*lines, ""]


def scores(recorded: Recorded | None) -> list[str]:
    """Return the protocol, the scores beside their controls, and the verdict."""
    if recorded is None or not recorded.report["metrics"]:
        return ["## Scores", "", "Not scored: there was no report beside the checkpoint.", ""]
    content = recorded.report
    split = next(iter(content["metrics"])).split("/")[0]
    lines = ["## Scores", "", f"Split `{split}`{report.stamp_of(content)}. {PROTOCOL}", ""]
    lines += page.markdown_table(report.rows(content))
    lines += page.markdown_table(report.baseline_rows(content))
    lines += [f"- {line}" for line in report.verdict(content)]
    return [*lines, ""]


def limits(encoder: Encoder, recorded: Recorded | None) -> list[str]:
    """Return what it cannot do, and what is not known of it."""
    spec, found = encoder.spec, []
    if isinstance(spec, TabularSpec):
        found.append("It takes these columns only; a category not seen in training is one code, `unseen`.")  # fmt: skip  # noqa: E501
    elif isinstance(spec, ImageSpec):
        found.append("Images of another size are resized; other channels are refused.")
    else:
        found.append("It takes these channels at the step of the training series, scaled as that was.")  # fmt: skip  # noqa: E501
    if recorded is not None:
        said = report.verdict(recorded.report)
        found += [line for line in said if "DOES NOT BEAT" in line]
        found += [f"The training did not finish: {recorded.report['reason']}"] if recorded.report["status"] != "finished" else []  # fmt: skip  # noqa: E501
        seed = recorded.settings.get("seed")
        found.append(f"One training run (seed {seed}): its scatter over seeds is not in the intervals.")  # fmt: skip  # noqa: E501
    found.append("Nothing is known of its behaviour on data of another origin.")
    return ["## Limits", "", *(f"- {one}" for one in found), ""]


def origin(checkpoint: Path, recorded: Recorded | None) -> list[str]:
    """Return where it comes from."""
    known = recorded.environment if recorded else {}
    versions = known.get("versions", {})
    lines = ["## Origin", "", f"- checkpoint: {checkpoint.name}"]
    if recorded and recorded.overrides:
        lines.append(f"- settings: `{' '.join(recorded.overrides)}`")
    for key in ("commit", "platform", "cuda"):
        if known.get(key):
            lines.append(f"- {key}: {known[key]}")
    lines += (
        [f"- versions: {', '.join(f'{k} {v}' for k, v in versions.items())}"] if versions else []
    )
    return [*lines, ""]
