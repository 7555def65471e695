"""What a checkpoint needs besides weights: config, spec and fitted preprocessing."""

from typing import Any

import lightning as L


class Record(L.Callback):
    """Put plain text, numbers and tensors into every checkpoint, so that one file is enough.

    Args:
        config: the settled configuration as YAML text.
        spec: the data's spec, as a dict of plain values.
        preprocessing: what the data fitted on its training rows, as plain tensors and text.
    """

    def __init__(self, *, config: str, spec: dict[str, Any], preprocessing: dict[str, Any]):
        self.content = {"config": config, "spec": spec, "preprocessing": preprocessing}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the content; everything loads with `weights_only=True`."""
        checkpoint.update(self.content)
