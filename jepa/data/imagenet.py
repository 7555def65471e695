"""ImageNet as folders that you have: `data=imagenet1k`, `data=imagenet100`.

Nothing is downloaded: the images are for those who have agreed to the terms of image-net.org.
Which hundred classes ImageNet-100 has differs from paper to paper, so the folder's own classes are
taken, or those of a list that you give.
"""

from dataclasses import replace
from pathlib import Path

from jepa.data.image_folder import ImageFolder
from jepa.data.images import Collection


class ImageNet(ImageFolder):
    """`<folder>/train/<class>/*.JPEG` and `<folder>/val/<class>/*.JPEG`.

    The published `val` is what is reported, as everywhere, so here it is `test`; `val`, by which a
    run is judged while it trains, is drawn from `train`.

    Args:
        folder: of both.
        n_classes: how many there have to be.
        class_list: a file with the name of a class folder on each line: only these are taken. None:
            all.
        images: settings of `ImageFolder`.

    Raises:
        ValueError: if there are other classes.
    """

    def __init__(self, *, folder: str, n_classes: int, class_list: str | None, **images):
        super().__init__(path=folder, **images)
        if self.storage == "memory":
            raise ValueError("data.storage=memory would hold all of ImageNet: take packed or files")
        self.n_classes, self.class_list = n_classes, class_list

    def load(self) -> Collection:
        """Return the images; the published `val` as `test`."""
        found = self.index(self.listed())
        splits = {{"val": "test"}.get(name, name): part for name, part in found.splits.items()}
        if len(found.classes) != self.n_classes:
            raise ValueError(
                f"data.folder={self.path} has {len(found.classes)} classes, and data.n_classes="
                f"{self.n_classes} are expected: give data.class_list=<file with a class a line>, "
                "or data.n_classes="
            )
        return replace(found, splits=splits)

    def listed(self) -> list[str] | None:
        """Return the classes of the list.

        Raises:
            ValueError: if there are none in the file, or no folder for one.
        """
        if self.class_list is None:
            return None
        names = Path(self.class_list).read_text(encoding="utf-8").split()
        absent = [name for name in names if not (Path(self.path) / "train" / name).is_dir()]
        if not names or absent:
            raise ValueError(
                f"data.class_list={self.class_list} names {len(names)} classes, of which "
                f"{len(absent)} are no folder in {self.path}/train: {', '.join(absent[:5])}"
            )
        return names
