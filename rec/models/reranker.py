"""What DeepFM and DLRM have in common while they train: the fields of a Spec, ids that are checked, dense fields that
are normalised inside, and the surface that the training loop needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rec.features.spec import Spec
from rec.models.fused import DenseScale, Fused, id_columns, varlen_columns


class Run(NamedTuple):
    """Neighbouring sparse fields of one table, which are looked up together."""

    table: str
    first: int
    last: int
    """Column behind the last of them."""


class Reranker(nn.Module, ABC):
    """A model of the fields of `spec`. A new one scores everything 0; `start_from_retrieval` makes that the retrieval
    score."""

    table_std: ClassVar[float]
    """Standard deviation of the factor tables at the start, transferred or random."""

    def __init__(self, spec: Spec, scale: DenseScale, dim: int) -> None:
        super().__init__()
        self.spec, self.dim = spec, dim
        for name in DenseScale.NAMES:
            self.register_buffer(name, getattr(scale, name).clone())
        owners = [table for _, table in id_columns(spec)]
        self.register_buffer("limits", torch.tensor([spec.tables[name] for name in owners]), persistent=False)
        tables = [field.table for field in spec.sparse]
        starts = [at for at, table in enumerate(tables) if at == 0 or tables[at - 1] != table]
        self._runs = [Run(tables[a], a, b) for a, b in zip(starts, [*starts[1:], len(tables)], strict=True)]

    def forward(self, sparse: Tensor, varlen: Tensor, dense: Tensor) -> Tensor:
        """Logits float32[K] of sparse int64[K, F], varlen int64[K, R] and raw dense float32[K, G].

        Raises ValueError when an id lies outside its table, naming the field.
        """
        ids = torch.cat([sparse, varlen], dim=1)
        self._check(ids)
        return self.logits(ids, self.scale(dense))

    @abstractmethod
    def logits(self, ids: Tensor, scaled: Tensor) -> Tensor:
        """Logits float32[K] of checked ids int64[K, F + R] and normalised dense fields float32[K, G]."""

    def fields(self, ids: Tensor, table: Callable[[str], Tensor], runs: Sequence[Run] | None = None) -> Tensor:
        """float32[K, fields, c] rows of ids int64[K, F + R], varlen fields averaged; `table` gives the rows
        float32[rows, c] of an id space. Of the sparse fields only those of `runs`, else all."""
        runs = self._runs if runs is None else runs
        found = [F.embedding(ids[:, run.first : run.last], table(run.table)) for run in runs]
        for field, bag in zip(self.spec.varlen, varlen_columns(self.spec), strict=True):
            found.append(F.embedding_bag(ids[:, bag], table(field.table), mode="mean", padding_idx=0).unsqueeze(1))
        if not found:
            return self.scale.mean.new_zeros(len(ids), 0, table(self.spec.sparse[0].table).shape[1])
        return torch.cat(found, dim=1)

    @abstractmethod
    def table(self, name: str) -> nn.Parameter:
        """Factor table float32[rows, dim] of one id space."""

    @abstractmethod
    def dense_weights(self) -> Tensor:
        """float32[G] weights of the linear term over the dense fields, to be changed in place."""

    @abstractmethod
    def decayed(self) -> list[nn.Parameter]:
        """What weight decay is for: the matrices of the network, never a table or a linear weight."""

    @abstractmethod
    def export(self) -> Fused:
        """The same function as it is served."""

    @property
    def scale(self) -> DenseScale:
        """Normalisation of the dense fields."""
        return DenseScale.of(self)

    def start_from_retrieval(self, temperature: float) -> None:
        """Make the logits of a new model score / temperature, up to a constant: training starts at the retrieval order.

        Exactly so: every other part has a weight of zero at its end, and learns from the first step on, because
        what these weights multiply is not zero.
        """
        column = self.spec.dense.index("score")
        with torch.no_grad():
            self.dense_weights()[column] = self.get_buffer("std")[column] / temperature

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups: weight decay on the network only, never on a table or a linear weight."""
        decayed = self.decayed()
        chosen = {id(weight) for weight in decayed}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in chosen]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]

    def _check(self, ids: Tensor) -> None:
        limits = self.get_buffer("limits")
        wrong = ((ids < 0) | (ids >= limits)).any(dim=0)
        if bool(wrong.any()):
            column = int(wrong.nonzero()[0])
            name, largest = id_columns(self.spec)[column][0], int(ids[:, column].max())
            raise ValueError(f"field {name!r} has an id outside [0, {int(limits[column])}), e.g. {largest}")
