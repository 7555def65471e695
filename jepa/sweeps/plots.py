"""Optuna's own plots of a study as pictures of a page, each with words for those who cannot see it.

Parameters have long names and a study may have many of them: slices and contours are one picture
each, of the width of a phone, in place of one row in which no name can be read.
"""

import io
import itertools
import logging
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jepa import page
from jepa.report import digits

if TYPE_CHECKING:
    import optuna

WIDTH, HEIGHT = 370 / 96, 270 / 96  # inches of a picture; a page has 96 pixels to an inch
DPI = 192
FONT = 9.0  # points: 12 pixels of the page
N_COLOURS = 64  # of a picture
MOST_PAIRS = 3  # of parameters, in contours
NOTHING = (ValueError, RuntimeError, ZeroDivisionError, IndexError)  # too few trials, or too alike


def pictures(study: "optuna.Study", objective: str) -> list[tuple[str, list[str]]]:
    """Return figures under headings; those that say something."""
    complete = [one for one in study.get_trials(deepcopy=False) if one.state.name == "COMPLETE"]
    if len(complete) < 2 or len(study.directions) > 1:
        return []
    import matplotlib

    matplotlib.use("Agg")
    # of every axis whose choices read like numbers, that they do
    logging.getLogger("matplotlib.category").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental, of every call
        weights = importances(study)
        keys = list(weights) or sorted({key for one in complete for key in one.params})
        groups = {
            "How it went": overview(study, objective, weights, complete),
            "Slices: each parameter by itself": slices(study, objective, keys, complete),
            "Contours: the parameters that matter most, in pairs": contours(study, objective, keys),
        }
        return [(title, found) for title, figures in groups.items() if (found := list(figures))]


def importances(study: "optuna.Study") -> dict[str, float]:
    """Return the share of each parameter in what the objective varies, the largest first."""
    import optuna

    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except NOTHING:
        return {}


def overview(
    study: "optuna.Study", objective: str, weights: dict[str, float], complete: Sequence[Any]
) -> Iterator[str]:
    """Return history, importances and parallel coordinates."""
    import optuna
    import optuna.visualization.matplotlib as plots

    first, best = complete[0], min(complete, key=lambda one: one.values[0])
    yield drawn(
        "History",
        lambda: plots.plot_optimization_history(study, target_name=objective),
        f"{objective} of {len(complete)} trials by their number: {digits(first.values[0])} at "
        f"trial {first.number}, the best {digits(best.values[0])} at trial {best.number}.",
    )
    if weights:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = ", ".join(f"{key} {share:.0%}" for key, share in weights.items())
        yield drawn(
            "Importance of the parameters",
            lambda: plots.plot_param_importances(study, evaluator=evaluator, target_name=objective),
            f"Share of each parameter in what {objective} varies: {shares}.",
            height=max(HEIGHT, 1.0 + 0.33 * len(weights)),
        )
    keys = [objective, *sorted({key for one in complete for key in one.params})]
    chosen = ", ".join(f"{key} = {short(value)}" for key, value in best.params.items())
    yield drawn(
        "Parallel coordinates: a line for each trial",
        lambda: plots.plot_parallel_coordinate(study, target_name=objective),
        f"Each trial as a line from its {objective} through its parameters; the best has {chosen}.",
        width=max(WIDTH, 1.5 + 1.4 * len(keys)),
        height=1.25 * HEIGHT,
        broad=True,
        keys=keys,
    )


def slices(
    study: "optuna.Study", objective: str, keys: Sequence[str], complete: Sequence[Any]
) -> Iterator[str]:
    """Return the objective over each parameter, the one that matters most first."""
    import optuna.visualization.matplotlib as plots

    best = min(complete, key=lambda one: one.values[0])
    for key in keys:
        tried = sum(key in one.params for one in complete)
        chosen = f"; the best has {short(best.params[key])}" if key in best.params else ""
        yield drawn(
            key,
            lambda key=key: plots.plot_slice(study, params=[key], target_name=objective),
            f"{objective} over {key} in {tried} trials, later ones darker{chosen}.",
        )


def contours(study: "optuna.Study", objective: str, keys: Sequence[str]) -> Iterator[str]:
    """Return the objective over pairs of the parameters that matter most: all would fill a wall."""
    import optuna.visualization.matplotlib as plots

    for pair in itertools.islice(itertools.combinations(keys[:3], 2), MOST_PAIRS):
        yield drawn(
            " and ".join(pair),
            lambda pair=pair: plots.plot_contour(study, params=list(pair), target_name=objective),
            f"{objective} between the trials, over {pair[0]} and {pair[1]}; each dot is a trial.",
        )


def drawn(
    title: str,
    plot: Callable[[], Any],
    words: str,
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
    broad: bool = False,
    keys: Sequence[str] = (),
) -> str:
    """Return a plot as a figure of a page; nothing where Optuna cannot draw it."""
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.text import Text

    with matplotlib.rc_context():  # Optuna sets a style for good
        try:
            plot()
        except NOTHING:
            pyplot.close("all")
            return ""
        figure = pyplot.gcf()
        figure.set_layout_engine("tight")  # the constrained one cannot take its colour bars
        figure.set_size_inches(width, height)
        figure.suptitle("").set_in_layout(False)  # the page has it
        for axes in figure.axes:
            tidy(axes, keys)
        for text in figure.findobj(Text):
            text.set_fontsize(FONT)  # type: ignore[attr-defined]
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=DPI)
        pyplot.close("all")
    return page.picture(title, small(data), words, broad=broad)


def small(data: io.BytesIO) -> bytes:
    """Return a picture in a palette: a fifth of the file, and no difference to the eye."""
    from PIL import Image

    palette = Image.open(data).convert("RGB").quantize(N_COLOURS, Image.Quantize.FASTOCTREE)
    found = io.BytesIO()
    palette.save(found, format="png")
    return found.getvalue()


def tidy(axes: Any, keys: Sequence[str]) -> None:
    """Wrap names that are too long for their place; put a legend above, if it tells lines apart."""
    for place in ("center", "left"):
        axes.set_title("", loc=place)
    axes.set_xlabel(wrapped(axes.get_xlabel(), 44))
    axes.set_ylabel(wrapped(axes.get_ylabel(), 32))
    if axes.get_legend() is not None:
        handles, labels = axes.get_legend_handles_labels()
        axes.get_legend().remove()
        if len(labels) > 1:
            axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncol=2, frameon=False)  # fmt: skip  # noqa: E501
    names = [text.get_text() for text in axes.get_yticklabels()]
    if any(len(name) > 18 for name in names):
        axes.set_yticks(axes.get_yticks(), [wrapped(name, 18) for name in names])
    names = [text.get_text() for text in axes.get_xticklabels()]
    if any(len(name) > 12 for name in names):
        whole = unshortened(names, keys)
        axes.set_xticks(axes.get_xticks(), [wrapped(name, 14) for name in whole], rotation=0)
    if keys:  # numbers that lines cross
        for text in axes.get_yticklabels():
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8})


def unshortened(names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return names that Optuna cut off at twenty letters whole; the keys are in their order."""
    if len(names) != len(keys):
        return list(names)
    stems = [name.removesuffix("...") for name in names]  # several keys may begin alike
    both = zip(names, stems, keys, strict=True)
    return [key if key.startswith(stem) else name for name, stem, key in both]


def wrapped(name: str, width: int) -> str:
    """Return a name in lines, broken after the dots and dashes that join its parts."""
    spaced = name.replace(".", ". ").replace("_", "_ ").replace("/", "/ ")
    lines = textwrap.wrap(spaced, width + 2, break_long_words=False)
    if " " in name or len(name) <= width:
        return name if len(name) <= width else "\n".join(textwrap.wrap(name, width))
    return "\n".join(one.replace(". ", ".").replace("_ ", "_").replace("/ ", "/") for one in lines)


def short(value: Any) -> str:
    """Return a parameter's value in four digits."""
    return digits(value) if isinstance(value, float) else str(value)
