"""Small rankers of both kinds over one spec, and random inputs for them."""

import numpy as np
import torch

from rec.features.compute import RankInputs
from rec.features.spec import SparseField, Spec, VarlenField
from rec.models.deepfm import DeepFM
from rec.models.dlrm import DLRM
from rec.models.fused import DenseScale
from rec.models.reranker import Reranker

NAMES = ("deepfm", "dlrm")
SPEC = Spec(
    tables={"std": 12, "re": 9, "source": 3},
    sparse=(SparseField("item_colour", "std"), SparseField("source", "source"), SparseField("user_colour", "std")),
    varlen=(VarlenField("item_re", "re", 4), VarlenField("user_re", "re", 2)),
    dense=("score", "price", "age"),
)
SCALE = DenseScale(
    low=torch.tensor([-1.0, 0.0, 0.0]), high=torch.tensor([1.0, 9.0, 4.0]),
    mean=torch.tensor([0.1, 3.0, 2.0]), std=torch.tensor([0.5, 2.0, 1.0]),
)  # fmt: skip


def new(name: str, seed: int = 1, dropout: float = 0.1, spec: Spec = SPEC, dim: int = 4) -> Reranker:
    """A model before its start."""
    if name == "dlrm":
        return DLRM(spec, SCALE, dim=dim, bottom=[5], hidden=[8, 6], dropout=dropout, seed=seed)
    return DeepFM(spec, SCALE, dim=dim, hidden=[8, 6], dropout=dropout, seed=seed)


def at_start(name: str) -> Reranker:
    """A model as training finds it, with tables of the size that transfer gives them."""
    model = new(name, dropout=0.0).eval()
    model.start_from_retrieval(temperature=0.05)
    return model


def random(name: str, seed: int = 1) -> Reranker:
    """A model whose every parameter matters."""
    model = new(name, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.eval()


def inputs(rng: np.random.Generator, rows: int, std_below: int = 12, re_below: int = 9) -> RankInputs:
    """Random rows; a third of the RE ids are padding."""
    sparse = [rng.integers(0, std_below, rows), rng.integers(0, 3, rows), rng.integers(0, std_below, rows)]
    varlen = np.where(rng.random((rows, 6)) < 0.5, 0, rng.integers(0, re_below, (rows, 6)))
    return RankInputs(np.stack(sparse, axis=1), varlen, rng.normal(size=(rows, 3)).astype(np.float32) * 5)


def tensors(given: RankInputs) -> list[torch.Tensor]:
    """What the training module reads."""
    return [torch.from_numpy(part) for part in (given.sparse, given.varlen, given.dense)]


def logits(model: Reranker, given: RankInputs) -> np.ndarray:
    """What the training module makes of it."""
    with torch.no_grad():
        return np.asarray(model(*tensors(given)))
