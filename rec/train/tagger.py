"""Training of the tagger from texts whose attribute values are known: gold labels, or an engine's grounded answers.

Values are aligned weakly: all places where the text says the value, at word boundaries and case-insensitively. A
longer value claims its words before a shorter one; a value that the text does not say teaches nothing. Values that are
concluded from the whole text are known as such, and learned beside the others.

Against learning few texts by heart, values are exchanged for others of their attribute and group, and tokens hidden. A
text with an exchanged value teaches no conclusion: it may say another one.
Two networks are trained apart from each other: one alone depends much on its seed.

Micro F1 on the dev part, a fifth of OA-Mine's train titles, trained on the others (strictly; as published it is .02
more, see `rec/enrich/oamine.py`):

                                                likeliest labels    likeliest sequence
    one, 12 epochs, neither of both, seed 17    .761                .786
    one, 14 epochs, seed 17                     .778                .800
    one, 14 epochs, seed 18                     .764                .782
    the two together                            .786                .797

Of the 29 % of the titles that they are less than .85 confident of, the F1 is .61, of the others .87.
"""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rec import artifact
from rec.config import Text
from rec.errors import InputError
from rec.models import tagger, text_encoder
from rec.models.tagger import IGNORED, Batch, Network, Schema, Tagger

NETWORKS = 2
"""Each takes its share of the time for training, for reading and of the artifact's size."""
EPOCHS = 15
BATCH = 16
ENCODER_LR = 1.5e-4
HEAD_LR = 2e-3
WARM_UP = 0.1
VARIED = 0.7
"""Share of the texts of an epoch in which values are exchanged."""
EXCHANGED = 0.3
"""Share of the values of such a text that are."""
ALIKE = 16
"""Batches that are cut from one sorted stretch of texts."""
HIDDEN = 0.1
"""Share of the tokens that are masked."""

Pool = dict[tuple[str, int], list[str]]
"""(group, attribute number) → its values, as often as texts say them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """A text of a group, and what it says."""

    group: str
    text: str
    values: Mapping[str, Sequence[str]]
    """Attribute → accepted values, in words of the text."""
    concluded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Key → values that follow from the whole text, as often as they count; [] where there is none. A key that is
    left out is not known."""


def schema_of(examples: Sequence[Example]) -> Schema:
    """Each group's attributes, and each concluded key's values: those that one of the examples has."""
    groups: dict[str, set[str]] = {}
    concluded: dict[str, set[str]] = {}
    for example in examples:
        groups.setdefault(example.group, set()).update(example.values)
        for key, values in example.concluded.items():
            concluded.setdefault(key, set()).update(values)
    return Schema(
        groups={group: sorted(names) for group, names in sorted(groups.items())},
        concluded={key: sorted(values) for key, values in sorted(concluded.items()) if values},
    )


def align(example: Example, attributes: Sequence[str]) -> list[int]:
    """Label of each word of the text."""
    at = tagger.words(example.text)
    starts = {word.start: index for index, word in enumerate(at)}
    ends = {word.end: index + 1 for index, word in enumerate(at)}
    labels = [0] * len(at)
    wanted = [(value, name) for name, values in example.values.items() for value in values if value]
    for value, name in sorted(wanted, key=lambda pair: -len(pair[0])):
        key = attributes.index(name)
        for match in re.finditer(re.escape(value), example.text, re.IGNORECASE):
            first, end = starts.get(match.start()), ends.get(match.end())
            if first is not None and end is not None and not any(labels[first:end]):
                labels[first:end] = [1 + 2 * key] + [2 + 2 * key] * (end - first - 1)
    return labels


def aims(example: Example, schema: Schema) -> torch.Tensor:
    """float32[V]: the share of each value of each concluded key; all 0 where the key is not known."""
    made = [torch.zeros(choices) for choices in schema.choices]
    for (key, names), shares in zip(schema.concluded.items(), made, strict=True):
        if key in example.concluded:
            said = [1 + names.index(value) for value in example.concluded[key]] or [0]
            shares.index_add_(0, torch.tensor(said), torch.full((len(said),), 1 / len(said)))
    return torch.cat([*made, torch.zeros(0)])


@dataclass(frozen=True, slots=True)
class _Lesson:
    """Example number → what of it is taught."""

    groups: list[str]
    texts: list[str]
    targets: list[list[int]]
    values: Pool
    aims: torch.Tensor
    alike: bool


def fit(
    examples: Sequence[Example],
    text: Text,
    *,
    epochs: int = EPOCHS,
    networks: int = NETWORKS,
    seconds: float = float("inf"),
    seed: int = 17,
    alike: bool = False,
) -> Tagger:
    """A tagger trained on `examples` in this process. Raises InputError when there is nothing to learn.

    Where `seconds` end before the epochs do, the learning rates fall to 0 with the time instead of with the steps.
    `alike`: the texts of a batch have like lengths. Descriptions, of ten words or fifty, then take 0.6 of the time.
    """
    schema = schema_of(examples)
    if not schema.attributes and not schema.concluded:
        raise InputError(f"{len(examples)} examples carry no attribute value: the tagger needs answered texts")
    groups, texts = [example.group for example in examples], [example.text for example in examples]
    targets = [align(example, schema.attributes) for example in examples]
    wanted = torch.stack([aims(example, schema) for example in examples])
    lesson = _Lesson(groups, texts, targets, pool(groups, texts, targets), wanted, alike)
    parts = [text_encoder.parts(text) for _ in range(networks)]
    model = Tagger([], parts[0][0], schema)
    begun = time.monotonic()
    for number, (_, encoder) in enumerate(parts):
        torch.manual_seed(seed + number)
        network = Network(encoder, schema)
        model.networks.append(network)
        ends = begun + seconds * (number + 1) / networks
        log.info("tagger: network %d of %d", number + 1, networks)
        _teach(model, network, lesson, epochs, ends, np.random.default_rng(seed + number))
    return model.eval()


def _teach(
    model: Tagger, network: Network, lesson: _Lesson, epochs: int, ends: float, rng: np.random.Generator
) -> None:
    """Train one of the networks, until `time.monotonic()` is `ends` at the latest."""
    of_encoder = list(network.encoder.parameters())
    head = [p for name, p in network.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": of_encoder, "lr": ENCODER_LR}, {"params": head, "lr": HEAD_LR}], weight_decay=0.01, fused=True
    )
    size = len(lesson.texts)
    steps = epochs * -(-size // BATCH)
    begun = time.monotonic()

    def done(step: int) -> float:
        return max(step / steps, (time.monotonic() - begun) / max(ends - begun, 1e-9))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(done(step)))
    network.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in _batches(lesson, rng):
            if time.monotonic() >= ends:
                log.info("tagger: time is up in epoch %d/%d", epoch + 1, epochs)
                return
            loss = _loss(model, network, lesson, rows, [_varied(lesson, row, rng) for row in rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        log.info("tagger: epoch %d/%d, loss %.4f", epoch + 1, epochs, total / size)


def _batches(lesson: _Lesson, rng: np.random.Generator) -> list[list[int]]:
    """The rows of an epoch in its order."""
    order = rng.permutation(len(lesson.texts)).tolist()
    if lesson.alike:
        stretches = [order[start : start + ALIKE * BATCH] for start in range(0, len(order), ALIKE * BATCH)]
        order = [row for rows in stretches for row in sorted(rows, key=lambda row: len(lesson.texts[row]))]
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return [batches[at] for at in rng.permutation(len(batches))] if lesson.alike else batches


def _varied(lesson: _Lesson, row: int, rng: np.random.Generator) -> tuple[str, list[int]]:
    """An example's text and labels, in VARIED of the cases with values exchanged."""
    share = EXCHANGED * (rng.random() < VARIED)
    return exchange(lesson.groups[row], lesson.texts[row], lesson.targets[row], lesson.values, rng, share)


def _rate(done: float) -> float:
    """Factor of the learning rates at a share of the training: linear up over WARM_UP, then linear down to 0."""
    return done / WARM_UP if done < WARM_UP else max(0.0, (1 - done) / (1 - WARM_UP))


def pool(groups: Sequence[str], texts: Sequence[str], targets: Sequence[list[int]]) -> Pool:
    """The labelled runs of all texts."""
    values: Pool = {}
    for group, text, labels in zip(groups, texts, targets, strict=True):
        at = tagger.words(text)
        for key, first, end in tagger.runs(labels):
            values.setdefault((group, key), []).append(text[at[first].start : at[end - 1].end])
    return values


def exchange(
    group: str, text: str, labels: list[int], values: Pool, rng: np.random.Generator, share: float
) -> tuple[str, list[int]]:
    """The text with a `share` of its labelled runs replaced by other values of their attribute, and its labels."""
    at = tagger.words(text)
    pieces: list[str] = []
    made: list[int] = []
    said = labelled = 0
    for key, first, end in tagger.runs(labels):
        if rng.random() >= share:
            continue
        choices = values[group, key]
        value = choices[rng.integers(len(choices))]
        pieces += [text[said : at[first].start], value]
        made += [*labels[labelled:first], 1 + 2 * key] + [2 + 2 * key] * (len(tagger.words(value)) - 1)
        said, labelled = at[end - 1].end, end
    new, new_labels = "".join([*pieces, text[said:]]), [*made, *labels[labelled:]]
    # A value beside a letter without a space would join its word: that text stays as it is.
    return (new, new_labels) if len(tagger.words(new)) == len(new_labels) else (text, labels)


def _hide(model: Tagger, batch: Batch) -> Batch:
    """The batch with HIDDEN of its tokens masked, where the tokenizer has a mask."""
    mask = model.tokenizer.mask_token_id
    if mask is None:
        return batch
    special = torch.isin(batch.ids, torch.tensor(model.tokenizer.all_special_ids))
    return replace(batch, ids=batch.ids.masked_fill((torch.rand(batch.ids.shape) < HIDDEN) & ~special, mask))


def _loss(
    model: Tagger, network: Network, lesson: _Lesson, rows: Sequence[int], labelled: Sequence[tuple[str, list[int]]]
) -> torch.Tensor:
    """Mean cross-entropy over the words of (text, labels), and of each concluded key over the texts that teach it."""
    batch = _hide(model, model.batch([lesson.groups[row] for row in rows], [text for text, _ in labelled]))
    wanted = torch.full_like(batch.shapes, IGNORED)
    for at, (_, labels) in enumerate(labelled):
        read = int((batch.shapes[at] > 0).sum())
        wanted[at, :read] = torch.tensor(labels[:read], dtype=torch.long)
    with tagger.reduced():
        scores = network(batch)
    loss = nn.functional.cross_entropy(scores.labels.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
    if not model.schema.concluded:
        return loss
    as_it_was = torch.tensor([text == lesson.texts[row] for row, (text, _) in zip(rows, labelled, strict=True)])
    taught = lesson.aims[torch.tensor(rows)] * as_it_was[:, None]
    for aim, logits in zip(
        taught.split(model.schema.choices, dim=1), scores.values.split(model.schema.choices, dim=1), strict=True
    ):
        loss = loss - (aim * logits.log_softmax(dim=1)).sum() / aim.sum().clamp(min=1)
    return loss


def save(model: Tagger, target: Path, *, inputs: Mapping[str, str], config: Mapping[str, Any], examples: int) -> None:
    """Write the tagger as an artifact; `config` is what else determined it."""
    with artifact.write(target, kind=tagger.KIND, version=tagger.VERSION, inputs=inputs, config=config) as draft:
        tagger.write(model, draft.path)
        draft.note(examples=examples, attributes=len(model.schema.attributes))
