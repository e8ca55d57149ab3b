"""Texts of different lengths end to end, without padding between them, through layers of transformers.

Padding and hidden tokens cost what real ones cost, in every product of matrices of every layer. Packed, only tokens
that are seen go through the layers, as one text. So that no token attends to another text's, attention has a kernel of
its own on a GPU in half precision (`rec.models.packed_attention`); elsewhere, and for what the kernel does not know, it
pads queries, keys and values.

B texts of at most T tokens, P tokens in all, H heads of width d.
"""

import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib import util
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

ATTENTION = "rec_packed"
"""Under which transformers finds `attend`."""
TOLERANCE = 1e-4
"""Largest difference of a state, which is of the order of 1."""

_kernel: ModuleType | None = None
"""`rec.models.packed_attention`, once layers were packed, where there is Triton (it comes with torch for GPUs), and no
GPU too old for it or without a C compiler beside it."""


def _load_kernel() -> None:
    global _kernel
    if not util.find_spec("triton"):
        return
    if torch.cuda.is_available() and not _compiler():
        log.warning(
            "no C compiler, with which Triton builds kernels: texts are padded for attention; install gcc, or set CC"
        )
        return
    from rec.models import packed_attention

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= packed_attention.CAPABILITY:
        _kernel = packed_attention


def _compiler() -> str | None:
    """What Triton looks for when it builds a kernel's launcher, at run time."""
    named = os.environ.get("CC")
    return shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang")


def seen(mask: torch.Tensor) -> torch.Tensor:
    """Tokens that go through the layers, bool[B, max(T, 1)] of bool[B, T]: of a text without any its first place."""
    if mask.shape[1] == 0:
        mask = mask.new_zeros(len(mask), 1)
    return torch.cat([mask[:, :1] | ~mask.any(1, keepdim=True), mask[:, 1:]], 1)


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the tokens of a batch of texts stand."""

    seen: torch.Tensor  # bool[B, T]
    place: torch.Tensor  # int64[P] of each token in the padded batch, row after row
    starts: torch.Tensor  # int32[B + 1]: tokens of the texts before

    @classmethod
    def of(cls, seen: torch.Tensor, count: int | None = None) -> "Packing":
        """The tokens where `seen` bool[B, T] is true; who knows their `count` need not wait for a GPU to tell it."""
        flat = seen.flatten()
        count = int(flat.sum()) if count is None else count
        rank = torch.where(flat, flat.cumsum(0) - 1, count)
        place = rank.new_empty(count + 1).scatter(0, rank, torch.arange(len(flat), device=flat.device))[:count]
        return cls(seen, place, F.pad(seen.sum(1).cumsum(0), (1, 0)).int())

    @property
    def positions(self) -> torch.Tensor:
        """int64[P]: each token's position in its own text."""
        return self.place % self.seen.shape[1]

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[P, ...] of [B, T, ...]."""
        return padded.flatten(0, 1).index_select(0, self.place)

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """[B, T, ...] of [P, ...], zeros where no token is."""
        shape = self.seen.shape
        padded = packed.new_zeros(shape.numel(), *packed.shape[1:])
        return padded.index_copy(0, self.place, packed).unflatten(0, shape)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """float[1, P, H, d] from query, key and value float[1, H, P, d]; the names are those of transformers.

    Raises ValueError for what bounds attention in another way (`sliding_window`, a bias by position), which it does not
    know.
    """
    unknown = [name for name in ("sliding_window", "position_bias", "softcap") if others.get(name) is not None]
    if unknown:
        raise ValueError(f"packed attention knows no {unknown[0]}")
    # float[P, H, d] each; the gradient of part[0] would be a copy
    packed = [part.squeeze(0).transpose(0, 1) for part in (query, key, value)]
    longest, kernel = packing.seen.shape[1], _kernel
    if kernel is not None and kernel.knows(packed[0], longest):
        scale = packed[0].shape[-1] ** -0.5 if scaling is None else scaling
        return kernel.attend(*packed, packing.starts, longest, scale, dropout)[None], None
    q, k, v = (packing.pad(part).transpose(1, 2) for part in packed)  # float[B, H, T, d]
    mask = packing.seen[:, None, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return packing.pack(mixed.transpose(1, 2))[None], None


@dataclass(frozen=True, slots=True)
class Packed:
    """Layers through which texts go packed, to the states that they have padded."""

    model: "PreTrainedModel"
    offset: int | None
    """Position of a text's first token, where the layers read token ids; None: they read lower states."""

    def __call__(self, given: torch.Tensor, seen: torch.Tensor, count: int | None = None) -> torch.Tensor:
        """Last states float[B, T, w] of ids int64[B, T] or states float[B, T, w]; zeros where bool[B, T] is false.

        Something of every text must be seen, because a softmax over nothing is NaN. `count`: see `Packing.of`.
        """
        packing = Packing.of(seen, count)
        tokens = packing.pack(given)[None]
        if self.offset is None:
            states = self.model(inputs_embeds=tokens, packing=packing).last_hidden_state
        else:
            positions = packing.positions[None] + self.offset
            states = self.model(input_ids=tokens, position_ids=positions, packing=packing).last_hidden_state
        return packing.pad(states[0])


def packed(model: "PreTrainedModel", *, reads_ids: bool) -> Packed | None:
    """`model` as `Packed`, and changed to be called so only; None and unchanged where packed texts have other states.

    That is tried on two texts with hidden tokens: encoders differ in how they count positions and in what they hand on
    to attention.
    """
    if not getattr(model, "_supports_attention_backend", False):
        return None
    from transformers import AttentionInterface

    seen = torch.tensor([[True, False, True, False, False], [True, True, False, True, True]])
    padding = model.config.pad_token_id or 0
    rows = (padding + 1 + torch.arange(10).view(2, 5)) % model.config.vocab_size
    drawn = torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    given = rows if reads_ids else drawn
    training, usual = model.training, model.config._attn_implementation
    name = "input_ids" if reads_ids else "inputs_embeds"
    AttentionInterface.register(ATTENTION, attend)
    _load_kernel()
    found = None
    model.eval()
    try:
        with torch.inference_mode():
            padded = model(**{name: given}, attention_mask=seen.long()).last_hidden_state[seen]
            model.set_attn_implementation(ATTENTION)
            for offset in (0, padding + 1) if reads_ids else (None,):
                made = Packed(model, offset)
                with suppress(Exception):  # of code that packed texts were never meant for
                    if (made(given, seen)[seen] - padded).abs().max() <= TOLERANCE:
                        found = made
                        break
    finally:
        model.train(training)
        if found is None:
            model.set_attn_implementation(usual)
    return found
