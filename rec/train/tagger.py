"""Training of the tagger from texts whose attribute values are known: gold labels, or an engine's grounded answers.

Values are aligned weakly: all places where the text says the value, at word boundaries and case-insensitively. A
longer value claims its words before a shorter one; a value that the text does not say teaches nothing.
"""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rec import artifact
from rec.config import Text
from rec.errors import InputError
from rec.models import tagger, text_encoder
from rec.models.tagger import IGNORED, Schema, Tagger

EPOCHS = 15
BATCH = 16
ENCODER_LR = 1.5e-4
HEAD_LR = 2e-3
WARM_UP = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """A text of a group, and attribute → accepted values."""

    group: str
    text: str
    values: Mapping[str, Sequence[str]]


def schema_of(examples: Sequence[Example]) -> Schema:
    """Each group's attributes: those that one of its examples has."""
    groups: dict[str, set[str]] = {}
    for example in examples:
        groups.setdefault(example.group, set()).update(example.values)
    return Schema(groups={group: sorted(names) for group, names in sorted(groups.items())})


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


def fit(
    examples: Sequence[Example], text: Text, *, epochs: int = EPOCHS, seconds: float = float("inf"), seed: int = 17
) -> Tagger:
    """A tagger trained on `examples` in this process. Raises InputError when there is nothing to learn.

    Where `seconds` end before the epochs do, the learning rates fall to 0 with the time instead of with the steps.
    """
    schema = schema_of(examples)
    if not schema.attributes:
        raise InputError(f"{len(examples)} examples carry no attribute value: the tagger needs answered texts")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer, encoder = text_encoder.parts(text)
    model = Tagger(encoder, tokenizer, schema)
    targets = [align(example, schema.attributes) for example in examples]
    head = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": encoder.parameters(), "lr": ENCODER_LR}, {"params": head, "lr": HEAD_LR}], weight_decay=0.01
    )
    steps = epochs * -(-len(examples) // BATCH)
    begun = time.monotonic()

    def done(step: int) -> float:
        return max(step / steps, (time.monotonic() - begun) / seconds)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(done(step)))
    for epoch in range(epochs):
        model.train()
        total = 0.0
        order = rng.permutation(len(examples)).tolist()
        for start in range(0, len(order), BATCH):
            if time.monotonic() - begun >= seconds:
                log.info("tagger: time is up in epoch %d/%d", epoch + 1, epochs)
                return model.eval()
            rows = order[start : start + BATCH]
            loss = _loss(model, [examples[row] for row in rows], [targets[row] for row in rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        log.info("tagger: epoch %d/%d, loss %.4f", epoch + 1, epochs, total / len(examples))
    return model.eval()


def _rate(done: float) -> float:
    """Factor of the learning rates at a share of the training: linear up over WARM_UP, then linear down to 0."""
    return done / WARM_UP if done < WARM_UP else max(0.0, (1 - done) / (1 - WARM_UP))


def _loss(model: Tagger, examples: Sequence[Example], targets: Sequence[list[int]]) -> torch.Tensor:
    """Mean cross-entropy over the words; bfloat16 inside the encoder."""
    batch = model.batch([e.group for e in examples], [e.text for e in examples])
    wanted = torch.full_like(batch.shapes, IGNORED)
    for row, labels in enumerate(targets):
        read = int((batch.shapes[row] > 0).sum())
        wanted[row, :read] = torch.tensor(labels[:read], dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch)
    return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def save(model: Tagger, target: Path, *, inputs: Mapping[str, str], config: Mapping[str, Any], examples: int) -> None:
    """Write the tagger as an artifact; `config` is what else determined it."""
    with artifact.write(target, kind=tagger.KIND, version=tagger.VERSION, inputs=inputs, config=config) as draft:
        tagger.write(model, draft.path)
        draft.note(examples=examples, attributes=len(model.schema.attributes))
