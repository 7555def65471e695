"""One file per paper: its modules and its LightningModule."""
