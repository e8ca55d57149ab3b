"""Tensorization: products + enriched → vocabulary (grown) and tensors, in three passes over Ray Data.

    count      tokens and values per product; one reduce in this process grows the RE vocabulary, its only writer
    group      which products must not be each other's negatives (`rec.vocab.groups`)
    tensorize  ids of every product, in product order

The artifact `vocabulary` holds `std.toml` (the copy that ids refer to), `re.json` and `drift.json`. A store's own
vocabulary is extended when the products change; `vocab.extend` gives a new store one to begin with.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from rec import artifact, dataset, runtime
from rec import log as progress
from rec.config import Config
from rec.errors import ArtifactError
from rec.models import text_encoder
from rec.schema import ENRICHED, PRODUCTS, TENSORS
from rec.vocab import drift, groups, std
from rec.vocab.counting import Files, count
from rec.vocab.re import UNKNOWN_ID, ReVocabulary
from rec.vocab.rows import Tensorize
from rec.vocab.std import StdVocabulary

KIND = "vocabulary"
VERSION = 1
MADE_BY = TENSORS.made_by

TASKS = 2
"""Row groups read at once, and actors with a tokenizer: each holds some hundred MiB."""

log = logging.getLogger(__name__)


def manifest(folder: Path) -> artifact.Manifest:
    """The checked manifest of a `vocabulary` artifact."""
    return artifact.read(folder, kind=KIND, version=VERSION, made_by=MADE_BY)


def run(config: Config) -> dict[str, Any]:
    """Write `vocabulary` and `tensors` unless they are done. Returns paths, counts and seconds as JSON values."""
    started = time.monotonic()
    inputs, files = _read(config)
    made = _finished_vocabulary(config, inputs)
    grown = made is None
    if made is None:
        _start(config)
        made = _grow(config, inputs, files)
    where = {"vocabulary": str(config.at("vocabulary")), "tensors": str(config.at("tensors"))}
    work: dict[str, Any] = {
        "inputs": {**inputs, "vocabulary": made.content_hash},
        "config": _tensors_config(config),
    }
    done = artifact.finished(config.at("tensors"), kind=TENSORS.kind, version=TENSORS.version, **work)
    if done is not None:
        return {**where, **made.facts, **done.facts, "skipped": not grown}
    if not grown:
        _start(config)
    facts: dict[str, Any] = {}
    done = dataset.write(
        config.at("tensors"), TENSORS, _tensors(config, config.at("vocabulary"), files, facts), **work, facts=facts
    )
    result = {**where, **made.facts, **done.facts, "seconds": round(time.monotonic() - started, 1)}
    log.info("tensorized %s", ", ".join(f"{name} {value}" for name, value in result.items() if name not in where))
    return result


def place(config: Config, vocabulary: Path) -> artifact.Manifest:
    """Write `tensors` by the vocabulary in a folder as it is: what it does not know becomes unknown, and nothing grows.

    Groups are numbered among these products alone.
    """
    inputs, files = _read(config)
    _check(files, StdVocabulary.load(vocabulary / "std.toml"))
    work: dict[str, Any] = {
        "inputs": {**inputs, "vocabulary": artifact.hash_folder(vocabulary)},
        "config": _tensors_config(config),
    }
    done = artifact.finished(config.at("tensors"), kind=TENSORS.kind, version=TENSORS.version, **work)
    if done is not None:
        return done
    _start(config)
    facts: dict[str, Any] = {}
    return dataset.write(config.at("tensors"), TENSORS, _tensors(config, vocabulary, files, facts), **work, facts=facts)


def unknown(config: Config, vocabulary: Path) -> dict[str, dict[str, int]]:
    """Products in `tensors` that say something which the vocabulary in a folder lacks: `std` and `re`, each by key."""
    table = dataset.read(config.at("tensors"), TENSORS, ["std_key", "std_id", "re_key", "re_id"])
    std, re = StdVocabulary.load(vocabulary / "std.toml"), ReVocabulary.load(vocabulary / "re.json")
    values, words = (_occurrences(table, kind) for kind in ("std", "re"))
    by_value = {key: values[std.key_id(key), std.unknown_id(key)] for key in std.keys}
    by_word = {key: words[key_id, UNKNOWN_ID] for key_id, key in enumerate(re.keys, start=1)}
    return {
        "std": {key: count for key, count in by_value.items() if count},
        "re": {key: count for key, count in by_word.items() if count},
    }


def _occurrences(table: pa.Table, kind: str) -> Counter[tuple[int, int]]:
    """Products by (key id, id); a product has each pair once."""
    keys, ids = (pc.list_flatten(table[f"{kind}_{part}"]).to_pylist() for part in ("key", "id"))
    return Counter(zip(keys, ids, strict=True))


def _read(config: Config) -> tuple[dict[str, str], Files]:
    """Content hashes of the datasets that are read, and where they are."""
    inputs = {
        "products": dataset.read_manifest(config.at("products"), PRODUCTS).content_hash,
        "enriched": dataset.read_manifest(config.at("enriched"), ENRICHED).content_hash,
    }
    return inputs, Files(dataset.part(config.at("enriched"), ENRICHED), dataset.part(config.at("products"), PRODUCTS))


def _tensors_config(config: Config) -> dict[str, Any]:
    files = text_encoder.files(config.text, artifact.peek(config.at("tensors")))
    return {"max_re_tokens": config.vocab.max_re_tokens, "text": config.text.identity() | files}


def _start(config: Config) -> None:
    text_encoder.load_tokenizer(config.text)  # in this process first: a wrong option must fail before any actor starts
    runtime.start(config.cpus)


def _vocabulary_work(config: Config, inputs: dict[str, str], previous: str | None) -> dict[str, Any]:
    """What determines a vocabulary; `previous` is the content hash of the one it extends."""
    extended = {} if previous is None else {"previous": previous}
    return {
        "kind": KIND,
        "version": VERSION,
        "inputs": {"enriched": inputs["enriched"], "std": sha256(std.shipped().encode()).hexdigest(), **extended},
        "config": {"min_count": config.vocab.min_count},
    }


def _finished_vocabulary(config: Config, inputs: dict[str, str]) -> artifact.Manifest | None:
    found = artifact.peek(config.at("vocabulary"))
    if found is None:
        return None
    return artifact.finished(config.at("vocabulary"), **_vocabulary_work(config, inputs, found.inputs.get("previous")))


def _grow(config: Config, inputs: dict[str, str], files: Files) -> artifact.Manifest:
    """Count, grow the vocabulary of this store, else that of `vocab.extend`, else an empty one, and write it."""
    target = config.at("vocabulary")
    begin = target if artifact.peek(target) is not None else Path(config.vocab.extend) if config.vocab.extend else None
    hashed = None if begin is None else manifest(begin).content_hash
    shipped = StdVocabulary.load()
    if begin is not None:
        shipped.check_keeps(StdVocabulary.load(begin / "std.toml"), str(begin / "std.toml"))
    old = ReVocabulary([], []) if begin is None else ReVocabulary.load(begin / "re.json")
    _check(files, shipped)
    counts = _count(files)
    _check_values(counts, shipped)
    new = old.grow(counts.tokens, config.vocab.min_count, shipped.keys)
    report = drift.report(counts, shipped.keys, new, old)
    drift.check(report, max_unknown=config.vocab.max_unknown, max_dead=config.vocab.max_dead)
    with artifact.write(target, **_vocabulary_work(config, inputs, hashed)) as draft:
        (draft.path / "std.toml").write_text(std.shipped(), encoding="utf-8")
        new.save(draft.path / "re.json")
        artifact.write_json(draft.path / "drift.json", report)
        draft.note(
            std_ids=shipped.num_ids,
            re_tokens=new.num_tokens,
            new_tokens=report["new_tokens"]["count"],
            dead_tokens=report["dead_tokens"]["count"],
        )
    return manifest(target)


def _check(files: Files, vocabulary: StdVocabulary) -> None:
    """The two files hold the same products in the same order, under the present vocabulary."""
    enriched = pq.read_table(files.enriched, columns=["product_id", "vocab_version"])
    products = pq.read_table(files.products, columns=["product_id"])
    if not enriched.column("product_id").equals(products.column("product_id")):
        raise ArtifactError(f"enriched does not hold the products of {files.products}: run `{ENRICHED.made_by}` again")
    versions = [v for v in pc.unique(enriched.column("vocab_version")).to_pylist() if v != vocabulary.version]
    if versions:
        raise ArtifactError(
            f"enriched is of vocabulary {versions[0]!r}, the present one is {vocabulary.version!r}: "
            f"run `{ENRICHED.made_by}` again"
        )


def _check_values(counts: drift.Counts, vocabulary: StdVocabulary) -> None:
    for key, value in counts.std:
        if key not in vocabulary.keys or value not in (std.UNKNOWN, *vocabulary.values(key)):
            raise ArtifactError(
                f"enriched has the STD value {value!r} under {key!r}, which vocabulary {vocabulary.version!r} lacks: "
                f"run `{ENRICHED.made_by}` again"
            )
    for key, _ in counts.re:
        if key not in vocabulary.keys:
            raise ArtifactError(f"enriched has RE values under the unknown key {key!r}: run `{ENRICHED.made_by}` again")


def _tasks(files: Files) -> int:
    return max(1, min(TASKS, pq.ParquetFile(files.products).num_row_groups))


def _row_groups(files: Files) -> ray.data.Dataset:
    """The numbers of the row groups, one a block, in order."""
    total = pq.ParquetFile(files.products).num_row_groups
    numbers = ray.data.range(total, override_num_blocks=max(1, total))
    numbers.context.execution_options.preserve_order = True
    numbers.context.enable_progress_bars = False
    return numbers


def _tables(data: ray.data.Dataset) -> Iterator[pa.Table]:
    for batch in data.iter_batches(batch_format="pyarrow", batch_size=None):
        assert isinstance(batch, pa.Table)
        yield batch


def _count(files: Files) -> drift.Counts:
    counts = drift.Counts()
    rows = pq.ParquetFile(files.products).metadata.num_rows
    counted = _mapped(files, partial(count, files=files))
    with progress.bar(total=rows, what="count attributes") as bar:
        for batch in _tables(counted):
            before = counts.products
            counts.add(batch)
            bar.update(counts.products - before)
    return counts


def _mapped(files: Files, task: Callable[[pa.Table], pa.Table]) -> ray.data.Dataset:
    """What `task` makes of each row group, in order."""
    return _row_groups(files).map_batches(
        task, batch_format="pyarrow", batch_size=None, compute=ray.data.TaskPoolStrategy(_tasks(files))
    )


def _tensors(config: Config, folder: Path, files: Files, facts: dict[str, Any]) -> Iterator[pa.Table]:
    """Rows of TENSORS in product order, by the vocabulary in `folder`."""
    numbers = groups.number(_tables(_mapped(files, partial(groups.keys, files=files))))
    made = _row_groups(files).map_batches(
        Tensorize,
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(_tasks(files), config.cpus - 1)),
        fn_constructor_args=(
            files,
            (folder / "std.toml").read_text(encoding="utf-8"),
            ReVocabulary.load(folder / "re.json"),
            config.vocab.max_re_tokens,
            config.text,
        ),
    )
    rows = cut = 0
    with progress.bar(total=pq.ParquetFile(files.products).metadata.num_rows, what="tensorize") as bar:
        for batch in _tables(made):
            cut += pc.sum(batch.column("re_cut")).as_py() or 0
            bar.update(batch.num_rows)
            yield batch.append_column("group", pa.array(numbers[rows : rows + batch.num_rows]))
            rows += batch.num_rows
    facts |= {"groups": len(np.unique(numbers)), "re_tokens_cut": cut}
