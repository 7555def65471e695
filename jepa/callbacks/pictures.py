"""Draw what a model of images has learnt, at validations; what is drawn changes no weight."""

from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from jepa import pictures
from jepa.callbacks.probe import unnoticed
from jepa.gallery import Gallery, spectrum


class Pictures(L.Callback):
    """Write `plots/<name>.png`, the newest one of each picture, and hand all to TensorBoard.

    Nothing is drawn for a model that cannot show itself (no `look`). A picture that fails is left
    out from then on, with a warning: it costs no run.

    Args:
        run_dir: gets the files; its metrics.csv has the losses.
        n_images: in a row.
        n_bank: training images among which neighbours are looked for, and held-out ones behind the
            spectrum.
        seed: of their choice.
        masks, neighbours, attention, features, pyramid, spectrum, losses: validations from one
            drawing of that picture to the next, 0 for never.

    Raises:
        ValueError: for a setting below its least value.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        n_images: int,
        n_bank: int,
        seed: int,
        masks: int,
        neighbours: int,
        attention: int,
        features: int,
        pyramid: int,
        spectrum: int,
        losses: int,
    ):
        self.every = dict(
            masks=masks,
            neighbours=neighbours,
            attention=attention,
            features=features,
            pyramid=pyramid,
            spectrum=spectrum,
            losses=losses,
        )
        if min(n_images, n_bank) < 2 or min(self.every.values()) < 0:
            raise ValueError(
                "callbacks.pictures takes n_images and n_bank of at least 2, and for each picture "
                f"the validations between two drawings, 0 for never, got {n_images=}, {n_bank=}, "
                f"{self.every}"
            )
        self.run_dir = Path(run_dir)
        self.sizes = {"n_images": n_images, "n_bank": n_bank, "seed": seed}
        self.n_validations = 0
        self.reference: Tensor | None = None
        self.failed: set[str] = set()

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the spectrum that training starts from; a resumed run has it from its checkpoint."""
        if trainer.global_step or not self.every["spectrum"] or not hasattr(pl_module, "look"):
            return
        pl_module.eval()
        with unnoticed():
            self.reference = spectrum(self.gallery(trainer, pl_module))
        pl_module.train()

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw what is due."""
        if trainer.sanity_checking or not hasattr(pl_module, "look"):
            return
        self.n_validations += 1
        due = [n for n, every in self.every.items() if every and not self.n_validations % every]
        due = [name for name in due if name not in self.failed]
        if not due:
            return
        with unnoticed():
            gallery = self.gallery(trainer, pl_module)
            for name in due:
                self.draw(trainer, gallery, name)

    def gallery(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Gallery:
        """Return what draws."""
        data, metrics = cast(Any, trainer).datamodule, self.run_dir / "metrics.csv"
        return Gallery(pl_module, data, reference=self.reference, metrics=metrics, **self.sizes)

    def draw(self, trainer: L.Trainer, gallery: Gallery, name: str) -> None:
        """Draw one picture, if there is something to draw."""
        try:
            for _, figure in gallery.draw([name]):
                image = pictures.pixels(figure)
                pictures.save(image, self.run_dir / "plots" / f"{name}.png")
                for logger in trainer.loggers:
                    if hasattr(writer := cast(Any, logger).experiment, "add_image"):
                        writer.add_image(
                            f"pictures/{name}", image, trainer.global_step, dataformats="HWC"
                        )
        except Exception as error:  # drawing can fail anywhere inside, and must end no run
            self.failed.add(name)
            rank_zero_warn(f"the picture {name} is left out from here on: {error}")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to draw as this one would."""
        return {"n_validations": self.n_validations, "reference": self.reference}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.n_validations = state_dict["n_validations"]
        self.reference = state_dict["reference"]
