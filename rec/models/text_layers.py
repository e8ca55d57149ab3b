"""Layers of a text encoder that are trained with the item tower: its last ones, or all of them with the embeddings.

An encoder is cut by what all of BERT's kin have in common: one list of layers, run in turn, behind a module
`embeddings`. What is kept stays the model of transformers, which knows its own masks. Below the cut the last layers are
missing; above it the embeddings hand on the states that they are given. Whether the two make the whole again is tried
on some tokens, and other structures (layers that share weights, a norm behind the last one) are refused.

The shape holds the encoder's configuration, so that a tower is built again without the hub or the folder it came from.

B texts, T tokens, w the width of a state.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rec.errors import ConfigError
from rec.models import packing

if TYPE_CHECKING:  # transformers takes seconds to import: towers that read final states do without
    from transformers import PreTrainedModel

TRIED_TOKENS = 8
TOLERANCE = 1e-4
"""Largest difference of a state, which is of the order of 1, between the two parts and the whole."""
ELSEWHERE = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "id2label",
        "label2id",
        "torch_dtype",
        "transformers_version",
    }
)
"""Entries of a configuration that say where a model came from, ask for its code or name labels; none shapes a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """All that is needed to build the layers before their weights are loaded."""

    layers: int
    """How many, counted from the encoder's last."""
    whole: bool
    """They are all, and the embeddings are held, too: the input is token ids."""
    encoder: dict[str, Any]
    """Configuration of transformers for what is held, `model_type` included."""


class HandOn(nn.Module):
    """In place of the embeddings: the states of lower layers are the input of the upper ones as they are."""

    def forward(
        self, input_ids: None = None, inputs_embeds: torch.Tensor | None = None, position_ids: None = None, **_: Any
    ) -> torch.Tensor:
        """`inputs_embeds`, float32[B, T, w]; the names and their order are those of transformers."""
        assert inputs_embeds is not None, "the layers read states, not token ids"
        return inputs_embeds


class TextLayers(nn.Module):
    """Token ids, or states of the layers below, to the encoder's last states."""

    def __init__(self, shape: TextShape) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        self.shape = shape
        config = AutoConfig.for_model(**shape.encoder)
        self.model = _bare(AutoModel.from_config(config, trust_remote_code=False).float())
        if not shape.whole:
            self.model.embeddings = HandOn()
        self._packed = packing.packed(self.model, reads_ids=shape.whole)

    def forward(self, title: torch.Tensor, mask: torch.Tensor, count: int | None = None) -> torch.Tensor:
        """States float32[B, T, w] of token ids int64[B, T] or lower states float32[B, T, w]; mask bool[B, T].

        `count` is `packing.seen(mask).sum()` where it is known without asking a GPU.

        What the mask hides, no other token sees, and its own states mean nothing; where the encoder allows it, only
        what is seen goes through the layers (`rec.models.packing`). A text without any token has one of padding,
        because a softmax over nothing is NaN, and data-parallel training needs every parameter in the graph.
        """
        length = title.shape[1]
        if length == 0:
            title = title.new_zeros(len(title), 1, *title.shape[2:])
        seen = packing.seen(mask)
        if self._packed is not None:
            states = self._packed(title, seen, count)
        else:
            name = "input_ids" if self.shape.whole else "inputs_embeds"
            states = self.model(**{name: title}, attention_mask=seen.long()).last_hidden_state
        return states[:, :length]

    def compile_layers(self, backend: str) -> None:
        """Let torch compile embeddings and layers one by one, the same code for all layers; where there is no list of
        layers, the model."""
        lists = _lists_of_all_layers(self.model)
        first = [self.model.embeddings] if self.shape.whole and hasattr(self.model, "embeddings") else []
        for part in [*first, *lists[0][1]] if len(lists) == 1 else [self.model]:
            part.compile(dynamic=True, backend=backend)


def take(model: "PreTrainedModel", layers: int | None, name: str) -> TextLayers:
    """The last `layers` layers of the encoder `name` with their weights, or all of it where that is None.

    Raises ConfigError when it has fewer, or when it cannot be cut.
    """
    plain = {key: value for key, value in model.config.to_dict().items() if key not in ELSEWHERE}
    settings = json.loads(json.dumps(plain))  # as it will be read: JSON has only strings for keys
    weights = model.state_dict()
    if layers is None:
        made = TextLayers(TextShape(layers=model.config.num_hidden_layers, whole=True, encoder=settings))
        made.model.load_state_dict({key: weights[key] for key in made.model.state_dict()})
        return made.eval()
    path, found = _list_of_layers(model, layers, name)
    settings |= {_depth_key(model): layers, "vocab_size": _smallest_vocabulary(settings)}
    made = TextLayers(TextShape(layers=layers, whole=False, encoder=settings))
    start, skipped = f"{path}.", len(found) - layers

    def origin(key: str) -> str:
        if not key.startswith(start):
            return key
        number, _, rest = key.removeprefix(start).partition(".")
        return f"{start}{int(number) + skipped}.{rest}"

    made.model.load_state_dict({key: weights[origin(key)] for key in made.model.state_dict()})
    return made.eval()


def below(model: "PreTrainedModel", layers: int, name: str) -> "PreTrainedModel":
    """The encoder `name` without its last `layers` layers: its last states are what `take` reads.

    Raises what `take` raises, and ConfigError when the two do not make the whole.
    """
    ids = torch.arange(min(TRIED_TOKENS, model.config.vocab_size))[None]  # int64[1, T]
    seen = torch.ones_like(ids)
    above = take(model, layers, name)
    with torch.inference_mode():
        whole = model(input_ids=ids, attention_mask=seen).last_hidden_state  # float32[1, T, w]
        _, found = _list_of_layers(model, layers, name)
        del found[len(found) - layers :]
        lower = model(input_ids=ids, attention_mask=seen).last_hidden_state
        difference = (above(lower, seen.bool()) - whole).abs().max().item()
    if not difference <= TOLERANCE:
        raise ConfigError(f"{_uncut(model, name)}: below and above the cut its states differ by {difference:.2g}")
    return model


def _list_of_layers(model: "PreTrainedModel", layers: int, name: str) -> tuple[str, nn.ModuleList]:
    """The one list of all layers and its path in the model, of which the last `layers` are wanted."""
    depth, found = model.config.num_hidden_layers, _lists_of_all_layers(model)
    parts = {child for child, _ in model.named_children()}
    if len(found) != 1 or parts - {"pooler"} != {"embeddings", found[0][0].partition(".")[0]}:
        raise ConfigError(f"{_uncut(model, name)}: it is not embeddings and one list of {depth} layers")
    if layers > depth:
        raise ConfigError(
            f"item_tower.text_layers is {layers}, but text.encoder {name!r} has {depth} layers: lower it, or set "
            'item_tower.text="full"'
        )
    return found[0]


def _lists_of_all_layers(model: "PreTrainedModel") -> list[tuple[str, nn.ModuleList]]:
    """Path and list of each list that is as long as the model has layers."""
    depth = model.config.num_hidden_layers
    lists = [(path, part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    return [(path, part) for path, part in lists if len(part) == depth]


def _uncut(model: "PreTrainedModel", name: str) -> str:
    return (
        f"text.encoder {name!r} ({type(model).__name__}) cannot be cut between its layers: take one built as BERT or "
        'DistilBERT are, or set item_tower.text to "frozen" or "full"'
    )


def _bare(model: "PreTrainedModel") -> "PreTrainedModel":
    """Without the pooler: what no state depends on has no gradient, and data-parallel training would wait for one."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # type: ignore[assignment]  # as where the model is built without one
    return model


def _depth_key(model: "PreTrainedModel") -> str:
    """What this kind of model calls its number of layers (DistilBERT: n_layers)."""
    names: dict[str, str] = getattr(model.config, "attribute_map", {})
    return names.get("num_hidden_layers", "num_hidden_layers")


def _smallest_vocabulary(settings: dict[str, Any]) -> int:
    """Rows of a word table that is not held: enough for the special tokens that the configuration names."""
    ids = [value for key, value in settings.items() if key.endswith("_token_id") and isinstance(value, int)]
    return 1 + max(ids, default=0)
