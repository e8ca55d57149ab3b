"""The rankers as served: plain torch, with one table and one lookup per request.

All tables of the training module are stacked into one. DeepFM's has the linear weight of a row as its last column; what
it reads at serving has beside them what the row adds to the first layer of the network (`Folded`). Both agree with
their training modules to 1e-5.

`score` gives logits, `probabilities` what calibration makes of them (`rec.models.probability`).
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, cast

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
from rec.models.interaction import Interaction
from rec.models.probability import log_odds

KIND = "ranker"
VERSION = 3
BLOCK = 128
"""Rows scored at once: a request is one block, and between two blocks their memory is kept. With 256 rows and more it
goes back to the system each time, and DLRM takes up to twice as long."""
ALIGNED = 16
"""Numbers of a folded row are a multiple of it: 64 bytes, which the processor reads at once."""
MOST_FOLDED = 2**26
"""Numbers of a folded table: a quarter of a GiB, which 33 fields of 500 rows and a hundred thousand brands and tokens
do not reach."""


@dataclass(frozen=True, slots=True)
class DenseScale:
    """Normalisation of the G dense fields: clamp to what training saw, then z-score.

    The clamp keeps a value that no training sample had (the age of a product of this morning) from being
    extrapolated: it counts as the nearest value that training saw.
    """

    NAMES: ClassVar = ("low", "high", "mean", "std")

    low: Tensor  # float32[G]
    high: Tensor  # float32[G]
    mean: Tensor  # float32[G]
    std: Tensor  # float32[G] 1 for a field that never varied

    @classmethod
    def of(cls, module: nn.Module) -> "DenseScale":
        """What the buffers of a module have, which are called as here."""
        return cls(*(module.get_buffer(name) for name in cls.NAMES))

    def __call__(self, dense: Tensor) -> Tensor:
        """float32[K, G] normalised values."""
        return self.centred(dense).div_(self.std)

    def centred(self, dense: Tensor) -> Tensor:
        """float32[K, G] values that were seen, less their mean."""
        return dense.clamp(self.low, self.high).sub_(self.mean)


def id_columns(spec: Spec) -> list[tuple[str, str]]:
    """Field and table of every column of ids: the sparse fields, then each place of the varlen fields."""
    columns = [(field.name, field.table) for field in spec.sparse]
    return columns + [(field.name, field.table) for field in spec.varlen for _ in range(field.length)]


def num_fields(spec: Spec) -> int:
    """Fields that are looked up; a varlen field is one."""
    return len(spec.sparse) + len(spec.varlen)


def varlen_columns(spec: Spec) -> list[slice]:
    """The columns of ids of each varlen field."""
    bounds = accumulate((field.length for field in spec.varlen), initial=len(spec.sparse))
    return [slice(first, last) for first, last in pairwise(bounds)]


def pool(spec: Spec, ids: Tensor, found: Tensor) -> Tensor:
    """float32[K, fields, c], each varlen field the mean of its rows, of ids int64[K, F + R] and the rows found for
    them, float32[K, F + R, c]. Id 0 of a varlen field is padding and counts for nothing."""
    fields = [found[:, : len(spec.sparse)]]
    for bag in varlen_columns(spec):
        real = (ids[:, bag] != 0).to(found.dtype).unsqueeze(2)  # float32[K, length, 1]
        fields.append((found[:, bag] * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1))
    return torch.cat(fields, dim=1)


class Fused(nn.Module, ABC):
    """A ranker over one table: what comes before and after the network, the same for every model."""

    model: ClassVar[str]
    """Its name, as in `ranker.model`."""
    table: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor
    temperature: Tensor
    odds_bias: Tensor
    offsets: Tensor

    def __init__(self, spec: Spec, dim: int, *, columns: int) -> None:
        """`columns` is the width of a row of the table: `dim` factors and what else the model keeps of a row."""
        super().__init__()
        self.spec, self.dim = spec, dim
        start = dict(zip(spec.tables, np.cumsum([0, *spec.tables.values()]).tolist(), strict=False))
        owners = [table for _, table in id_columns(spec)]
        self.register_buffer("table", torch.zeros(sum(spec.tables.values()), columns))
        for name in DenseScale.NAMES:
            self.register_buffer(name, torch.zeros(len(spec.dense)))
        self.register_buffer("temperature", torch.ones(1))
        self.register_buffer("odds_bias", torch.zeros(1))
        self.register_buffer("offsets", torch.tensor([start[name] for name in owners]), persistent=False)
        self._columns = (len(spec.sparse), sum(field.length for field in spec.varlen), len(spec.dense))
        self._limits = np.array([spec.tables[name] for name in owners], np.uint64)

    @abstractmethod
    def logits(self, ids: Tensor, scaled: Tensor) -> Tensor:
        """Logits float32[K] of ids int64[K, F + R] and normalised dense fields float32[K, G]."""

    @abstractmethod
    def layers_of(self) -> dict[str, Any]:
        """The keyword arguments that made it, beside spec and dim."""

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Logits float32[K] of ids int64[K, F + R] (sparse, then varlen columns) and raw dense float32[K, G]."""
        return self.logits(ids, DenseScale.of(self)(dense))

    def fold(self) -> None:
        """Do now what the first score would have to do once."""

    def fields(self, ids: Tensor) -> Tensor:
        """float32[K, fields, columns] what the table has for ids int64[K, F + R], varlen fields averaged."""
        return pool(self.spec, ids, F.embedding(ids + self.offsets, self.table))

    @torch.inference_mode()
    def score(self, inputs: RankInputs) -> NDArray[np.float32]:
        """float32[K] logits, higher is better; K may be none, a request or many thousand rows.

        Raises ValueError, naming the field, when an id lies outside its table or a number is not finite, and
        when there are not as many columns as fields.
        """
        ids = np.concatenate([inputs.sparse, inputs.varlen], axis=1).astype(np.int64, order="C", copy=False)
        self._check(inputs, ids)
        if not len(ids):
            return np.empty(0, np.float32)
        columns, dense = torch.from_numpy(ids), torch.from_numpy(inputs.dense)
        if len(ids) <= BLOCK:  # a request: the way without a call that does nothing for it
            return self.forward(columns, dense).numpy()
        blocks = zip(columns.split(BLOCK), dense.split(BLOCK), strict=True)
        return torch.cat([self.forward(*block) for block in blocks]).numpy()

    @torch.inference_mode()
    def probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[K]: that each candidate of the list of `scores` float32[K] is the next choice, given the list."""
        odds = log_odds(torch.from_numpy(scores), self.temperature, self.odds_bias)
        return torch.sigmoid(odds).float().numpy()

    def set_scale(self, scale: DenseScale) -> None:
        """Take over the normalisation of the dense fields."""
        for name in DenseScale.NAMES:
            self.get_buffer(name).copy_(getattr(scale, name))

    def _check(self, inputs: RankInputs, ids: NDArray[np.int64]) -> None:
        have = (inputs.sparse.shape[1], inputs.varlen.shape[1], inputs.dense.shape[1])
        if have != self._columns:
            raise ValueError(f"{have} sparse, varlen and dense columns for a ranker of {self._columns}")
        finite = np.isfinite(inputs.dense)
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            raise ValueError(f"field {self.spec.dense[column]!r} is {inputs.dense[row, column]}, which is no number")
        wrong = ids.view(np.uint64) >= self._limits  # without a sign what is below 0 is above all
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"field {id_columns(self.spec)[column][0]!r} has id {ids[row, column]}, but its table has "
                f"{self._limits[column]} rows: features and ranker are of different vocabularies"
            )

    def save(self, folder: Path) -> None:
        """Write ranker.safetensors and ranker.json into `folder`."""
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "ranker.safetensors"
        )
        described: dict[str, Any] = {"model": self.model, "spec": self.spec.to_json(), "embedding_dim": self.dim}
        write_json(folder / "ranker.json", described | {"layers": self.layers_of()})


@dataclass(frozen=True, slots=True)
class Folded:
    """DeepFM's table and the part of its first layer that reads it, multiplied once instead of at every request.

    A network's first layer of looked up rows is a sum over fields of products that have only so many values as the
    field has rows: H numbers a row and field. Beside them stands what the row adds to the first-order term, less the
    half of its squared factors that the factorisation machine takes away again, and its factors, so scaled that the
    pairwise term is their squared length. A request is then one lookup that sums. What is the same for all rows is in
    those of the first field.
    """

    table: Tensor
    """float32[rows of each field, W], W the multiple of ALIGNED from H + 1 + dim on; padding ids have zeros."""
    offsets: Tensor
    """int64[F + R] where the rows of each column of ids begin."""
    bags: Tensor
    """int64[BLOCK * (1 + varlen fields)] where in the ids of a block a candidate's sums begin: of all sparse fields,
    and of each varlen field by itself."""
    varlen: list[slice]
    """Columns of ids of each varlen field."""
    scale: DenseScale
    dense: Tensor
    """float32[G, H + 1] weights of the dense fields, clamped and less their mean; to take the mean away only afterwards
    would lose digits where it is many deviations."""
    width: int
    """H + 1"""
    signs: Tensor
    """float32[1 + varlen fields]: how a squared length counts in the pairwise term, that of all fields as its gate has
    it, those of varlen fields the other way."""


class FusedDeepFM(Fused):
    """DeepFM: a row of the table is `dim` factors and a linear weight.

    Once it has scored its weights must stay as they are.
    """

    model = "deepfm"
    linear: Tensor
    gate: Tensor
    bias: Tensor

    def __init__(self, spec: Spec, dim: int, hidden: list[int]) -> None:
        super().__init__(spec, dim, columns=dim + 1)
        self.hidden = list(hidden)
        self.register_buffer("linear", torch.zeros(len(spec.dense)))
        self.register_buffer("gate", torch.zeros(1))
        self.register_buffer("bias", torch.zeros(1))
        sizes = [num_fields(spec) * dim + len(spec.dense), *hidden]
        self.layers = nn.ModuleList(nn.Linear(sizes[i], sizes[i + 1]) for i in range(len(hidden)))
        self.top = nn.Linear(sizes[-1], 1, bias=False)
        self.requires_grad_(False)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Logits float32[K] of ids int64[K, F + R] (sparse, then varlen columns) and raw dense float32[K, G]."""
        return super().forward(ids, dense) if self.folded is None else self._folded(self.folded, ids, dense)

    def logits(self, ids: Tensor, scaled: Tensor) -> Tensor:
        """Logits float32[K] of ids int64[K, F + R] and normalised dense fields float32[K, G]."""
        fields = self.fields(ids)  # float32[K, fields, dim + 1]
        factors = fields[..., : self.dim]
        pairs = 0.5 * (factors.sum(1).square() - factors.square().sum(1)).sum(1)
        first = fields[..., self.dim].sum(1) + scaled @ self.linear + self.bias
        return self._upper(first + self.gate * pairs, self.layers[0](torch.cat([factors.flatten(1), scaled], dim=1)))

    def _folded(self, by: Folded, ids: Tensor, dense: Tensor) -> Tensor:
        sums = 1 + len(by.varlen)
        bags = by.bags[: len(ids) * sums] if len(ids) <= BLOCK else self._bags_of(len(ids))
        found = F.embedding_bag((ids + by.offsets).flatten(), by.table, bags, mode="sum")
        found = found.view(len(ids), sums, by.table.shape[1])  # float32[K, 1 + varlen fields, W]
        total, averaged = found[:, 0], found[:, 1:]
        for place, columns in enumerate(by.varlen):
            total.add_(averaged[:, place].div_(ids[:, columns].count_nonzero(1).clamp_(min=1).unsqueeze(1)))
        out = torch.addmm(total[:, : by.width], by.scale.centred(dense), by.dense)
        factors = found[..., by.width :]
        squares = torch.linalg.vecdot(factors, factors)  # float32[K, 1 + varlen fields]
        return self._upper(torch.addmv(out[:, -1], squares, by.signs), out[:, :-1])

    def _upper(self, beside: Tensor, deep: Tensor) -> Tensor:
        """Logits float32[K] from what the first layer made, float32[K, H], and the terms beside the network."""
        deep, (weights, top) = F.relu(deep), self._weights
        for weight, bias in weights:
            deep = F.linear(deep, weight, bias).relu_()
        return torch.addmv(beside, deep, top)

    @cached_property
    def _weights(self) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Weights and biases of all layers but the first, and those of the last product: modules are slow to ask."""
        layers = [cast(nn.Linear, layer) for layer in list(self.layers)[1:]]
        return [(layer.weight, layer.bias) for layer in layers], self.top.weight[0]

    def _bags_of(self, count: int) -> Tensor:
        """int64[count * (1 + varlen fields)], see `Folded.bags`."""
        begins = torch.tensor([0, *(columns.start for columns in varlen_columns(self.spec))])
        every = torch.arange(count) * len(id_columns(self.spec))
        return (every[:, None] + begins).flatten()

    def fold(self) -> None:
        """Make the folded table."""
        _ = self.folded

    @cached_property
    def folded(self) -> Folded | None:
        """The folded table; None where it would have more than MOST_FOLDED numbers, or nothing is always looked up."""
        spec, dim, first = self.spec, self.dim, cast(nn.Linear, self.layers[0])
        fields = [(field.table, 1) for field in spec.sparse] + [(field.table, field.length) for field in spec.varlen]
        used = self.hidden[0] + 1 + dim
        width = -(-used // ALIGNED) * ALIGNED
        if not spec.sparse or sum(spec.tables[table] for table, _ in fields) * width > MOST_FOLDED:
            return None
        rows = dict(zip(spec.tables, self.table.split(list(spec.tables.values())), strict=True))
        parts, offsets, begin = [], [], 0
        for place, (table, length) in enumerate(fields):
            factors, linear = rows[table][:, :dim], rows[table][:, dim:]
            if place < len(spec.sparse):
                linear = linear - 0.5 * self.gate * factors.square().sum(1, keepdim=True)
            weight = first.weight[:, place * dim : (place + 1) * dim]
            scaled = factors * (0.5 * self.gate.abs()).sqrt()
            parts.append(F.pad(torch.cat([factors @ weight.T, linear, scaled], dim=1), (0, width - used)))
            if place >= len(spec.sparse):
                parts[-1][0] = 0
            offsets += [begin] * length
            begin += len(factors)
        dense = torch.cat([first.weight[:, len(fields) * dim :].T, self.linear[:, None]], dim=1) / self.std[:, None]
        parts[0][:, : used - dim] += torch.cat([first.bias, self.bias])
        return Folded(
            table=torch.cat(parts),
            offsets=torch.tensor(offsets),
            bags=self._bags_of(BLOCK),
            varlen=varlen_columns(spec),
            scale=DenseScale.of(self),
            dense=dense,
            width=used - dim,
            signs=self.gate.sign() * torch.tensor([1.0] + [-1.0] * len(spec.varlen)),
        )

    def layers_of(self) -> dict[str, Any]:
        """The widths of the deep part."""
        return {"hidden": self.hidden}


class FusedDLRM(Fused):
    """DLRM: a row of the table is `dim` factors."""

    model = "dlrm"

    def __init__(self, spec: Spec, dim: int, *, hidden: list[int], bottom: list[int]) -> None:
        super().__init__(spec, dim, columns=dim)
        self.hidden, self.bottom = list(hidden), list(bottom)
        self.net = Interaction(num_fields(spec), len(spec.dense), dim, bottom=bottom, hidden=hidden)
        self.requires_grad_(False)

    def logits(self, ids: Tensor, scaled: Tensor) -> Tensor:
        """Logits float32[K] of ids int64[K, F + R] and normalised dense fields float32[K, G]."""
        logits: Tensor = self.net(self.fields(ids), scaled)
        return logits

    def layers_of(self) -> dict[str, Any]:
        """The widths of both networks."""
        return {"hidden": self.hidden, "bottom": self.bottom}


MODELS: dict[str, type[Fused]] = {kind.model: kind for kind in (FusedDeepFM, FusedDLRM)}


def load(folder: Path, features: Spec | None = None) -> Fused:
    """The ranker saved in `folder`, ready to score; `features` is the Spec that its inputs will have.

    Raises ArtifactError when it is a model that this program does not know, has other fields than `features`,
    or when weights and description do not fit each other.
    """
    described = json.loads((folder / "ranker.json").read_text(encoding="utf-8"))
    if described["model"] not in MODELS:
        raise ArtifactError(f"{folder} holds a ranker {described['model']!r}, this program knows {', '.join(MODELS)}")
    spec = Spec.from_json(described["spec"])
    if features is not None and (difference := spec.difference(features)):
        raise ArtifactError(
            f"the ranker in {folder} and the features that it would read differ: {difference}; "
            "run `python jobs/train_ranker.py`"
        )
    module = MODELS[described["model"]](spec, described["embedding_dim"], **described["layers"])
    try:
        with weights.reading(folder / "ranker.safetensors") as path:
            module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ArtifactError(f"{folder / 'ranker.safetensors'} does not fit ranker.json beside it: {error}") from error
    module.fold()
    return module.eval()
