"""The slow copy of an encoder that supplies the prediction targets."""

import copy
from typing import Any

import torch
from torch import nn


def has_gradients(optimizer: Any) -> bool:
    """Tell whether the newest step moved anything; a guard takes the gradients of a broken one."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


class Teacher(nn.Module):
    """A frozen copy of `student` that follows it: teacher <- m * teacher + (1 - m) * student.

    It takes no gradient, and stays in eval mode when its owner trains.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self.net = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Ignore the mode: targets carry no dropout."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        """Call the copy without building a graph."""
        return self.net(*args, **kwargs)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Take one averaging step. Buffers are copied, not averaged."""
        slow: list[torch.Tensor] = list(self.net.parameters())
        fast: list[torch.Tensor] = list(student.parameters())
        # one call for all parameters: a loop costs more than the averaging
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        for mine, theirs in zip(self.net.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)
