"""User tower: behaviour, context and profile fused to one L2-normalised vector in item space.

    [BOS] item₁ … item_H ─▶ causal pre-norm transformer ─▶ h_t ─┐
    text vector of what the user says ─▶ linear ────────────────┼─▶ h_t + MLP ─▶ unit vector
    z-scored profile with missing flags ─▶ MLP ─────────────────┘

The vector at position t predicts event t + 1; position 0 is BOS, so a user without events has one too.
Every sequence starts at BOS and is padded on the right, so under the causal mask padding is never seen:
a user's vector does not depend on the batch. A context and a profile add to a learned vector that stands
for their absence, through weights that start at zero: an input that training never saw changes nothing.

B users, L longest history, T = sum of (history length + 1) positions, flat, d item width, W text width,
P profile columns.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rec import artifact, weights
from rec.artifact import Manifest, write_json
from rec.errors import ArtifactError
from rec.schema import EVENTS
from rec.state import UserState

KIND = "user_tower"
VERSION = 5

HOUR, DAY = 3_600.0, 86_400.0
GAP_EDGES_S = (
    30.0, 0.2 * HOUR, 1.5 * HOUR, 7 * HOUR, 0.6 * DAY, 1.5 * DAY, 3.5 * DAY, 7.5 * DAY, 15.5 * DAY, 31.5 * DAY,
    92.5 * DAY, 184.5 * DAY, 366.5 * DAY, 735.5 * DAY,
)  # fmt: skip
"""Bounds of the time-gap buckets; they lie beside round times, so that rounding of seconds moves none over."""

Z_CENTRES = tuple(step / 2 for step in range(-5, 6))
"""Centres of the bumps that each z-scored profile value is spread over: taste may rise and fall with height."""
Z_LIMIT = 4.0
PROFILE_HIDDEN = 64

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shape:
    """All that is needed to rebuild the tower, and the statistics that belong to it."""

    width: int
    """d, width of item and user vectors."""
    history: int
    """Last n events read."""
    layers: int
    heads: int
    convolution: int
    """Last positions that each block's causal convolution reads, 0 for none."""
    dropout: float
    adapter: int
    """Hidden width of the item adapter, 0 for none."""
    adapter_dropout: float
    semantics: int
    """k, components of the latent semantic analysis that the adapter reads; 0 for none."""
    inputs: tuple[str, ...]
    """Those of behaviour, context, profile that are in use."""
    text_encoder: str
    """Encoder of the context text, by its config name."""
    text_width: int
    profile_names: tuple[str, ...]
    profile_mean: tuple[float, ...]
    profile_std: tuple[float, ...]
    """Positive; 1 for a column that never varied."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Histories of B users, padded on the right."""

    lengths: Tensor
    """int64[B] events of each user, 0 for a cold one."""
    items: Tensor
    """int64[B, L] item rows, oldest first; 0 at padding."""
    events: Tensor
    """int64[B, L] kinds of event, 1-based; 0 at padding."""
    gaps_s: Tensor
    """float32[B, L] seconds from each event to the next one, from the last to the moment of prediction."""

    @property
    def starts(self) -> Tensor:
        """int64[B] flat position of each user's BOS."""
        counts = self.lengths + 1
        return counts.cumsum(0) - counts

    @property
    def owners(self) -> Tensor:
        """int64[T] user of each flat position."""
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.lengths.device), self.lengths + 1)

    def to(self, device: torch.device) -> "Sequences":
        """The same on `device`."""
        return Sequences(*(x.to(device) for x in (self.lengths, self.items, self.events, self.gaps_s)))


class Block(nn.Module):
    """Pre-norm causal self-attention and feed-forward.

    With a convolution, each channel of the last c positions goes past the attention to the same residual: attention
    has to learn what came last, a convolution has it (Wu, Liu, Lin, Lin, Han, "Lite Transformer with Long-Short Range
    Attention", 2020, arXiv 2004.11886).
    """

    def __init__(self, width: int, heads: int, convolution: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.near = nn.Parameter(torch.zeros(convolution, width)) if convolution else None
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """float32[b, l, d] → float32[b, l, d]; position t sees positions 0 … t."""
        normed = self.norm_attention(x)
        q, k, v = self.qkv(normed).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        # float32[b, heads, l, d / heads]
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        mixed = self.out(seen.transpose(1, 2).flatten(2))
        if self.near is not None:
            length = x.shape[1]
            for back, weight in enumerate(self.near[:length]):
                mixed = mixed + F.pad(normed[:, : length - back], (0, 0, back, 0)) * weight
        x = x + F.dropout(mixed, self.dropout, self.training)
        fed: Tensor = x + self.feed(x)
        return fed

    def at(self, x: Tensor, position: Tensor) -> Tensor:
        """float32[b, d]: what `forward` gives at `position` int64[b] of each row, in eval mode, for less work."""
        size, length, d = x.shape
        normed = self.norm_attention(x)
        rows = torch.arange(size, device=x.device)
        q = F.linear(normed[rows, position], self.qkv.weight[:d], self.qkv.bias[:d])
        kv = F.linear(normed, self.qkv.weight[d:], self.qkv.bias[d:])
        k, v = kv.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # float32[b, heads, l, d / heads]
        visible = torch.arange(length, device=x.device) <= position[:, None]  # bool[b, l]
        q = q.view(size, self.heads, 1, -1)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None])
        own = x[rows, position] + self.out(seen.flatten(1))
        if self.near is not None:
            for back, weight in enumerate(self.near):
                there = position >= back  # bool[b]
                own = own + normed[rows, (position - back).clamp(min=0)] * there[:, None] * weight
        fed: Tensor = own + self.feed(own)
        return fed


class ProfileInput(nn.Module):
    """Raw numeric profile → float32[·, d]: z-score, bumps, missing flags, a small MLP."""

    mean: Tensor
    std: Tensor
    centres: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)
        self.register_buffer("centres", torch.tensor(Z_CENTRES), persistent=False)
        self.hidden = nn.Linear(len(mean) * (2 + len(Z_CENTRES)), PROFILE_HIDDEN)
        self.out = nn.Linear(PROFILE_HIDDEN, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, profile: Tensor) -> Tensor:
        """float32[·, P] raw values, nan where missing → float32[·, d]."""
        known = torch.isfinite(profile).float()
        z = torch.nan_to_num((profile - self.mean) / self.std, 0.0, 0.0, 0.0).clamp(-Z_LIMIT, Z_LIMIT) * known
        bumps = torch.exp(-2 * (z.unsqueeze(-1) - self.centres).square()) * known.unsqueeze(-1)  # [·, P, centres]
        made: Tensor = self.out(F.gelu(self.hidden(torch.cat([z, 1 - known, bumps.flatten(-2)], dim=-1))))
        return made


class UserTower(nn.Module):
    """The tower, and in serving the item vectors that histories look up (set by `load` and `attach`)."""

    item_vectors: Tensor
    edges: Tensor
    start_weight: Tensor
    start_bias: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        d = shape.width
        self.register_buffer("item_vectors", torch.empty(0, d), persistent=False)  # float32[N, d]
        self.register_buffer("edges", torch.tensor(GAP_EDGES_S), persistent=False)
        if shape.adapter:
            last = nn.Linear(shape.adapter, d)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(d + shape.semantics, shape.adapter)
            self.adapter = nn.Sequential(first, nn.GELU(), nn.Dropout(shape.adapter_dropout), last)
            # Content has about unit length, features of about 1 / sqrt(features): as they are, they hardly move what
            # `first` starts with, and the adapter learns too slowly to tell products apart.
            self.gain = first.in_features**0.5
        if shape.semantics:
            self.register_buffer("start_weight", torch.eye(d, d + shape.semantics))
            self.register_buffer("start_bias", torch.zeros(d))
        self.bos = nn.Parameter(torch.randn(d) * 0.02)
        if "behaviour" in shape.inputs:
            self.item_in = nn.Linear(d, d)
            nn.init.eye_(self.item_in.weight)
            self.event = nn.Embedding(len(EVENTS) + 1, d, padding_idx=0)
            self.gap = nn.Embedding(len(GAP_EDGES_S) + 1, d)
            self.position = nn.Parameter(torch.randn(shape.history + 1, d) * 0.02)
            for table in (self.event, self.gap):
                nn.init.normal_(table.weight, std=0.02)
            self.blocks = nn.ModuleList(
                Block(d, shape.heads, shape.convolution, shape.dropout) for _ in range(shape.layers)
            )
        self.no_context = nn.Parameter(torch.zeros(d))
        self.no_profile = nn.Parameter(torch.zeros(d))
        if "context" in shape.inputs:
            self.context = nn.Linear(shape.text_width, d, bias=False)
            nn.init.zeros_(self.context.weight)
        if "profile" in shape.inputs and shape.profile_names:
            self.profile = ProfileInput(shape.profile_mean, shape.profile_std, d)
        self.fuse = nn.Sequential(
            nn.LayerNorm(3 * d), nn.Linear(3 * d, 2 * d), nn.GELU(), nn.Dropout(shape.dropout), nn.Linear(2 * d, d)
        )

    def attach(self, item_vectors: Floats) -> "UserTower":
        """Set the unit item vectors float32[N, d] that `vectors` looks up; returns self."""
        self.item_vectors = torch.from_numpy(np.ascontiguousarray(item_vectors, np.float32)).to(self.bos.device)
        return self

    def adapt(self, content: Tensor) -> Tensor:
        """Unit vectors float32[..., d] that users are compared with, of content float32[..., d + k]: the item tower's
        vectors, and beside them the components of `rec.models.latent_semantics`. Without an adapter, as they are."""
        if not self.shape.adapter:
            return content
        vectors = content
        if self.shape.semantics:
            vectors = F.normalize(F.linear(content, self.start_weight, self.start_bias), dim=-1)
        return F.normalize(vectors + self.adapter(content * self.gain), dim=-1)

    def behaviour(self, history: Tensor, sequences: Sequences) -> Tensor:
        """float32[T, d] at every flat position, given the item vectors `history` float32[B, L, d]."""
        if "behaviour" not in self.shape.inputs:
            return self.bos.expand(int((sequences.lengths + 1).sum()), -1)
        states, places = [], []
        for group, x in self._groups(history, sequences):
            for block in self.blocks:
                x = block(x)
            positions = torch.arange(x.shape[1], device=x.device)
            real = positions <= sequences.lengths[group, None]  # bool[b, l]
            states.append(x[real])
            places.append((sequences.starts[group, None] + positions)[real])
        return _ordered(states, places)

    def last(self, history: Tensor, sequences: Sequences) -> Tensor:
        """float32[B, d]: `behaviour` at each user's last position, in eval mode; the last block computes no other."""
        if "behaviour" not in self.shape.inputs:
            return self.bos.expand(len(sequences.lengths), -1)
        states, places = [], []
        for group, x in self._groups(history, sequences):
            for block in self.blocks[:-1]:
                x = block(x)
            top = self.blocks[-1]
            assert isinstance(top, Block)
            states.append(top.at(x, sequences.lengths[group]))
            places.append(group)
        return _ordered(states, places)

    def _groups(self, history: Tensor, sequences: Sequences) -> Iterator[tuple[Tensor, Tensor]]:
        """Users int64[b] of similar length and their tokens float32[b, l, d], which changes no result and saves most
        of the padding."""
        gaps = torch.bucketize(sequences.gaps_s, self.edges)
        tokens = self.item_in(history) + self.event(sequences.events) + self.gap(gaps)
        tokens = torch.cat([self.bos.expand(len(tokens), 1, -1), tokens], dim=1) + self.position[: tokens.shape[1] + 1]
        tokens = F.dropout(tokens, self.shape.dropout, self.training)  # float32[B, L + 1, d]
        sizes = 2 ** torch.ceil(torch.log2((sequences.lengths + 1).float())).long()
        for size in torch.unique(sizes).tolist():
            group = torch.nonzero(sizes == size).flatten()
            yield group, tokens[group, :size]

    def combine(self, behaviour: Tensor, contexts: Tensor, profiles: Tensor) -> Tensor:
        """Unit vectors float32[T, d] of behaviour float32[T, d], contexts float32[T, W] and profiles float32[T, P].

        A row of zeros is no context; a row of nan is no profile.
        """
        context = self.no_context.expand_as(behaviour)
        if "context" in self.shape.inputs:
            context = context + self.context(contexts)
        profile = self.no_profile.expand_as(behaviour)
        if "profile" in self.shape.inputs and self.shape.profile_names:
            present = torch.isfinite(profiles).any(dim=1, keepdim=True)
            profile = profile + self.profile(profiles) * present
        fused = behaviour + self.fuse(torch.cat([behaviour, context, profile], dim=1))
        return F.normalize(fused, dim=1)

    @torch.inference_mode()
    def vectors(self, states: Sequence[UserState], contexts: Floats | None) -> Floats:
        """Unit user vectors float32[B, d].

        `contexts` holds the text vectors float32[B, W] of `states[b].context`, zeros where it is ""; None is
        no context for anyone. Item rows must lie within the attached item vectors.
        """
        assert not self.training, "vectors() is for a tower in eval mode"
        device = self.bos.device
        sequences = collate(states, self.shape.history).to(device)
        behaviour = self.last(self.item_vectors[sequences.items], sequences)
        text = torch.zeros(len(states), self.shape.text_width) if contexts is None else torch.from_numpy(contexts)
        profiles = np.stack([state.profile for state in states]).astype(np.float32)
        found: Floats = self.combine(behaviour, text.to(device), torch.from_numpy(profiles).to(device)).cpu().numpy()
        return found

    def save(self, folder: Path, item_vectors: Floats) -> None:
        """Write user_tower.safetensors, user_tower.json and item_vectors.safetensors into `folder`."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "user_tower.safetensors")
        save_file({"item_vectors": torch.from_numpy(item_vectors)}, folder / "item_vectors.safetensors")
        write_json(folder / "user_tower.json", asdict(self.shape))


def _ordered(parts: list[Tensor], places: list[Tensor]) -> Tensor:
    """The rows of all parts, each at its place."""
    joined = torch.cat(parts)
    return torch.empty_like(joined).index_copy(0, torch.cat(places), joined)


def collate(states: Sequence[UserState], history: int) -> Sequences:
    """The last `history` events of each state, padded on the right to the longest."""
    lengths = np.array([min(len(state.items), history) for state in states], np.int64)
    size = (len(states), int(lengths.max(initial=0)))
    items, events, gaps = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.float32)
    for b, (state, length) in enumerate(zip(states, lengths.tolist(), strict=True)):
        if length:
            items[b, :length] = state.items[-length:]
            events[b, :length] = state.events[-length:]
            gaps[b, :length] = -np.diff(state.ages_s[-length:], append=np.float32(0))
    return Sequences(*(torch.from_numpy(array) for array in (lengths, items, events, gaps)))


def manifest(folder: Path) -> Manifest:
    """The checked manifest of the tower at `folder`."""
    return artifact.read(folder, kind=KIND, version=VERSION, made_by="python jobs/train_user.py")


def load(folder: Path) -> UserTower:
    """The tower saved in `folder` with its item vectors, in eval mode."""
    described: dict[str, Any] = json.loads((folder / "user_tower.json").read_text(encoding="utf-8"))
    described |= {name: tuple(value) for name, value in described.items() if isinstance(value, list)}
    tower = UserTower(Shape(**described))
    try:
        with weights.reading(folder / "user_tower.safetensors") as path:
            tower.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ArtifactError(f"{folder / 'user_tower.safetensors'} does not fit user_tower.json: {error}") from error
    with weights.reading(folder / "item_vectors.safetensors") as path:
        vectors = load_file(path)["item_vectors"].numpy()
    return tower.attach(vectors).eval()
