"""What a model must know of its data. Known after `DataModule.prepare()`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TabularSpec:
    """A table: one entry per feature column, and what the target asks for.

    Args:
        columns: names of the features, in the order of `x`.
        cardinalities: 0 for a number, else how many codes a category has (0 is missing, 1 is unseen
            or rare, the known values start at 2).
        quantiles: for a number, evenly spaced quantiles of its scaled training values, lowest and
            highest included; empty for a category.
        task: `binary`, `multiclass`, `regression` or `none`.
        classes: the class names, in the order of the labels; empty unless there are classes.
    """

    columns: tuple[str, ...]
    cardinalities: tuple[int, ...]
    quantiles: tuple[tuple[float, ...], ...]
    task: str
    classes: tuple[str, ...] = ()

    @property
    def n_features(self) -> int:
        """Columns of `x`, the target left out."""
        return len(self.columns)

    @property
    def n_classes(self) -> int:
        """Labels to tell apart; 0 where the target is a number or absent."""
        return len(self.classes)


@dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """Windows of a series: `look_back` steps of every channel in, and what is asked of them.

    Args:
        channels: names, in the order of axis c of `x` [b, c, l].
        look_back: time steps of `x`.
        horizon: time steps of `y` [b, c, h] where the task is `forecast`; steps ahead that the
            label speaks of where it is `binary`.
        location, scale: for each channel, what was subtracted from and then divided out of the
            values, so that original = scaled * scale + location.
        period: steps of one season, for the seasonal-naive forecast; 0 for none.
        task: `forecast` or `binary`.
        classes: the class names, in the order of the labels; empty for `forecast`.
    """

    channels: tuple[str, ...]
    look_back: int
    horizon: int
    location: tuple[float, ...]
    scale: tuple[float, ...]
    period: int = 0
    task: str = "forecast"
    classes: tuple[str, ...] = ()

    @property
    def n_channels(self) -> int:
        """Channels of `x`."""
        return len(self.channels)

    @property
    def n_classes(self) -> int:
        """Labels to tell apart; 0 for a forecast."""
        return len(self.classes)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Images of one shape; a batch's `x` is `[b, c, h, w]`.

    Args:
        n_channels: 1 or 3.
        height, width: in pixels.
        mean, std: of each channel over the training images, in [0, 1], before normalisation.
        task: `multiclass`, `binary` or `none`.
        classes: the class names, in the order of the labels.
        two_views: whether training batches hold a `view`, another augmentation of `x`.
        n_local_views, local_size: how many small crops of each image training batches hold as
            `local` `[b, n, c, s, s]`, and their side.
    """

    n_channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: str
    classes: tuple[str, ...] = ()
    two_views: bool = False
    n_local_views: int = 0
    local_size: int = 0

    @property
    def n_classes(self) -> int:
        """Labels to tell apart; 0 where there are none."""
        return len(self.classes)


Spec = TabularSpec | SeriesSpec | ImageSpec
KINDS: dict[str, type] = {"table": TabularSpec, "series": SeriesSpec, "images": ImageSpec}


def kind_of(spec: Spec) -> str:
    """Return `table`, `series` or `images`."""
    return next(kind for kind, one in KINDS.items() if isinstance(spec, one))
