"""DLRM for training: tables by id space, and `rec.models.interaction` after them. Serving uses `rec.models.fused`.

Ids stay int64, so a table may have any number of rows. Tables are in the group without weight decay, where Adam
leaves a row that no batch looked up as it was, to the bit.
"""

import torch
from torch import Tensor, nn

from rec.features.spec import Spec
from rec.models.fused import DenseScale, FusedDLRM, num_fields
from rec.models.interaction import Interaction
from rec.models.reranker import Reranker


class DLRM(Reranker):
    """Dot products of all fields and of the dense fields' vector; see `rec.models.interaction`."""

    table_std = 0.25
    """Larger than DeepFM's: what counts here are products of two rows, not the rows."""

    def __init__(
        self,
        spec: Spec,
        scale: DenseScale,
        *,
        dim: int,
        bottom: list[int],
        hidden: list[int],
        dropout: float,
        seed: int,
    ) -> None:
        super().__init__(spec, scale, dim)
        self.bottom, self.hidden = list(bottom), list(hidden)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            self.tables = nn.ParameterDict(
                {name: nn.Parameter(torch.randn(rows, dim) * self.table_std) for name, rows in spec.tables.items()}
            )
            self.net = Interaction(
                num_fields(spec), len(spec.dense), dim, bottom=bottom, hidden=hidden, dropout=dropout
            )

    def logits(self, ids: Tensor, scaled: Tensor) -> Tensor:
        """Logits float32[K] of checked ids int64[K, F + R] and normalised dense fields float32[K, G]."""
        logits: Tensor = self.net(self.fields(ids, self.table), scaled)
        return logits

    def table(self, name: str) -> nn.Parameter:
        """Factor table float32[rows, dim] of one id space."""
        return self.tables[name]

    def dense_weights(self) -> Tensor:
        """float32[G] weights of the linear term over the dense fields."""
        return self.net.linear

    def decayed(self) -> list[nn.Parameter]:
        """The matrices of both networks."""
        return self.net.weights

    def export(self) -> FusedDLRM:
        """The same function as a FusedDLRM."""
        fused = FusedDLRM(self.spec, self.dim, hidden=self.hidden, bottom=self.bottom)
        with torch.no_grad():
            fused.table.copy_(torch.cat([self.tables[name] for name in self.spec.tables]))
        fused.set_scale(self.scale)
        fused.net.load_state_dict(self.net.state_dict())
        return fused.eval()
