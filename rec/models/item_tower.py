"""The item tower: standard attributes, reinforced attributes and title tokens to one unit vector.

STD ids + key embedding -> self-attention; RE ids + the same key embedding and the title's token states are
the context of a cross-attention whose queries are the STD positions -> mean, to which the means of the RE rows and of
the title's projected states are added -> residual MLP -> L2 norm. What the STD positions say before the
cross-attention may have numbers of its own (`rec.models.std_part`).

The added means are what a product says before any attention has learned to read it, and every residual branch starts
small: where rows and projection start from text (`rec.train.text_start`), the untrained tower places products by
their texts already, and training begins from there.

The states are final ones of a frozen text encoder, or the tower holds the encoder's last layers, or all of it
(`rec.models.text_layers`), and the batch has what these read: states of the layers below, or token ids.

One product has one vector: padding is masked in every attention and in the mean, and LayerNorm looks at one
position only. A learned anchor stands before the STD ids and a learned blank before the context, so a
product without STD, RE or title, or without any of them, has a vector too and nothing is ever NaN.

B items, S = 1 + STD ids, C = 1 + RE ids + title tokens, d the width of the vectors.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rec import artifact, weights
from rec.models.dropout import Dropout
from rec.models.item_inputs import ItemBatch, ItemInputs
from rec.models.std_part import Components, join, unit
from rec.models.text_layers import TextLayers, TextShape

KIND = "item_tower"
VERSION = 3
WEIGHTS = "item_tower.safetensors"
SHAPE = "item_tower.json"
BRANCH_START = 0.1
"""By what the drawn last layer of a residual branch is multiplied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """All that is needed to build a tower before its weights are loaded."""

    num_keys: int
    """Attribute keys; key ids run from 1, 0 is padding."""
    num_std_ids: int
    """Rows of the STD table, the padding row 0 included."""
    num_re_tokens: int
    """Rows of the RE table, the padding row 0 included."""
    text_width: int
    """Floats of a title token state."""
    text_encoder: str
    """Option `text.encoder` that made the states."""
    width: int
    """d."""
    heads: int
    dropout: float
    inputs: tuple[str, ...]
    """Which of std, re, title are in use."""
    shared_keys: bool = True
    """RE tokens have the key embedding of STD values; else they have one of their own."""
    text: TextShape | None = None
    """What of the text encoder the tower holds and trains; None: it reads final states."""
    std_share: float = 0.0
    """Of a vector's squared length, what STD alone says; 0: nothing, and there is no such part."""
    std_width: int = 0
    """Of the d numbers of a vector, those of STD alone. 0 where there is such a part: the tower is being trained, and
    its vectors have both parts whole, 2 d numbers."""

    @property
    def layers_above_states(self) -> int:
        """Last layers of the text encoder that the states in a batch have not gone through."""
        return 0 if self.text is None or self.text.whole else self.text.layers

    @property
    def reads_ids(self) -> bool:
        """Whether titles come as token ids, not as states."""
        return self.text is not None and self.text.whole

    @property
    def reads_titles(self) -> bool:
        """Whether titles are in use at all."""
        return "title" in self.inputs


class Attention(nn.Module):
    """Pre-LayerNorm attention of queries over a context, with the residual.

    Not nn.MultiheadAttention: with a padding mask and dropout on its weights that takes twice the CPU time.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = _branch_end(nn.Linear(width, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None, present: torch.Tensor) -> torch.Tensor:
        """float32[B, S, d] from x float32[B, S, d], context float32[B, C, d] (None: x itself), present bool[B, C]."""
        normed = self.norm(x)
        query = self._split(self.query(normed))  # float32[B, heads, S, d / heads]
        key, value = self.key_value(normed if context is None else context).chunk(2, dim=-1)
        mask = present[:, None, None, :]  # bool[B, 1, 1, C], at least one True a row
        mixed = nn.functional.scaled_dot_product_attention(query, self._split(key), self._split(value), attn_mask=mask)
        return x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))

    def weights(self, x: torch.Tensor, context: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """How much of each position of the context each query takes: float32[B, S, C], the mean over the heads."""
        query = self._split(self.query(self.norm(x)))
        key = self._split(self.key_value(context).chunk(2, dim=-1)[0])  # float32[B, heads, C, d / heads]
        scores = query @ key.transpose(2, 3) / key.shape[-1] ** 0.5  # float32[B, heads, S, C]
        return scores.masked_fill(~present[:, None, None, :], -torch.inf).softmax(-1).mean(1)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """float32[B, heads, S, d / heads] of float32[B, S, d]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Pre-LayerNorm GELU layer with the residual."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            Dropout(dropout),
            _branch_end(nn.Linear(2 * width, width)),
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The shape of `x`."""
        residual: torch.Tensor = x + self.dropout(self.layers(x))
        return residual


def _branch_end(layer: nn.Linear) -> nn.Linear:
    """`layer` as the last one of a residual branch that starts small."""
    with torch.no_grad():
        layer.weight.mul_(BRANCH_START)
        layer.bias.zero_()
    return layer


def present_mean(rows: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """float32[B, d]: mean of rows float32[B, S, d] over the positions present, bool[B, S]; zero where none is."""
    weight = present.unsqueeze(-1).to(rows.dtype)  # float32[B, S, 1]
    return (rows * weight).sum(1) / weight.sum(1).clamp(min=1)


class ItemTower(nn.Module):
    """Inputs of items to unit vectors.

    What was drawn of the RE rows stays beside them: it tells tokens apart but means nothing. The difference is what
    texts and training made of them, from which `rec.models.token_map` makes new rows.
    """

    re_start: torch.Tensor
    """float32[num_re_tokens, d]"""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, heads, dropout = shape.width, shape.heads, shape.dropout
        self.shape = shape
        self.std_table = nn.Embedding(shape.num_std_ids, width, padding_idx=0)
        self.re_table = nn.Embedding(shape.num_re_tokens, width, padding_idx=0)
        self.key_table = nn.Embedding(shape.num_keys + 1, width, padding_idx=0)
        self.title = nn.Linear(shape.text_width, width)
        self.anchor = nn.Parameter(torch.randn(width) * 0.02)
        self.blank = nn.Parameter(torch.randn(width) * 0.02)
        for table in (self.std_table, self.re_table, self.key_table):
            with torch.no_grad():
                table.weight[1:].normal_(std=width**-0.5)
        self.register_buffer("re_start", self.re_table.weight.detach().clone())
        self.self_attention = Attention(width, heads, dropout)
        self.self_mlp = Mlp(width, dropout)
        self.context_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, dropout)
        self.project = Mlp(width, dropout)
        self.text = None if shape.text is None else TextLayers(shape.text)  # late: it draws, and nothing else moves
        self.re_key_table = None
        if not shape.shared_keys:
            self.re_key_table = nn.Embedding(shape.num_keys + 1, width, padding_idx=0)
            with torch.no_grad():
                self.re_key_table.weight[1:].normal_(std=width**-0.5)
        self.components = Components(width, shape.std_width) if shape.std_width else None
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Parameters of inputs left out get no gradient, and data-parallel training must not wait for one."""
        used = self.shape.inputs
        self.std_table.requires_grad_("std" in used)
        self.re_table.requires_grad_("re" in used)
        self.key_table.requires_grad_("std" in used or ("re" in used and self.re_key_table is None))
        if self.re_key_table is not None:
            self.re_key_table.requires_grad_("re" in used)
        self.title.requires_grad_(self.shape.reads_titles)
        if self.text is not None:
            self.text.requires_grad_(self.shape.reads_titles)

    def forward(self, batch: ItemBatch) -> torch.Tensor:
        """Unit vectors float32[B, d], or float32[B, 2 d]: see `Shape.std_width`."""
        queries, present = self._queries(batch)  # float32[B, S, d], bool[B, S]
        context, visible, said = self._context(batch)  # float32[B, C, d], bool[B, C], float32[B, d]
        x = self.cross_attention(queries, self.context_norm(context), visible)
        pooled = present_mean(x, present) + said  # float32[B, d]; the anchor is always present
        mixed = unit(self.project(pooled), dim=-1)
        if not self.shape.std_share:
            return mixed
        std = unit(present_mean(queries, present), dim=-1)
        if self.components is not None:
            mixed, std = self.components(mixed, std)
        return join(mixed, std, self.shape.std_share)

    def attention(self, batch: ItemBatch) -> torch.Tensor:
        """What the cross-attention takes from where: float32[B, S, C], see `Attention.weights`.

        Queries are the anchor and the STD values, the context is the blank, the RE tokens and the title's.
        """
        x, _ = self._queries(batch)
        context, visible, _ = self._context(batch)
        return self.cross_attention.weights(x, self.context_norm(context), visible)

    def _queries(self, batch: ItemBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Anchor and STD positions after self-attention, with their mask."""
        x, present = self._skeleton(batch)
        return self.self_mlp(self.self_attention(x, None, present)), present

    def _skeleton(self, batch: ItemBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Anchor and STD positions with their mask."""
        parts, masks = [self.anchor.expand(len(batch), 1, -1)], [batch.std_id.new_ones(len(batch), 1, dtype=torch.bool)]
        if "std" in self.shape.inputs:
            parts.append(self.std_table(batch.std_id) + self.key_table(batch.std_key))
            masks.append(batch.std_id != 0)
        return torch.cat(parts, 1), torch.cat(masks, 1)

    def _context(self, batch: ItemBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Blank, RE and title positions with their mask, and the sum of the means of RE rows and of the title."""
        parts, masks = [self.blank.expand(len(batch), 1, -1)], [batch.re_id.new_ones(len(batch), 1, dtype=torch.bool)]
        said = torch.zeros_like(parts[0][:, 0])
        if "re" in self.shape.inputs:
            rows, present = self.re_table(batch.re_id), batch.re_id != 0
            keys = self.key_table if self.re_key_table is None else self.re_key_table
            parts.append(rows + keys(batch.re_key))
            masks.append(present)
            said = said + present_mean(rows, present)
        if self.shape.reads_titles:
            states = self._titles(batch)
            parts.append(states)
            masks.append(batch.title_mask)
            said = said + present_mean(states, batch.title_mask)
        return torch.cat(parts, 1), torch.cat(masks, 1), said

    def _titles(self, batch: ItemBatch) -> torch.Tensor:
        """Title positions float32[B, T, d]; layers that are trained read each view apart, without what it hides."""
        views = len(batch) // len(batch.title)
        if self.text is None:
            return self.title(batch.title).repeat(views, 1, 1)
        title = torch.cat([batch.title] * views)  # int64[B, T] or float32[B, T, text_width]
        return self.title(self.text(title, batch.title_mask, batch.title_count))

    def compile_parts(self, backend: str = "inductor") -> None:
        """Let torch compile what takes the time: the text encoder's layers, if it has any, and the tower's own.

        Not the tower as one: what looks up and joins ragged lists is little, and torch 2.11 fails on it on a GPU.
        """
        if self.text is not None:
            self.text.compile_layers(backend)
        for part in (self.self_attention, self.self_mlp, self.cross_attention, self.project):
            part.compile(dynamic=True, backend=backend)

    def save(self, folder: Path) -> None:
        """Write weights and shape into `folder`."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        values = asdict(self.shape)
        for name, usual in (("text", None), ("shared_keys", True), ("std_share", 0.0), ("std_width", 0)):
            if values[name] == usual:
                del values[name]  # as before there was a choice: equal towers, equal bytes
        artifact.write_json(folder / SHAPE, values)


def manifest(folder: Path) -> artifact.Manifest:
    """The checked manifest of the tower at `folder`."""
    return artifact.read(folder, kind=KIND, version=VERSION, made_by="python jobs/pretrain.py")


def load(folder: Path) -> ItemTower:
    """The trained tower of the artifact at `folder`, in eval mode."""
    manifest(folder)
    return restore(folder)


def read_shape(folder: Path) -> Shape:
    """The shape of the tower whose files lie in `folder`."""
    values: dict[str, Any] = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    text = TextShape(**values["text"]) if "text" in values else None
    return Shape(**{**values, "inputs": tuple(values["inputs"]), "text": text})


def inputs_of(shape: Shape, tensors: Path, text_states: Path) -> ItemInputs:
    """All items of a catalogue, with what a tower of this shape reads of their titles."""
    return ItemInputs.load(tensors, text_states, ids=shape.reads_ids, titles=shape.reads_titles)


def restore(folder: Path) -> ItemTower:
    """The tower whose files lie in `folder`, which need not be an artifact of its own (a bundle's part)."""
    tower = ItemTower(read_shape(folder))
    with weights.reading(folder / WEIGHTS) as path:
        tower.load_state_dict(load_file(path))
    return tower.eval()
