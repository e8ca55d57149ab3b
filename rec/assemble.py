"""Assembles the bundle of a recipe: the files of its finished stages, which must have been made of one another."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.numpy import load_file
from selectolax.lexbor import LexborHTMLParser

from rec import artifact, bundle, dataset, weights
from rec.bundle import Bundle, Evaluation
from rec.config import Branch, Config, Source
from rec.errors import ArtifactError
from rec.models import encoder_files
from rec.models.encoder_files import ENCODER_FILES
from rec.schema import ENRICHED, INTERACTIONS, PRODUCTS

CHECKED = ("enriched", "tensors", "vectors", "samples", "evaluation")
"""Artifacts that must have been made of the ones that are there now, beside the parts of the bundle."""
READ_TEXTS = ("tensors", "text_states", "user_tower")
"""Artifacts made with the text encoder that the item tower was made with."""
PLACES = {
    **{name: f"source.{name}" for name in Source.model_fields},
    "source": "source.kind",
    "encoder": "text.encoder",
    "min_count": "vocab.min_count",
    "max_re_tokens": "vocab.max_re_tokens",
    "width": "item_tower.width",
    "history": "user_tower.history",
    "exclude_seen": "user_tower.exclude_seen",
    "temperature": "user_tower.temperature",
    "candidates": "ranker.candidates",
    "quotas": "ranker.quotas",
    "max_users": "ranker.max_users",
    "re_tokens": "ranker.re_tokens",
}
"""Where the configuration has the options that manifests state outside their branch."""
SUFFIXES = (".safetensors", ".json", ".parquet", ".toml")
PAGE = ".html"
"""A page for people, such as learning curves; no server needs it."""
SNIPPET_CHARS = 280


def create(config: Config) -> Bundle:
    """Assemble the bundle of a recipe's finished stages."""
    return bundle.make(config.store, lambda staging: _fill(staging, config))


def _fill(staging: Path, config: Config) -> dict[str, Any]:
    """Put all files into `staging`; returns what the manifest says beside them."""
    _check_lineage(config)
    files = _encoder_files(config)
    parts = {part: _copy_part(config, part, staging / part) for part in bundle.parts(config)}
    inputs = {part: manifest.content_hash for part, manifest in parts.items()}
    evaluation, inputs["evaluation"] = _copy_evaluation(config, staging / "metrics.json")
    table = display(config)
    inputs["products"] = dataset.read_manifest(config.at("products"), PRODUCTS).content_hash
    inputs["enriched"] = dataset.read_manifest(config.at("enriched"), ENRICHED).content_hash
    pq.write_table(table, staging / "products.parquet", compression="zstd")
    artifact.write_json(staging / "config.json", config.model_dump(mode="json", exclude={"store"}))
    with weights.reading(staging / "user_tower" / "item_vectors.safetensors") as path:
        vectors = load_file(path)["item_vectors"]
    if len(vectors) != table.num_rows:
        raise ArtifactError(
            f"{config.at('user_tower')} holds {len(vectors)} item vectors for {table.num_rows} products: "
            "run `python jobs/pipeline.py` again"
        )
    return {
        "parts": {part: manifest.version for part, manifest in parts.items()},
        "recipe": config.name,
        "items": table.num_rows,
        "width": int(vectors.shape[1]),
        "data_until": _data_until(config).isoformat(),
        "evaluation": asdict(evaluation),
        "inputs": inputs,
        **({} if files is None else {ENCODER_FILES: files}),
    }


def _check_lineage(config: Config) -> None:
    """Raise ArtifactError when an artifact was made of other inputs, or with other options, than are there now.

    A job that ran alone leaves such a mixture: item vectors of one tower beside a ranker that learnt from another, or
    a ranker that learnt with options which the bundle's configuration would not have.
    """
    remedy = f"run `python jobs/pipeline.py --recipe {config.name}` first"
    found = {name: artifact.peek(config.at(name)) for name in (*CHECKED, *bundle.parts(config))}
    for name, manifest in found.items():
        for source, content_hash in manifest.inputs.items() if manifest is not None else ():
            present = found[source] if source in found else artifact.peek(config.at(source))
            if present is not None and present.content_hash != content_hash:
                raise ArtifactError(
                    f"{config.at(name)} was made of another {source} than {config.at(source)} holds: {remedy}"
                )
    tree = config.model_dump(mode="json")
    for name, manifest in {"products": artifact.peek(config.at("products")), **found}.items():
        for key, stated in manifest.config.items() if manifest is not None else ():
            branch = getattr(config, key, None)
            made_with = (
                branch.complete(stated) if isinstance(branch, Branch) and isinstance(stated, Mapping) else stated
            )
            for option, before, now in _contradictions(tree, PLACES.get(key, key), made_with):
                raise ArtifactError(
                    f"{config.at(name)} was made with {option} = {before!r}, but {now!r} is to be published: "
                    f"give the options it was made with, or {remedy} with the new ones"
                )


def _encoder_files(config: Config) -> str | None:
    """The digest of the encoder's files that all artifacts state which need one. Raises ArtifactError for a mixture."""
    tower = artifact.peek(config.at("item_tower"))
    wanted = None if tower is None else encoder_files.stated(tower.config)
    for name in READ_TEXTS:
        made = artifact.peek(config.at(name))
        if made is None or (name == "user_tower" and "text" not in made.config):  # reads no context
            continue
        encoder_files.check(
            config.at(name),
            encoder_files.stated(made.config),
            wanted,
            encoder=config.text.encoder,
            reader=f"the item tower in {config.at('item_tower')}",
            remedy=f"run `python jobs/pipeline.py --recipe {config.name}` first",
        )
    return wanted


def _contradictions(tree: Mapping[str, Any], option: str, made_with: Any) -> Iterator[tuple[str, Any, Any]]:
    """(option, its value then, its value in `tree`) of the options under `option` that differ."""
    now: Any = tree
    for part in option.split("."):
        if not isinstance(now, Mapping) or part not in now:
            return  # no option, but another fact of the work
        now = now[part]
    if isinstance(made_with, Mapping) and isinstance(now, Mapping):
        for name, value in made_with.items():
            yield from _contradictions(tree, f"{option}.{name}", value)
    elif now != made_with:
        yield option, made_with, now


def _copy_part(config: Config, part: str, target: Path) -> artifact.Manifest:
    """Copy an artifact's files; returns its manifest."""
    source = config.at(part)
    manifest = artifact.peek(source)
    if manifest is None:
        raise ArtifactError(
            f"{source} holds no finished {part}: run `python jobs/pipeline.py --recipe {config.name}` first"
        )
    artifact.verify(source, manifest)
    bundle.check_version(f"{source} holds", part, manifest.version, f"python jobs/pipeline.py --recipe {config.name}")
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != artifact.MANIFEST and path.suffix != PAGE:
            if path.suffix not in SUFFIXES:
                raise ArtifactError(
                    f"{path} is not one of {', '.join(SUFFIXES)} and cannot go into a bundle: "
                    f"run the job of {part} again"
                )
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return manifest


def _copy_evaluation(config: Config, target: Path) -> tuple[Evaluation, str]:
    source = config.at("evaluation")
    manifest = artifact.peek(source)
    if manifest is None:
        raise ArtifactError(
            f"{source} holds no finished evaluation: run `python jobs/evaluate.py --recipe {config.name}` first"
        )
    artifact.verify(source, manifest)
    shutil.copyfile(source / "report.json", target)
    report = json.loads(target.read_text(encoding="utf-8"))
    ndcg10 = final_ndcg10(report)
    floor = config.evaluate.floor_ndcg10
    return Evaluation(
        ndcg10=ndcg10, floor=floor, floor_met=floor == 0 or (ndcg10 is not None and ndcg10 >= floor)
    ), manifest.content_hash


def final_ndcg10(report: Mapping[str, Any]) -> float | None:
    """NDCG@10 of the final list over all evaluated users; None where it was not measured."""
    figures = report["slices"]["all"]["figures"]
    if "final" not in figures or "ndcg@10" not in figures["final"]:
        return None
    return float(figures["final"]["ndcg@10"]["value"])


def display(config: Config) -> pa.Table:
    """The display table of a recipe's products, under the schema bundle.DISPLAY."""
    shown = ["product_id", "title", "price", "currency", "brand", "available", "group_id"]
    products = dataset.read(config.at("products"), PRODUCTS, columns=[*shown, "description", "html"])
    enriched = dataset.read(config.at("enriched"), ENRICHED, columns=["product_id", "std", "re"])
    if not products["product_id"].equals(enriched["product_id"]):
        raise ArtifactError(
            f"{config.at('enriched')} has other products than {config.at('products')}: "
            "run `python jobs/enrich.py` again"
        )
    tables = []
    for start in range(0, products.num_rows, dataset.ROWS_PER_GROUP):
        pairs = zip(*(t.slice(start, dataset.ROWS_PER_GROUP).to_pylist() for t in (products, enriched)), strict=True)
        rows = [
            {
                **{name: product[name] for name in shown},
                "category": [a["value"] for a in found["std"] if a["key"] == "category"],
                "colour": [a["value"] for a in found["std"] if a["key"] == "colour"],
                "std": found["std"],
                "re": found["re"],
                "snippet": _snippet(product["description"] or product["html"] or ""),
            }
            for product, found in pairs
        ]
        tables.append(pa.Table.from_pylist(rows, schema=bundle.DISPLAY))
    return pa.concat_tables(tables) if tables else bundle.DISPLAY.empty_table()


def _data_until(config: Config) -> datetime:
    """Time of the last event, or of the last launch where there are no events."""
    times = dataset.read(config.at("events"), INTERACTIONS, columns=["at"])["at"]
    if not len(times):
        times = dataset.read(config.at("products"), PRODUCTS, columns=["created_at"])["created_at"]
    last: datetime | None = pc.max(times).as_py()
    return last or datetime.fromtimestamp(0, UTC)


def _snippet(text: str) -> str:
    """The first SNIPPET_CHARS characters of `text` without markup, on one line, cut at a space."""
    if "<" in text:
        page = LexborHTMLParser(text)
        page.strip_tags(["head", "script", "style", "noscript", "template", "svg"], recursive=True)
        text = page.text(separator=" ")
    line = " ".join(text.split())
    if len(line) <= SNIPPET_CHARS:
        return line
    return line[:SNIPPET_CHARS].rsplit(" ", 1)[0] + "…"
