"""The ranker as served: the trained DeepFM as plain torch, with one table and one lookup per request.

All tables of the training module are stacked into one, and the linear weight of a row is its last column,
so that the first-order term, the factorisation machine and the network read the same lookup. The pairwise
term is the square-of-sum trick, times the learned gate. It agrees with the training module to 1e-5.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rec import weights
from rec.artifact import write_json
from rec.errors import ArtifactError
from rec.features.compute import RankInputs
from rec.features.spec import Spec

KIND = "ranker"
VERSION = 2
BLOCK = 16_384
"""Rows scored at once: bounds memory in batch scoring; a request is one block."""


@dataclass(frozen=True, slots=True)
class DenseScale:
    """Normalisation of the G dense fields: clamp to what training saw, then z-score.

    The clamp keeps a value that no training sample had (the age of a product of this morning) from being
    extrapolated: it counts as the nearest value that training saw.
    """

    low: Tensor  # float32[G]
    high: Tensor  # float32[G]
    mean: Tensor  # float32[G]
    std: Tensor  # float32[G] 1 for a field that never varied

    def __call__(self, dense: Tensor) -> Tensor:
        """float32[K, G] normalised values."""
        return (dense.clamp(self.low, self.high) - self.mean) / self.std


class FusedDeepFM(nn.Module):
    """DeepFM over one table: `rows` rows of `dim` factors and a linear weight."""

    table: Tensor
    linear: Tensor
    gate: Tensor
    bias: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor
    offsets: Tensor
    limits: Tensor

    def __init__(self, spec: Spec, dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.spec, self.dim, self.hidden = spec, dim, list(hidden)
        start = dict(zip(spec.tables, np.cumsum([0, *spec.tables.values()]).tolist(), strict=False))
        columns = [field.table for field in spec.sparse]
        columns += [field.table for field in spec.varlen for _ in range(field.length)]
        width, dense = len(spec.sparse) + len(spec.varlen), len(spec.dense)
        self.register_buffer("table", torch.zeros(sum(spec.tables.values()), dim + 1))
        self.register_buffer("linear", torch.zeros(dense))
        self.register_buffer("gate", torch.zeros(1))
        self.register_buffer("bias", torch.zeros(1))
        for name in ("low", "high", "mean", "std"):
            self.register_buffer(name, torch.zeros(dense))
        self.register_buffer("offsets", torch.tensor([start[name] for name in columns]), persistent=False)
        self.register_buffer("limits", torch.tensor([spec.tables[name] for name in columns]), persistent=False)
        sizes = [width * dim + dense, *hidden]
        self.layers = nn.ModuleList(nn.Linear(sizes[i], sizes[i + 1]) for i in range(len(hidden)))
        self.top = nn.Linear(sizes[-1], 1, bias=False)
        self.requires_grad_(False)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Logits float32[K] of ids int64[K, F + R] (sparse, then varlen columns) and raw dense float32[K, G]."""
        found = F.embedding(ids + self.offsets, self.table)  # float32[K, F + R, dim + 1]
        fields = [found[:, : len(self.spec.sparse)]]
        column = len(self.spec.sparse)
        for field in self.spec.varlen:
            bag = slice(column, column + field.length)
            real = (ids[:, bag] != 0).to(found.dtype).unsqueeze(2)  # float32[K, length, 1]
            fields.append((found[:, bag] * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1))
            column += field.length
        joined = torch.cat(fields, dim=1)  # float32[K, fields, dim + 1]
        factors = joined[..., : self.dim]
        pairs = 0.5 * (factors.sum(1).square() - factors.square().sum(1)).sum(1)  # float32[K]
        scaled = DenseScale(self.low, self.high, self.mean, self.std)(dense)  # float32[K, G]
        deep = torch.cat([factors.flatten(1), scaled], dim=1)
        for layer in self.layers:
            deep = F.relu(layer(deep))
        first = joined[..., self.dim].sum(1) + scaled @ self.linear
        return first + self.gate * pairs + self.top(deep)[:, 0] + self.bias

    @torch.inference_mode()
    def score(self, inputs: RankInputs) -> NDArray[np.float32]:
        """float32[K] logits, higher is better; K may be a request or many thousand rows.

        Raises ValueError when an id lies outside its table, naming the field.
        """
        ids = torch.from_numpy(np.concatenate([inputs.sparse, inputs.varlen], axis=1))
        self._check(ids)
        blocks = zip(ids.split(BLOCK), torch.from_numpy(inputs.dense).split(BLOCK), strict=True)
        scores = [self(block, dense) for block, dense in blocks]
        return torch.cat(scores).numpy() if len(ids) else np.empty(0, np.float32)

    def _check(self, ids: Tensor) -> None:
        wrong = (ids < 0) | (ids >= self.limits)
        if bool(wrong.any()):
            row, column = (int(i) for i in wrong.nonzero()[0])
            names = [field.name for field in self.spec.sparse]
            names += [field.name for field in self.spec.varlen for _ in range(field.length)]
            raise ValueError(
                f"field {names[column]!r} has id {int(ids[row, column])}, but its table has {int(self.limits[column])} "
                "rows: features and ranker are of different vocabularies"
            )

    def save(self, folder: Path) -> None:
        """Write ranker.safetensors and ranker.json into `folder`."""
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "ranker.safetensors"
        )
        described: dict[str, Any] = {"spec": self.spec.to_json(), "embedding_dim": self.dim, "hidden": self.hidden}
        write_json(folder / "ranker.json", described)


def load(folder: Path) -> FusedDeepFM:
    """The ranker saved in `folder`, ready to score."""
    described = json.loads((folder / "ranker.json").read_text(encoding="utf-8"))
    module = FusedDeepFM(Spec.from_json(described["spec"]), described["embedding_dim"], described["hidden"])
    try:
        with weights.reading(folder / "ranker.safetensors") as path:
            module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ArtifactError(f"{folder / 'ranker.safetensors'} does not fit ranker.json beside it: {error}") from error
    return module.eval()
