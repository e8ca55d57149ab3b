"""A training's checkpoint: weights, optimizer, position, and what its epochs measured; safetensors and JSON."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rec import artifact

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a training is."""

    epoch: int
    """Epochs that are done."""
    history: list[dict[str, float]]
    """Their metrics, oldest first."""
    step: int = 0
    """Steps done of the epoch after them."""
    sums: dict[str, float] = field(default_factory=dict)
    """What worker 0 summed up over these steps."""


def save(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> None:
    """Write the state of `module`, without its data-parallel wrapper, of `optimizer`, and `position` into `folder`."""
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, folder / MODEL)
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, float] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            elif value is not None:
                numbers[f"{index}.{name}"] = value
    save_file(tensors, folder / OPTIMIZER)
    artifact.write_json(
        folder / STATE,
        {
            "epoch": position.epoch,
            "history": position.history,
            "step": position.step,
            "sums": position.sums,
            "groups": state["param_groups"],
            "numbers": numbers,
        },
    )


def load(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Position:
    """Restore `module`, without its data-parallel wrapper (and `optimizer`, when given), from `folder`."""
    module.load_state_dict(load_file(folder / MODEL))
    state = _state(folder)
    if optimizer is not None:
        per_parameter: dict[int, dict[str, Any]] = {}
        tensors = {key: value.clone() for key, value in load_file(folder / OPTIMIZER).items()}  # these map the file
        for key, value in {**tensors, **state["numbers"]}.items():
            index, name = key.split(".", 1)
            per_parameter.setdefault(int(index), {})[name] = value
        groups = [_group(values) for values in state["groups"]]
        optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})
    return _position(state)


def read(folder: Path) -> Position:
    """The position alone."""
    return _position(_state(folder))


def _state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return found


def _position(state: dict[str, Any]) -> Position:
    history = state["history"] if "history" in state else [state["metrics"]]  # the latter: version 0.1
    return Position(state["epoch"], history, state.get("step", 0), state.get("sums", {}))


def _group(values: dict[str, Any]) -> dict[str, Any]:
    """A parameter group as the optimizer had it: JSON turned tuples (betas) into lists."""
    return {
        name: tuple(value) if isinstance(value, list) and name != "params" else value for name, value in values.items()
    }
