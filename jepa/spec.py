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
