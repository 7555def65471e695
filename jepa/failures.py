"""What kind of failure an error is: memory, or an optional part of a model; pure functions."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

COMPILERS = ("torch._dynamo", "torch._inductor")
MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
# For each optional part: the settings that leave it out, and where its code is, by file and
# function (None: any but the constructor, whose errors are the user's).
OFF: dict[str, dict[str, Any]] = {
    "compile": {"model.compile": False},
    "attention": {"model.attention": "plain"},
    "pyramid": {"model.pyramid": "none"},
    "nt_xent": {"model.nt_xent": 0.0},
}
PLACES = {
    "attention": ("jepa/nn/vit.py", "attend"),
    "pyramid": ("jepa/nn/pyramid.py", None),
    "nt_xent": ("jepa/nn/losses.py", "nt_xent"),
}


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was what was missing, on any device."""
    for one in chain(error):
        if isinstance(one, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(one, RuntimeError) and any(text in str(one).lower() for text in MEMORY):
            return True
    return False


def failed_part(error: BaseException, model: Mapping[str, Any]) -> str:
    """Return the optional part that an error comes from, of those that the model's settings use.

    A failed compilation shows in the class of the error, the others in where it was raised.
    """
    used = {part for part, off in OFF.items() if is_on(off, model)}
    if "compile" in used and any(type(e).__module__.startswith(COMPILERS) for e in chain(error)):
        return "compile"
    frames = list(code_of(error))
    for part, (file, function) in PLACES.items():
        for path, name in frames:
            named = name == function if function else name != "__init__"
            if part in used and path.endswith(file) and named:
                return part
    return ""


def is_on(off: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Tell whether the settings differ from those that leave a part out."""
    return all(model.get(key.split(".")[1], value) != value for key, value in off.items())


def code_of(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield (file, function) of every place that an error passed."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        yield code.co_filename.replace("\\", "/"), code.co_name
        trace = trace.tb_next
