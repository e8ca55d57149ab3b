"""Fit head: how a garment in a size would fit a shopper, P(small), P(fit), P(large).

A cumulative link model with two thresholds on one latent axis, which grows with the garment and falls with the body:

    x = size(kind, s) + item_i - need(profile, i) - taste(past)
    P(large) = σ(x - w)    P(small) = σ(-x - w)    P(fit) = 1 - P(large) - P(small)

after Sembium et al., "Recommending product sizes to customers" (RecSys 2017), whose size of garment and customer this
is, and Misra et al., "Decomposing fit semantics for product size recommendation in metric spaces" (RecSys 2018), after
whom item and user also have a vector. The half-width w > 0 depends on item and shopper as well: some garments fit
nearly everyone. `size` is a rising line in the number, z-scored within the garment kind, plus what is learned of the
size's name and of the name within the kind. `taste` is what earlier sizes and feedback said of the shopper beyond the
profile, shrunk towards 0 as a posterior mean is: nothing is known without a past, and every event counts for more.

P(fit) holds for who chose the size: shoppers know their bodies better than profiles do, so it says little of sizes that
nobody of that body takes. A second axis of the same form says which size is chosen, by a softmax over the sizes of the
kind. The size to recommend has the greatest P(chosen) P(fit): what shoppers alike took, and fitted.

U users, Q questions (user, item, size), H longest past, P profile columns, N items, r latent width.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rec.artifact import write_json
from rec.errors import ArtifactError
from rec.models.size_table import SizeTable
from rec.models.user_tower import ProfileInput
from rec.sizes import FITS

KIND = "fit_head"
VERSION = 1
WEIGHTS, DESCRIPTION = "fit_head.safetensors", "fit_head.json"

SMALL, FIT, LARGE = range(1, 1 + len(FITS))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shape:
    """All that is needed to rebuild the head, and the statistics that belong to it."""

    width: int
    """r, numbers of an item's and a shopper's latent vector."""
    history: int
    """Last n events with a size that are read."""
    profile_names: tuple[str, ...]
    profile_mean: tuple[float, ...]
    profile_std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Garments:
    """Items in sizes; tensors of one shape [...], vectors [..., r]."""

    kind: Tensor
    """int64: garment kinds of the size table, 0 for none."""
    name: Tensor
    """int64: sizes by name, 0 for one that is not known."""
    pair: Tensor
    """int64: sizes by name within the kind, 0 for one that is not known there."""
    z: Tensor
    """float32: numbers of the sizes, z-scored within the kind; 0 where there is none."""
    location: Tensor
    """float32: where the item lies on the latent axis."""
    spread: Tensor
    """float32: how far apart the item's thresholds are."""
    vector: Tensor
    """float32[..., r]: latent vectors of the items."""


@dataclass(frozen=True, slots=True)
class Past:
    """What U users had on, padded to H events; all parts are [U, H]."""

    garments: Garments
    fits: Tensor
    """int64: feedback, 0 for none."""
    known: Tensor
    """bool: whether there is such an event."""


def to(parts: T, device: torch.device) -> T:
    """A dataclass of tensors, and of such, on `device`."""
    moved = [getattr(parts, field.name) for field in fields(parts)]  # type: ignore[arg-type]  # a dataclass
    return type(parts)(*(x.to(device) if isinstance(x, Tensor) else to(x, device) for x in moved))


class Axis(nn.Module):
    """Garments and shoppers on one latent axis, without what belongs to single items."""

    def __init__(self, sizes: SizeTable) -> None:
        super().__init__()
        self.names = nn.Parameter(torch.zeros(sizes.num_names))  # row 0 counts as 0, whatever it holds
        self.pairs = nn.Parameter(torch.zeros(sizes.num_pairs))
        self.slopes = nn.Parameter(torch.full((sizes.num_kinds,), 0.5))
        self.of_item = nn.Parameter(torch.ones(()))
        self.base = nn.Parameter(torch.zeros(()))
        # By feedback, none included: how much further the body is than the garment, and how much the event counts.
        self.shift = nn.Parameter(torch.tensor([0.0, 1.0, 0.0, -1.0]))
        self.count = nn.Parameter(torch.zeros(1 + len(FITS)))
        self.same_kind = nn.Parameter(torch.zeros(()))
        self.shrink = nn.Parameter(torch.ones(()))

    def size(self, garments: Garments) -> Tensor:
        """float32[...]: the garments on the axis."""
        line = F.softplus(self.slopes)[garments.kind] * garments.z
        named = self.names[garments.name] * (garments.name > 0) + self.pairs[garments.pair] * (garments.pair > 0)
        return line + named + self.of_item * garments.location

    def body(self, profile: Tensor, past: Past, asked: Garments, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Need of the shoppers on the axis for the asked items, whatever their sizes, and spread: each float32[Q].

        `profile` is float32[U, 2 + r]: what profiles say of need, spread and vector.
        """
        need, spread, vector = profile[:, 0], profile[:, 1], profile[:, 2:]
        expected = need[:, None] + (past.garments.vector * vector[:, None]).sum(-1)  # float32[U, H]
        beyond = self.size(past.garments) + self.shift[past.fits] - expected  # float32[U, H]
        same = (past.garments.kind[owners] == asked.kind[:, None]).float()  # float32[Q, H]
        counts = (F.softplus(self.count)[past.fits] * past.known)[owners] * (1 + F.softplus(self.same_kind) * same)
        taste = (counts * beyond[owners]).sum(1) / (counts.sum(1) + F.softplus(self.shrink))  # float32[Q]
        return self.base + need[owners] + (asked.vector * vector[owners]).sum(-1) + taste, spread[owners]


class FitHead(nn.Module):
    """The head without its items, which training makes of content and serving has as tables."""

    def __init__(self, shape: Shape, sizes: SizeTable) -> None:
        super().__init__()
        self.shape, self.sizes = shape, sizes
        self.worn, self.chosen = Axis(sizes), Axis(sizes)
        if shape.profile_names:
            self.profile = ProfileInput(shape.profile_mean, shape.profile_std, 2 * (2 + shape.width))
        self.half_width = nn.Parameter(torch.tensor(1.5))
        self.strict = nn.Parameter(torch.zeros(2))
        self.sharpness = nn.Parameter(torch.zeros(()))

    def forward(self, profiles: Tensor, past: Past, asked: Garments, owners: Tensor) -> tuple[Tensor, Tensor]:
        """log P float32[Q, 3] in the order of FITS, and need float32[Q] on the axis `chosen`.

        Question q is user `owners[q]` in garment `asked[q]`; `profiles` is float32[U, P], nan where missing.
        """
        worn, chosen = self._profiles(profiles)
        need, spread = self.worn.body(worn, past, asked, owners)
        wanted, _ = self.chosen.body(chosen, past, asked, owners)
        told, bad = past.known & (past.fits > 0), past.known & ((past.fits == SMALL) | (past.fits == LARGE))
        total, shrink = told.sum(1), F.softplus(self.worn.shrink)
        habits = torch.stack([bad.sum(1) / (total + shrink), total / (total + shrink)], dim=1)  # float32[U, 2]
        x = self.worn.size(asked) - need
        w = F.softplus(self.half_width + asked.spread + spread + (habits @ self.strict)[owners])
        # σ(x + w) - σ(x - w) without the difference of near numbers
        fits = F.logsigmoid(x + w) + F.logsigmoid(w - x) + torch.log(-torch.expm1(-2 * w))
        return torch.stack([F.logsigmoid(-x - w), fits, F.logsigmoid(x - w)], dim=1), wanted

    def _profiles(self, profiles: Tensor) -> tuple[Tensor, Tensor]:
        """float32[U, 2 + r] for each axis; zeros without a profile."""
        width = 2 + self.shape.width
        if not self.shape.profile_names:
            return profiles.new_zeros(len(profiles), width), profiles.new_zeros(len(profiles), width)
        made = self.profile(profiles) * torch.isfinite(profiles).any(dim=1, keepdim=True)
        return made[:, :width], made[:, width:]

    def choice(self, sizes: Tensor, need: Tensor) -> Tensor:
        """Scores of sizes by their distance from the need, both on the axis `chosen`; broadcast."""
        return -F.softplus(self.sharpness) * (sizes - need).square()


@dataclass(frozen=True, slots=True)
class Items:
    """What the head knows of all N items, and the sizes that each is to be had in."""

    kind: NDArray[np.int64]
    """int64[N] garment kinds."""
    location: NDArray[np.float32]
    """float32[N]"""
    spread: NDArray[np.float32]
    """float32[N]"""
    vector: NDArray[np.float32]
    """float32[N, r]"""
    popularity: NDArray[np.float32]
    """float32[K, M'] log share of the size table's `written` among the kind's events; low where there was none."""
    offsets: NDArray[np.int64]
    """int64[N + 1] range of each item in `offered`."""
    offered: NDArray[np.int64]
    """int64[M] positions in the size table's `written`."""


def extended(items: Items, added: int) -> Items:
    """With `added` items behind the others of which nothing is known: they are to be had in no size."""
    return Items(
        kind=np.concatenate([items.kind, np.zeros(added, items.kind.dtype)]),
        location=np.concatenate([items.location, np.zeros(added, np.float32)]),
        spread=np.concatenate([items.spread, np.zeros(added, np.float32)]),
        vector=np.concatenate([items.vector, np.zeros((added, items.vector.shape[1]), np.float32)]),
        popularity=items.popularity,
        offsets=np.concatenate([items.offsets, np.full(added, items.offsets[-1])]),
        offered=items.offered,
    )


def save(folder: Path, head: FitHead, items: Items) -> None:
    """Write WEIGHTS and DESCRIPTION into `folder`."""
    tensors = {f"head.{name}": value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    arrays = {field.name: getattr(items, field.name) for field in fields(items)}
    tensors |= {f"items.{name}": torch.tensor(value) for name, value in arrays.items()}
    save_file(tensors, folder / WEIGHTS)
    write_json(folder / DESCRIPTION, {"shape": asdict(head.shape), "sizes": head.sizes.to_json()})


def load(folder: Path) -> tuple[FitHead, Items]:
    """The head saved in `folder` in eval mode, and its items. Raises ArtifactError where the files do not agree."""
    described: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    shape: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in described["shape"].items()
    }
    head = FitHead(Shape(**shape), SizeTable.of_json(described["sizes"]))
    tensors = load_file(folder / WEIGHTS)
    weights = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {error}") from error
    return head.eval(), Items(**{field.name: tensors[f"items.{field.name}"].numpy() for field in fields(Items)})
