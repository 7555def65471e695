"""Splits and classes from the names of image files: split/class/file, class/file, or file."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_PLAIN = "images"  # a folder of this name says nothing about the class

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Tree:
    """What the names say.

    Args:
        splits: names of the files of each split in the order of the alphabet, all in `train` where
            there are no splits; `train` comes first.
        classes: in the order of the alphabet; empty where there are none to tell apart.
        labels: number of each file's class.
    """

    splits: dict[str, list[str]]
    classes: tuple[str, ...]
    labels: dict[str, int]


def arrange(names: Iterable[str], folders: Iterable[str] = ()) -> Tree:
    """Read split and class from the names.

    Folders around the whole tree are passed over, and so are those below a class.

    Args:
        names: of the image files, relative, at least one.
        folders: names of all folders, so that one without images is noticed.

    Raises:
        ValueError: for a class without images, a class that training lacks, and names that mean
            neither splits nor classes.
    """
    parts = {name: PurePosixPath(name).parts for name in sorted(names)}
    root = common_root(list(parts.values()))
    parts = {name: one[root:] for name, one in parts.items()}
    published = has_splits(list(parts.values()))
    places = {name: place(one[:-1], published) for name, one in parts.items()}
    check_classes(places)
    first = next(iter(parts))
    outside = PurePosixPath(first).parts[:root]
    for folder in sorted(folders):
        inside = PurePosixPath(folder).parts
        if inside[:root] == outside:
            check_empty(folder, inside[root:], published, set(places.values()))
    found = [
        split for split in ("train", "val", "test") if split in {s for s, _ in places.values()}
    ]
    classes = sorted({kind for _, kind in places.values()})
    labelled = len(classes) > 1
    return Tree(
        splits={s: [name for name in places if places[name][0] == s] for s in found},
        classes=tuple(classes) if labelled else (),
        labels={n: classes.index(kind) for n, (_, kind) in places.items()} if labelled else {},
    )


def common_root(parts: list[Parts]) -> int:
    """Count the folders around the whole tree: those that all files share above their class."""
    count = 0
    while (
        all(len(one) > count + 2 for one in parts)
        and len({one[count] for one in parts}) == 1
        and parts[0][count].lower() not in SPLITS
        and {one[count + 1].lower() for one in parts} != {_PLAIN}
    ):
        count += 1
    return count


def has_splits(parts: list[Parts]) -> bool:
    """Tell whether the first folder is the split. A class may be called `train`, say.

    Raises:
        ValueError: if it is so for some files only, or no file is for training.
    """
    outer = {one[0].lower() if len(one) > 1 else "" for one in parts}
    other = sorted(outer - SPLITS.keys())
    if len(other) == len(outer):
        return False
    if not other:
        if "train" not in {SPLITS[name] for name in outer}:
            raise ValueError(f"no image lies below train/, only below {', '.join(sorted(outer))}")
        return True
    deep = any(len(one) > 2 and one[0].lower() in SPLITS and one[1] != _PLAIN for one in parts)
    if deep:
        raise ValueError(
            f"images lie below {', '.join(sorted(outer - set(other)))} and below "
            f"{', '.join(name or 'no folder' for name in other)}: where there are splits, every "
            "image lies in train/<class>/, val/<class>/ or test/<class>/"
        )
    return False


def place(folders: Parts, published: bool) -> tuple[str, str]:
    """Return split and class of a file in these folders; no class is ''."""
    split = SPLITS[folders[0].lower()] if published else "train"
    inside = folders[1:] if published else folders
    return split, "" if not inside or inside[0].lower() == _PLAIN else inside[0]


def check_classes(places: dict[str, tuple[str, str]]) -> None:
    """Refuse files with and without a class side by side, and classes that training lacks."""
    known = {kind for split, kind in places.values() if split == "train"}
    for name, (split, kind) in places.items():
        if kind not in known:
            raise ValueError(
                f"{name} is of class {kind!r}, of which {split} has images and train has none; "
                f"train has {', '.join(map(repr, sorted(known)[:10]))}"
            )
        if not kind and len(known) > 1:
            raise ValueError(
                f"{name} lies in no class folder, other images do: move it into one, or all into "
                "none"
            )


def check_empty(folder: str, inside: Parts, published: bool, found: set[tuple[str, str]]) -> None:
    """Refuse the folder of a class in which no image lies."""
    if published and (not inside or inside[0].lower() not in SPLITS):
        return  # beside the splits
    split, kind = place(inside, published)
    if kind and not kind.startswith("__") and (split, kind) not in found:
        raise ValueError(
            f"class {kind!r} has no image that can be read below {folder}: remove the folder, or "
            "add .jpg, .jpeg or .png files"
        )
