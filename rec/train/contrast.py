"""One step of contrastive training: two views of each product, and the gradient of a batch of any size.

A contrastive batch need not fit into memory at once (gradient caching: Gao, Zhang, Han, Callan, "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", 2021, arXiv 2101.06983):

    1. the vectors of every chunk without a graph, the state of the random numbers kept before each
    2. the loss of all vectors together, and its gradient on them
    3. every chunk once more, now with a graph and the same dropout, and its vectors' gradient through it

Two passes forward instead of one; what a graph holds is that of one chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rec.config import ItemTower as Options
from rec.models import losses
from rec.models.item_inputs import IntArray, ItemBatch, ItemInputs, moved
from rec.models.item_tower import ItemTower
from rec.models.std_part import parts

RUN = 16
"""Products of one category that stand together."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Products of one step."""

    rows: IntArray
    """int64[B]"""
    groups: torch.Tensor  # int64[B]
    chunks: list[ItemBatch]
    """First views of some of the products and then their second ones, for all of them in turn."""

    def to(self, device: torch.device) -> "Drawn":
        """On `device`."""
        return Drawn(self.rows, moved(self.groups, device), [chunk.to(device) for chunk in self.chunks])


def draw(items: ItemInputs, rows: IntArray, num_keys: int, options: Options, rng: np.random.Generator) -> Drawn:
    """The products `rows` int64[B] in two views, cut as `options.chunk_size` says."""
    shares = np.array_split(rows, -(-len(rows) // (options.chunk_size or len(rows))))
    chunks = [two_views(items.batch(share), num_keys, options, rng) for share in shares]
    return Drawn(rows, torch.from_numpy(items.groups[rows]), chunks)


def step(model: nn.Module, drawn: Drawn, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the gradient of one step, on what was drawn to the model's device, on its parameters.

    Returns the loss, to which that of the part of STD alone is added where there is one, and the share of this
    worker's products whose second view is nearest to their first.
    """
    hits = torch.zeros((), device=drawn.groups.device)
    width = options.width if options.std_width else 0

    def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        nearest = (first.detach() @ second.detach().T).argmax(1)
        hits.copy_((drawn.groups[nearest] == drawn.groups).float().mean())
        views = zip(parts(first, width), parts(second, width), strict=True) if width else [(first, second)]
        return torch.stack([losses.nt_xent(*both, drawn.groups, options.temperature) for both in views]).sum()

    return backward(model, drawn.chunks, loss, bfloat16=options.train.precision == "bfloat16"), hits


def backward(model: nn.Module, chunks: Sequence[ItemBatch], loss: Loss, *, bfloat16: bool = False) -> torch.Tensor:
    """Add the gradient of `loss` to the model's parameters; returns the loss.

    Each chunk holds the first views of some products and then their second ones; `loss` takes the first and the second
    views of all of them, float32[B, d] each. Both views go through the model in one pass, so that data-parallel
    training sees one forward per backward. `bfloat16`: what it computes in, as far as autocast lets it; the loss is of
    float32.
    """
    if len(chunks) == 1:
        value = loss(*forward(model, chunks[0], bfloat16).chunk(2))
        value.backward()
        return value.detach()
    drawn, vectors = [], []
    with torch.no_grad():
        for chunk in chunks:
            drawn.append(_random_state(chunk.std_id.device))
            vectors.append(forward(model, chunk, bfloat16))
    leaves = [made.requires_grad_() for made in vectors]
    firsts, seconds = zip(*(leaf.chunk(2) for leaf in leaves), strict=True)
    value = loss(torch.cat(firsts), torch.cat(seconds))
    value.backward()
    for number, (chunk, state, leaf) in enumerate(zip(chunks, drawn, leaves, strict=True), start=1):
        with _alone(model) if number < len(chunks) else nullcontext(), _replayed(state, chunk.std_id.device):
            forward(model, chunk, bfloat16).backward(leaf.grad)
    return value.detach()


def forward(model: nn.Module, batch: ItemBatch, bfloat16: bool) -> torch.Tensor:
    """Vectors float32[V * B, d], computed in bfloat16 as far as autocast lets it, or in float32."""
    with torch.autocast(batch.std_id.device.type, torch.bfloat16, enabled=bfloat16):
        made: torch.Tensor = model(batch)
    return made.float()


def parameter_groups(tower: ItemTower, options: Options) -> list[dict[str, Any]]:
    """What is trained, for an optimizer: the tower at its own step size, the text encoder's layers at theirs."""
    text = [] if tower.text is None else [p for p in tower.text.parameters() if p.requires_grad]
    apart = set(text)
    groups = [{"params": [p for p in tower.parameters() if p.requires_grad and p not in apart]}]
    return [*groups, {"params": text, "lr": options.text_learning_rate}] if text else groups


def order(categories: IntArray, share: float, rng: np.random.Generator) -> IntArray:
    """A shuffled order int64[N] of all products, of which `share` stand in runs of one category.

    Runs of at most RUN products are spread evenly, so that every batch has its share of them: a product's nearest
    neighbours are of its category, and those of another content group are its hard negatives. `categories` int64[N], 0
    for none, of which products stand in no run.
    """
    shuffled = rng.permutation(len(categories))
    kin = shuffled[categories[shuffled] != 0][: round(share * len(shuffled))]
    if len(kin) == 0:
        return shuffled
    others = shuffled[~np.isin(shuffled, kin)]
    kin = kin[np.argsort(categories[kin], kind="stable")]
    alike = np.split(kin, np.flatnonzero(np.diff(categories[kin])) + 1)
    runs = [run for part in alike for run in np.array_split(part, -(-len(part) // RUN))]
    runs = [runs[number] for number in rng.permutation(len(runs))]
    ends = np.cumsum([len(run) for run in runs]) * len(others) // len(kin)
    between = np.split(others, ends[:-1])
    return np.concatenate([part for both in zip(runs, between, strict=True) for part in both])


def two_views(batch: ItemBatch, num_keys: int, options: Options, rng: np.random.Generator) -> ItemBatch:
    """First all products, then all once more, each time as `views` hides."""
    return views(batch, num_keys, options, rng, count=2)


def views(batch: ItemBatch, num_keys: int, options: Options, rng: np.random.Generator, *, count: int) -> ItemBatch:
    """All products `count` times over, each time without some keys in STD, others in RE, and some tokens."""
    hidden = torch.from_numpy(rng.random((2, count, len(batch), num_keys + 1)) < options.feature_dropout)
    tokens = torch.from_numpy(rng.random((count, *batch.title_mask.shape)) < options.token_dropout)  # bool[V, B, T]
    std = hidden[0].gather(2, batch.std_key.expand(count, -1, -1))  # bool[V, B, S]
    re = hidden[1].gather(2, batch.re_key.expand(count, -1, -1))  # bool[V, B, R]
    return batch.views(std=std, re=re, title=tokens)


def _alone(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients of all chunks but the last stay on their worker: they are averaged once, with the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _random_state(device: torch.device) -> list[torch.Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


@contextmanager
def _replayed(state: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Draw again what was drawn after `state`, and afterwards go on where it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
