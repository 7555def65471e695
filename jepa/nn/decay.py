"""Which parameters weight decay is for."""

from torch import nn


def decay_groups(nets: list[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split parameters into the matrices of linear layers, which weight decay is for, and the rest.

    The rest are vectors (biases, norms) and tables (columns, categories, numbers, REG, queries).
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in (module for net in nets for module in net.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            decayed = isinstance(module, nn.Linear) and name == "weight"
            (matrices if decayed else rest).append(parameter)
    return matrices, rest
