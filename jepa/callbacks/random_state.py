"""The state of every global random generator, as plain tensors: no pickle in a checkpoint."""

import random

import lightning as L
import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]


def random_state(device: torch.device) -> State:
    """Return the state of python, numpy and torch, and of the device's generator."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words]),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss]),
        "gauss": torch.tensor([np.nan if gauss is None else gauss, cached], dtype=torch.float64),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: State, device: torch.device) -> None:
    """Put a state back; that of another kind of device is left out."""
    gauss, cached = state["gauss"].tolist()
    version, *words = state["python"].tolist()
    random.setstate((version, tuple(words), None if np.isnan(gauss) else gauss))
    *keys, position, has_gauss = state["numpy"].tolist()
    keys = np.array(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    # a copy: of a part of a tensor, torch would read the whole storage, and crash
    torch.set_rng_state(state["torch"].clone())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].clone(), device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"].clone())


def gathered(trainer: L.Trainer, state: State) -> list[State]:
    """Return the states of all ranks; the same list on each."""
    if trainer.world_size == 1:
        return [state]
    device = trainer.strategy.root_device
    every = {n: trainer.strategy.all_gather(one.to(device)).cpu() for n, one in state.items()}
    ranks = range(trainer.world_size)
    return [{name: one[rank].clone() for name, one in every.items()} for rank in ranks]
