"""The tagger: a small fine-tuned text encoder that reads attribute values out of product text, and concludes others.

One label per word: outside, or begin / inside of an attribute. The attributes open to a text are those of its
group (a product category); all others are masked, and the group's name is read before the text. A run of an
attribute's labels is a value, copied from the text, so that a value always has its evidence. The labels of a text are
its likeliest sequence in which an inside label continues its own attribute.
A schema may also have keys whose value is concluded from the whole text, without words that say it: for each, the mean
of the token states chooses one of the key's values, or none. Without such keys there is no such layer.
Networks that were trained apart from each other read a text together.
The encoder is uncased: each word's shape (capitals, digits) and whether a space precedes it come in beside it.

B texts, W words, T sub-word tokens, L = 1 + 2 x attributes labels, V = values of all concluded keys and one none each.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rec import artifact

KIND = "tagger"
VERSION = 3
WEIGHTS = "tagger.safetensors"
SHAPE = "tagger.json"
ENCODER = "encoder"
MADE_BY = "rec.train.tagger.save"
MAX_TOKENS = 256
NUM_SHAPES = 14
BATCH = 64
IGNORED = -100
"""Label of a word that carries no loss."""

WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What is read, in a fixed order."""

    groups: dict[str, list[str]]
    """Group → its attributes."""
    concluded: dict[str, list[str]] = field(default_factory=dict)
    """Key → the values of which one is concluded, for the texts of all groups."""

    @property
    def attributes(self) -> list[str]:
        """All attributes; that of number k has the labels 1 + 2k (begin) and 2 + 2k (inside)."""
        return sorted({name for names in self.groups.values() for name in names})

    @property
    def num_labels(self) -> int:
        return 1 + 2 * len(self.attributes)

    @property
    def choices(self) -> list[int]:
        """Of each concluded key, how many values there are to choose from; the first is none."""
        return [1 + len(values) for values in self.concluded.values()]


@dataclass(frozen=True, slots=True)
class Word:
    """A word or a punctuation mark of a text: text[start:end]."""

    start: int
    end: int
    shape: int


def words(text: str) -> list[Word]:
    """The words of a text in order."""
    return [Word(m.start(), m.end(), _shape(text, m.start(), m.group())) for m in WORD.finditer(text)]


def _shape(text: str, start: int, word: str) -> int:
    """1 … NUM_SHAPES - 1: kind of the word's characters, and whether it stands directly behind another word."""
    if not (word[0].isalnum() or word[0] == "_"):
        kind = 0
    elif word.isdigit():
        kind = 1
    elif any(c.isdigit() for c in word):
        kind = 2
    elif word.isupper():
        kind = 3
    elif word[0].isupper():
        kind = 4
    else:
        kind = 5
    return 1 + 2 * kind + int(start > 0 and not text[start - 1].isspace())


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says."""

    spans: list[tuple[str, str, float]]
    """(attribute, value, sureness) in text order; the sureness is the geometric mean of its words' probabilities."""
    confidence: float
    """Share, by the model's own probabilities, that the words it gave an attribute have of these and of those it
    missed: 1 is certain, 0 is a text of which it reads nothing."""
    concluded: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Key → its likeliest value, and how likely that is beside all others and none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of B texts."""

    ids: torch.Tensor
    """int64[B, T], 0 is padding."""
    mask: torch.Tensor
    """int64[B, T]."""
    first: torch.Tensor
    """int64[B, W]: position of each word's first token; 0 where there is none."""
    shapes: torch.Tensor
    """int64[B, W], 0 is padding."""
    closed: torch.Tensor
    """bool[B, L]: labels that the text's group does not have."""


class Scores(NamedTuple):
    """What a network, or several together, think of B texts."""

    labels: torch.Tensor
    """float32[B, W, L]."""
    values: torch.Tensor
    """float32[B, V]."""


class Network(nn.Module):
    """Encoder, word shapes, a recurrent layer over the words, a linear layer to the labels, and one to the values."""

    def __init__(self, encoder: PreTrainedModel, schema: Schema) -> None:
        super().__init__()
        self.encoder = encoder
        width, shapes = encoder.config.hidden_size, 32
        self.shapes = nn.Embedding(NUM_SHAPES, shapes, padding_idx=0)
        self.context = nn.LSTM(width + shapes, width // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.labels = nn.Linear(width, schema.num_labels)
        self.values = nn.Linear(width, sum(schema.choices)) if schema.concluded else None

    def forward(self, batch: Batch) -> Scores:
        """Logits of each word's labels, those not of the group at -1e4, and of the values."""
        hidden = self.encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        rows = torch.arange(len(batch.first))[:, None]
        seen = torch.cat([hidden[rows, batch.first], self.shapes(batch.shapes)], dim=-1)
        lengths = (batch.shapes > 0).sum(dim=1).clamp(min=1)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(seen.float()), lengths, batch_first=True, enforce_sorted=False
        )
        mixed, _ = nn.utils.rnn.pad_packed_sequence(
            self.context(packed)[0], batch_first=True, total_length=batch.first.shape[1]
        )
        logits: torch.Tensor = self.labels(self.dropout(mixed + hidden[rows, batch.first].float()))
        closed = logits.float().masked_fill(batch.closed[:, None], -1e4)
        if self.values is None:
            return Scores(closed, hidden.new_empty(len(hidden), 0))
        used = batch.mask[..., None].float()
        pooled = (hidden.float() * used).sum(dim=1) / used.sum(dim=1)
        return Scores(closed, self.values(self.dropout(pooled)).float())


class Tagger(nn.Module):
    """Networks over one schema; the tokenizer is that of their encoders."""

    def __init__(self, networks: Sequence[Network], tokenizer: PreTrainedTokenizerBase, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        self.networks = nn.ModuleList(networks)
        self.tokenizer = tokenizer

    def batch(self, groups: Sequence[str], texts: Sequence[str]) -> Batch:
        """Tensors of texts; words beyond MAX_TOKENS tokens are not read."""
        split = [words(text) for text in texts]
        encoded = self.tokenizer(
            list(groups),
            [" ".join(text[w.start : w.end] for w in row) for text, row in zip(texts, split, strict=True)],
            truncation="only_second",
            max_length=MAX_TOKENS,
            padding=True,
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        width = max((len(row) for row in split), default=0) or 1
        first = torch.zeros(len(texts), width, dtype=torch.long)
        shapes = torch.zeros_like(first)
        for row, found in enumerate(split):
            at = _first_tokens(found, encoded["offset_mapping"][row].tolist(), encoded.sequence_ids(row))
            first[row, : len(at)] = torch.tensor(at, dtype=torch.long)
            shapes[row, : len(at)] = torch.tensor([w.shape for w in found[: len(at)]], dtype=torch.long)
        closed = torch.stack([self._closed(group) for group in groups])
        return Batch(encoded["input_ids"], encoded["attention_mask"], first, shapes, closed)

    def _closed(self, group: str) -> torch.Tensor:
        """bool[L] of one group."""
        open_ = self.schema.groups[group]
        return torch.tensor([False, *(name not in open_ for name in self.schema.attributes for _ in "BI")])

    def forward(self, batch: Batch) -> Scores:
        """The normalised mean of the networks' log-probabilities, of each word's labels and of each key's values."""
        made = [network(batch) for network in self.networks]
        labels = torch.stack([scores.labels.log_softmax(dim=-1) for scores in made]).mean(dim=0).log_softmax(dim=-1)
        values = torch.stack([self.by_key(scores.values) for scores in made]).mean(dim=0)
        return Scores(labels, self.by_key(values))

    def by_key(self, values: torch.Tensor) -> torch.Tensor:
        """float32[B, V]: log-probabilities of each concluded key's values, of their logits."""
        parts = values.split(self.schema.choices, dim=1)
        return torch.cat([part.log_softmax(dim=1) for part in parts], dim=1) if parts else values

    def read(self, groups: Sequence[str], texts: Sequence[str]) -> list[dict[str, str]]:
        """Attribute → its surest value in each text; what a text does not say is left out."""
        found: list[dict[str, str]] = []
        for reading in self.readings(groups, texts):
            by_sureness = sorted(reading.spans, key=lambda span: span[2])
            found.append({name: value for name, value, _ in by_sureness})
        return found

    @torch.inference_mode()
    def readings(self, groups: Sequence[str], texts: Sequence[str]) -> list[Reading]:
        """All that each text says. A blank text says nothing."""
        self.eval()
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding
        found = [Reading([], 0.0)] * len(texts)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = self.batch([groups[row] for row in rows], [texts[row] for row in rows])
            used = batch.shapes > 0
            with reduced():
                scores = self(batch)
            labels = best_path(scores.labels, used)
            sure = scores.labels.gather(2, labels[..., None])[..., 0]
            for at, (row, count) in enumerate(zip(rows, used.sum(dim=1).tolist(), strict=True)):
                found[row] = self._reading(texts[row], labels[at, :count], sure[at, :count], scores.values[at])
        return found

    def _reading(self, text: str, labels: torch.Tensor, sure: torch.Tensor, values: torch.Tensor) -> Reading:
        """`sure`: float32[words], log-probability of each word's label; `values`: float32[V], of each value."""
        said = labels > 0
        right = float((sure.exp() * said).sum())
        missed = float(((1 - sure.exp()) * ~said).sum())
        at, names = words(text), self.schema.attributes
        spans = [
            (names[key], text[at[first].start : at[end - 1].end], math.exp(float(sure[first:end].mean())))
            for key, first, end in runs(labels.tolist())
        ]
        return Reading(spans, right / (int(said.sum()) + missed) if spans else 0.0, self._concluded(text, values))

    def _concluded(self, text: str, values: torch.Tensor) -> dict[str, tuple[str, float]]:
        """Each key's likeliest value; none of a blank text."""
        if not text.strip() or not self.schema.concluded:
            return {}
        found = {}
        for (key, names), logs in zip(self.schema.concluded.items(), values.split(self.schema.choices), strict=True):
            best = int(logs[1:].argmax())
            found[key] = names[best], math.exp(float(logs[1 + best]))
        return found


def reduced() -> torch.autocast:
    """bfloat16 for what is read within, on a CPU that computes in it; on others it is slower than float32."""
    # A torch without `get_capabilities` does not tell.
    known: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(known.get("avx512_bf16")))


def best_path(scores: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """int64[B, W]: the likeliest labels of each text in which an inside label stands only behind its own attribute's.

    `scores`: float32[B, W, L], log-probabilities; `used`: bool[B, W], the words that a text has.
    """
    begin, inside = slice(1, None, 2), slice(2, None, 2)
    scores = scores.masked_fill(~used[..., None], -torch.inf)
    scores[..., 0].masked_fill_(~used, 0.0)
    numbers = torch.arange(scores.shape[2])
    total = scores[:, 0].clone()
    total[:, inside] = -torch.inf
    before: list[torch.Tensor] = []
    for word in range(1, scores.shape[1]):
        reached, came = (part.expand_as(total).clone() for part in total.max(dim=1, keepdim=True))
        came[:, inside] = torch.where(total[:, inside] > total[:, begin], numbers[inside], numbers[begin])
        reached[:, inside] = torch.maximum(total[:, inside], total[:, begin])
        before.append(came)
        total = reached + scores[:, word]
    path = [total.argmax(dim=1)]
    for came in reversed(before):
        path.append(came.gather(1, path[-1][:, None])[:, 0])
    return torch.stack(path[::-1], dim=1)


def runs(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """(attribute number, first word, end) of each run; an inside label behind another attribute begins a run."""
    found: list[tuple[int, int, int]] = []
    for word, label in enumerate(labels):
        if label == 0:
            continue
        key, inside = divmod(label - 1, 2)
        if inside and found and found[-1][0] == key and found[-1][2] == word:
            found[-1] = key, found[-1][1], word + 1
        else:
            found.append((key, word, word + 1))
    return found


def _first_tokens(found: list[Word], offsets: list[list[int]], sides: list[int | None]) -> list[int]:
    """Position of each word's first token, as far as the tokens reach; words are joined by one space."""
    starts: dict[int, int] = {}
    for at, ((begin, _), side) in enumerate(zip(offsets, sides, strict=True)):
        if side == 1:
            starts.setdefault(begin, at)
    last = max(starts, default=-1)
    positions: list[int] = []
    begin = 0
    for word in found:
        if begin not in starts:
            # A character the tokenizer drops has no token: the separator's state stands for it.
            if begin > last:
                break
            positions.append(0)
        else:
            positions.append(starts[begin])
        begin += word.end - word.start + 1
    return positions


def write(model: Tagger, folder: Path) -> None:
    """Weights, schema, encoder configuration and tokenizer as files of an artifact."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    artifact.write_json(folder / SHAPE, {"networks": len(model.networks), **asdict(model.schema)})
    first = model.networks[0]
    assert isinstance(first, Network)
    first.encoder.config.save_pretrained(folder / ENCODER)
    model.tokenizer.save_pretrained(folder / ENCODER)


def load(folder: Path) -> Tagger:
    """The tagger of an artifact, ready to read. Raises ArtifactError when `folder` holds none."""
    artifact.read(folder, kind=KIND, version=VERSION, made_by=MADE_BY)
    shape = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    schema = Schema(groups=shape["groups"], concluded=shape["concluded"])
    config = AutoConfig.from_pretrained(folder / ENCODER, local_files_only=True)
    networks = [Network(AutoModel.from_config(config), schema) for _ in range(shape["networks"])]
    model = Tagger(networks, AutoTokenizer.from_pretrained(folder / ENCODER, local_files_only=True), schema)
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()
