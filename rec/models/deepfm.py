"""DeepFM of deepctr-torch for training, with its traps closed. Serving uses `rec.models.fused`.

What deepctr-torch 0.3.0 does, and what this adapter does about it:
    importing it asks a package index for newer versions   the version check is replaced before it can run
    the constructor calls torch.manual_seed                 it runs in a forked RNG; ours is untouched
    forward gives probabilities                             task "regression": logits come out
    ids travel in a float32 matrix                          a table over 2^24 rows is refused
    an unknown id is an IndexError from inside torch        checked first, with the field's name
    `.fit` sums the loss and is single-process              not used: we have our own loop
    every field is looked up on its own                     one lookup for the fields of all small tables
    L2 with Adam moves rows that never occur                no L2; tables are in the group without weight decay,
                                                            where Adam leaves a row without gradient to the bit
    weights of the network start at 1e-4                    Xavier
    the first score is random                               it is the retrieval score: all else starts at zero weight
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rec.features.spec import Spec
from rec.models.fused import DenseScale, FusedDeepFM
from rec.models.reranker import Reranker, Run

MAX_ROWS = 2**24
"""Largest table whose ids a float32 holds exactly."""
SMALL = 6
"""A table is small where a batch has so many times as many candidates. Of 4,096 candidates and 20 fields, factors of 16
and a first layer of 128, a step with the table's products took as long as without at 1,024 rows, two thirds at 512,
twice as long at 2,048; with a layer of 256 as long at a sixth of the candidates."""


def deepctr() -> ModuleType:
    """The package deepctr_torch, imported without its thread that calls the package index."""
    if "deepctr_torch" in sys.modules:
        return sys.modules["deepctr_torch"]
    silent = ModuleType("deepctr_torch.utils")
    silent.check_version = lambda version: None  # type: ignore[attr-defined]
    sys.modules["deepctr_torch.utils"] = silent
    try:
        package = importlib.import_module("deepctr_torch")
        importlib.import_module("deepctr_torch.inputs")
        importlib.import_module("deepctr_torch.models")
    finally:
        del sys.modules["deepctr_torch.utils"]
    return package


class GatedFM(nn.Module):
    """A factorisation machine times a learned gate, which starts closed: the tables may start from the item tower
    while their pairwise term is still zero."""

    def __init__(self, fm: nn.Module) -> None:
        super().__init__()
        self.fm = fm
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, factors: Tensor) -> Tensor:
        """float32[K, 1] of factors float32[K, fields, dim]."""
        return self.gate * self.fm(factors)


class DeepFM(Reranker):
    """deepctr-torch's DeepFM on the fields of a Spec: logits out. The pairwise term has a gate (`GatedFM`)."""

    table_std = 0.05

    def __init__(
        self, spec: Spec, scale: DenseScale, *, dim: int, hidden: list[int], dropout: float, seed: int
    ) -> None:
        if not hidden:
            raise ValueError("ranker.hidden is empty: DeepFM needs at least one hidden layer")
        for name, rows in spec.tables.items():
            if rows > MAX_ROWS:
                raise ValueError(
                    f"table {name!r} has {rows} rows; deepctr-torch keeps ids as float32, exact up to {MAX_ROWS}"
                )
        super().__init__(spec, scale, dim)
        self.hidden = list(hidden)
        fields = columns(spec, dim)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            self.net = deepctr().models.DeepFM(
                fields, fields, dnn_hidden_units=tuple(hidden), l2_reg_linear=0, l2_reg_embedding=0, l2_reg_dnn=0,
                init_std=self.table_std, seed=seed, dnn_dropout=dropout, task="regression",
            )  # fmt: skip
            for layer in self.net.dnn.linears:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            self.net.fm = GatedFM(self.net.fm)
            for start in (self.net.dnn_linear, self.net.linear_model, *self.net.linear_model.embedding_dict.values()):
                nn.init.zeros_(start.weight)

    def logits(self, ids: Tensor, scaled: Tensor) -> Tensor:
        """Logits float32[K] of checked ids int64[K, F + R] and normalised dense fields float32[K, G].

        What `self.net` makes of them. Fields of small tables are multiplied with the first layer row by row
        (`_summed`), neighbouring fields of a large one are looked up together in place of one by one.
        """
        net, dim = self.net, self.dim
        small = [run for run in self._runs if SMALL * self.spec.tables[run.table] <= len(ids)]
        large = [run for run in self._runs if run not in small]
        rows = {name: torch.cat([self.table(name), self._linear(name)], dim=1) for name in self.spec.tables}
        found = self.fields(ids, rows.__getitem__, large)  # float32[K, other fields, dim + 1]
        factors, linear = found[..., :dim], found[..., dim].sum(1) + scaled @ self.dense_weights()
        total, squares = factors.sum(1), factors.square().sum((1, 2))  # float32[K, dim], float32[K]
        first, *layers = net.dnn.linears
        others = [first.weight[:, dim * run.first : dim * run.last] for run in large]
        weight = torch.cat([*others, first.weight[:, dim * len(self.spec.sparse) :]], dim=1)
        deep = nn.functional.linear(torch.cat([factors.flatten(1), scaled], dim=1), weight, first.bias)
        if small:
            summed = self._summed(ids, small, first.weight)  # float32[K, 2 + dim + H]
            linear, squares, total = linear + summed[:, 0], squares + summed[:, 1], total + summed[:, 2 : 2 + dim]
            deep = deep + summed[:, 2 + dim :]
        for layer, activation in zip([nn.Identity(), *layers], net.dnn.activation_layers, strict=True):
            deep = net.dnn.dropout(activation(layer(deep)))
        pairs = 0.5 * (total.square().sum(1) - squares)
        logits: Tensor = linear + net.fm.gate * pairs + net.dnn_linear(deep)[:, 0] + net.out.bias
        return logits

    def _summed(self, ids: Tensor, runs: list[Run], weight: Tensor) -> Tensor:
        """float32[K, 2 + dim + H]: of the fields of `runs` the sums over a candidate's rows of linear weight, squared
        length, factors, and product with the first layer, `weight` float32[H, fields * dim + G].

        A field has few rows and a batch many candidates: each row's product is computed once, not for each candidate.
        """
        tables, places, begin = [], [], 0
        for run in runs:
            factors, count = self.table(run.table), run.last - run.first
            fields = weight[:, self.dim * run.first : self.dim * run.last].unflatten(1, (count, self.dim))
            products = torch.einsum("rd,hfd->frh", factors, fields)  # float32[count, rows, H]
            own = torch.cat([self._linear(run.table), factors.square().sum(1, keepdim=True), factors], dim=1)
            tables.append(torch.cat([own.expand(count, -1, -1), products], dim=2).flatten(0, 1))
            starts = begin + len(factors) * torch.arange(count, device=ids.device)
            places.append(ids[:, run.first : run.last] + starts)
            begin += count * len(factors)
        return nn.functional.embedding_bag(torch.cat(places, dim=1), torch.cat(tables), mode="sum")

    def table(self, name: str) -> nn.Parameter:
        """Factor table float32[rows, dim] of one id space."""
        return _weight(self.net.embedding_dict[name])

    def _linear(self, name: str) -> nn.Parameter:
        """Linear weights float32[rows, 1] of one id space."""
        return _weight(self.net.linear_model.embedding_dict[name])

    def dense_weights(self) -> Tensor:
        """float32[G] weights of the linear term over the dense fields."""
        weights: Tensor = self.net.linear_model.weight[:, 0]
        return weights

    def decayed(self) -> list[nn.Parameter]:
        """The matrices of the deep part."""
        return [layer.weight for layer in self.net.dnn.linears]

    def export(self) -> FusedDeepFM:
        """The same function as a FusedDeepFM."""
        fused = FusedDeepFM(self.spec, self.dim, self.hidden)
        tables = [torch.cat([self.table(name), self._linear(name)], dim=1) for name in self.spec.tables]
        with torch.no_grad():
            fused.table.copy_(torch.cat(tables))
            fused.linear.copy_(self.net.linear_model.weight[:, 0])
            fused.bias.copy_(self.net.out.bias)
            fused.gate.copy_(self.net.fm.gate)
            for target, source in zip(fused.layers, self.net.dnn.linears, strict=True):
                target.load_state_dict(source.state_dict())
            fused.top.load_state_dict(self.net.dnn_linear.state_dict())
        fused.set_scale(self.scale)
        return fused.eval()


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def columns(spec: Spec, dim: int) -> list[Any]:
    """deepctr-torch's feature columns in the order of the input matrix: sparse, varlen, dense."""
    inputs = deepctr().inputs

    def sparse(name: str, table: str) -> Any:
        return inputs.SparseFeat(name, spec.tables[table], embedding_dim=dim, embedding_name=table)

    columns = [sparse(field.name, field.table) for field in spec.sparse]
    columns += [
        inputs.VarLenSparseFeat(sparse(field.name, field.table), maxlen=field.length, combiner="mean")
        for field in spec.varlen
    ]
    return columns + [inputs.DenseFeat(name, 1) for name in spec.dense]
