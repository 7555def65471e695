"""Run the entries, each a file here: `python -m tests.bench only=tjepa quick=true`."""

import importlib
import json
import pkgutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from jepa.allocator import keep_memory
from tests.bench.machine import describe

ENTRIES = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])]
ENTRIES = [n for n in ENTRIES if n not in ("__main__", "machine") and not n.startswith("official")]


def main(*arguments: str) -> None:
    """Print each entry's tables, and write its figures to runs/bench/."""
    settings = dict(argument.split("=", 1) for argument in arguments)
    unknown = settings.keys() - {"only", "quick", "compiled"}
    names = [settings["only"]] if "only" in settings else ENTRIES
    if unknown or not set(names) <= set(ENTRIES):
        raise SystemExit(
            f"use: python -m tests.bench [only={'|'.join(ENTRIES)}] [quick=true] [compiled=true]"
        )
    keep_memory()  # as `jepa.train` does, and for both sides of a comparison
    console = Console(width=None if sys.stdout.isatty() else 150)
    for name in names:
        now = datetime.now(UTC)
        machine = describe()
        console.print(f"[bold]{name}[/] {now:%Y-%m-%d %H:%M} UTC, {machine}")
        entry = importlib.import_module(f"tests.bench.{name}")
        flags = {key: settings.get(key, "false") == "true" for key in ("quick", "compiled")}
        figures = entry.run(console, **flags)
        path = Path("runs/bench") / f"{name}_{now:%Y-%m-%d_%H-%M-%S}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"entry": name, "date": now.isoformat(), "machine": machine, "figures": figures}
        path.write_text(json.dumps(record, indent=1))
        console.print(f"written to {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
