"""Checkpoints of a training: tensors and a JSON header in one safetensors file, written then renamed; never pickle."""
from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch


def optimiser_tensors(optimiser) -> dict[str, torch.Tensor]:
    """An optimiser's state by names that begin with ``optimiser/``."""
    state = optimiser.state_dict()["state"]
    return {f"optimiser/{number}/{name}": torch.as_tensor(value) for number, values in state.items() for name, value in values.items()}


def restore_optimiser(optimiser, part: Callable[[str], dict]) -> None:
    """Give an optimiser the state that :func:`optimiser_tensors` took."""
    state = optimiser.state_dict()
    numbers = sorted({int(name.split("/")[0]) for name in part("optimiser/")})
    state["state"] = {number: part(f"optimiser/{number}/") for number in numbers}
    optimiser.load_state_dict(state)


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor], header: dict) -> None:
    """Write tensors and header under a temporary name, then rename: a reader never sees half a file."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    # clones: tensors that share storage, and channels-last ones, are not accepted as they are
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(plain, str(temporary), metadata={"checkpoint": json.dumps(header)})
    os.replace(temporary, path)


def read_checkpoint(path: Path) -> tuple[dict, Callable[[str], dict]]:
    """Header, and a function that gives the tensors whose names begin with a prefix, without it; a ValueError for a file that is no whole checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is no whole checkpoint ({error}); delete it to start afresh") from error
    return header, lambda prefix: {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
