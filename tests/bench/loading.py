"""Images a second of a folder of JPEG files: decoded for every batch, and out of the packed file.

The files are drawn: smooth colours with fine noise, as large as photographs of their size are.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from jepa.data.batches import Batches
from jepa.data.large import Decoder, Large, Source
from jepa.data.packed import pack

SIDE, BATCH = 224, 32
SIZE = (500, 375)  # width and height of a file, the usual ones of ImageNet
N_DRAWN = 50  # photographs; each is written several times


def write_photos(folder: Path, n: int) -> dict[str, Path]:
    """Write n JPEG files of quality 90; return them by name."""
    rng = np.random.default_rng(0)
    files = {f"{i:04}.jpg": folder / f"{i:04}.jpg" for i in range(n)}
    for i, path in enumerate(files.values()):
        if i < N_DRAWN:
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = smooth + rng.integers(-12, 13, smooth.shape, dtype=np.int16)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        else:
            shutil.copy(folder / f"{i % N_DRAWN:04}.jpg", path)
    return files


def rate(source: Source, n: int, *, epochs: int) -> float:
    """Return images a second, of shuffled batches and nothing else."""
    batches = Batches(Large(source, torch.arange(n)), BATCH, seed=0)
    started = time.perf_counter()
    n_images = sum(len(batch["x"]) for _ in range(epochs) for batch in batches)
    return n_images / (time.perf_counter() - started)


def run(console: Console, *, quick: bool, compiled: bool) -> dict[str, Any]:
    """Measure and print; return the figures."""
    n = 100 if quick else 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_photos(folder, n)
        size = sum(path.stat().st_size for path in files.values()) / n
        figures: dict[str, Any] = {"images": n, "bytes_of_a_file": size, "decode": {}}
        for n_workers in sorted({1, os.cpu_count() or 1}):
            decoder = Decoder(files, side=SIDE, n_workers=n_workers, max_corrupt_share=0)
            figures["decode"][n_workers] = rate(decoder, n, epochs=1)
        started = time.perf_counter()
        packed = pack(files, folder / "cache", label="x", side=SIDE, n_workers=os.cpu_count() or 1)
        figures["build"] = n / (time.perf_counter() - started)
        figures["packed"] = rate(packed, n, epochs=5)
    figures["ratio"] = figures["packed"] / max(figures["decode"].values())
    table = Table(title=f"{n} JPEG files of {SIZE[0]} x {SIZE[1]}, {size / 1000:.0f} kB each")
    for column in ("way", "images/s", "x decoding"):
        table.add_column(column)
    best = max(figures["decode"].values())
    for n_workers, value in figures["decode"].items():
        table.add_row(f"decoded, {n_workers} threads", f"{value:,.0f}", f"{value / best:.2f}")
    table.add_row("packed", f"{figures['packed']:,.0f}", f"{figures['ratio']:.1f}")
    table.add_row("building the packed file", f"{figures['build']:,.0f}", "")
    console.print(table)
    return figures
