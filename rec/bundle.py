"""Bundles: everything a server needs, in one immutable folder, and nothing executable.

    <store>/bundles/<id>/
        manifest.json       versions of bundle and parts, recipe, sizes, evaluation, input hashes, SHA-256 of all files
        config.json         the configuration, without the store's path
        metrics.json        the evaluation report
        products.parquet    what to show of each product, in item-row order
        vocabulary/ item_tower/ user_tower/ sources/ features/ ranker/    the stages' files
        fit_head/           where the recipe has fit.enabled

The id is the first 12 hex digits of the manifest's SHA-256, so equal content has one id wherever it is made, and a
changed byte anywhere is found. Files are safetensors, JSON, parquet, and the vocabulary's TOML.
"""

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from safetensors.numpy import load_file

from rec import artifact, weights
from rec.config import Config
from rec.errors import ArtifactError
from rec.models.encoder_files import ENCODER_FILES

VERSION = 3
MADE_BY = "python jobs/publish.py"
BUNDLE_ID = re.compile(r"[0-9a-f]{12}")
STAGED = ".tmp"
"""How the name of a folder ends that is being written or removed by who is `alone`."""
PULLED = ".pull"
"""How the name of a folder ends into which a bundle is being pulled; a killed pull goes on there."""
PARTS = ("vocabulary", "item_tower", "user_tower", "sources", "features", "ranker")
"""Artifacts whose files a bundle carries."""
FIT_HEAD = "fit_head"
"""The one that a bundle may have besides."""

_NAMES = pa.list_(pa.string())
_WORD = pa.dictionary(pa.int32(), pa.string())


def _attributes(word: pa.DataType) -> pa.DataType:
    """Those of rec.schema; `source` and `evidence` are null in bundles of before."""
    return pa.list_(
        pa.struct(
            [
                pa.field("key", word, nullable=False),
                pa.field("value", word, nullable=False),
                pa.field("source", word),
                pa.field("evidence", word),
            ]
        )
    )


DISPLAY = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("price", pa.float32()),  # as published; the live price is in the database
        pa.field("currency", pa.string()),
        pa.field("brand", pa.string()),
        pa.field("category", _NAMES, nullable=False),  # STD names
        pa.field("colour", _NAMES, nullable=False),  # STD names
        pa.field("std", _attributes(pa.string()), nullable=False),
        pa.field("re", _attributes(pa.string()), nullable=False),
        pa.field("snippet", pa.string(), nullable=False),  # first words of the description, plain text
        pa.field("available", pa.bool_(), nullable=False),
        pa.field("group_id", pa.string()),  # same style in another size or colour; null as well in bundles of before
    ]
)
COMPACT = pa.schema(
    [
        pa.field(field.name, _attributes(_WORD), nullable=False) if field.name in ("std", "re") else field
        for field in DISPLAY
    ]
)
"""The same with each word of the attributes once, for who keeps it: catalogues repeat them, and it takes a third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the evaluation said of the final list, beside the recipe's floor."""

    ndcg10: float | None
    """NDCG@10 of the final list; None when there was no user to evaluate."""
    floor: float
    floor_met: bool


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    path: Path
    id: str
    recipe: str
    """Name of the recipe that made it; the catalogue its products belong to."""
    items: int
    width: int
    data_until: datetime
    """When the last event happened that the bundle's data holds."""
    evaluation: Evaluation
    files: Mapping[str, Mapping[str, Any]]
    """Relative file name → `sha256` and `bytes`."""
    extends: str | None = None
    """Id of the bundle that it only has more products than, behind that one's."""
    root: str = ""
    """Id of the one that was trained: its own, or that of the first in the chain of those that it extends."""
    encoder_files: str | None = None
    """Digest of the files of the text encoder that it was made with, where that is a folder; None in bundles of before
    as well."""

    @functools.cached_property
    def config(self) -> Config:
        """The configuration that made the bundle; its store is the one the bundle lies in."""
        text = (self.path / "config.json").read_text(encoding="utf-8")
        try:
            return Config.model_validate({**json.loads(text), "store": str(self.path.parent.parent)})
        except ValidationError as error:
            raise ArtifactError(
                f"this program cannot read the configuration of bundle {self.id} "
                f"({error.error_count()} options are not as it knows them): run `{MADE_BY} --recipe {self.recipe}`"
            ) from error

    def said(self) -> dict[str, Any]:
        """What the manifest says beside the files."""
        manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        return {name: value for name, value in manifest.items() if name not in ("kind", "version", "files")}

    def folder(self, part: str) -> Path:
        """Folder of one of PARTS."""
        return self.path / part

    def has(self, part: str) -> bool:
        """Whether it carries a part that not every bundle has."""
        return self.folder(part).is_dir()

    def file_hash(self, name: str) -> str:
        """SHA-256 of one file."""
        return str(self.files[name]["sha256"])

    def products(self, columns: Sequence[str] | None = None, schema: pa.Schema = DISPLAY) -> pa.Table:
        """The display table in item-row order, or `columns` of it, under the schema DISPLAY or COMPACT."""
        return pq.read_table(self.path / "products.parquet", columns=columns, schema=schema)

    def product_ids(self) -> list[str]:
        """Product id of each item row."""
        names: list[str] = pq.read_table(self.path / "products.parquet", columns=["product_id"]).column(0).to_pylist()
        return names

    def item_vectors(self) -> np.ndarray:
        """float32[N, d] unit vectors in item-row order. Raises ArtifactError where the file has others."""
        with weights.reading(self.path / "user_tower" / "item_vectors.safetensors") as path:
            vectors = load_file(path)["item_vectors"]
        if vectors.shape != (self.items, self.width):
            raise ArtifactError(
                f"{path} holds vectors {vectors.shape}, bundle {self.id} says {self.items} items of width "
                f"{self.width}: remove {self.path} and run `{MADE_BY}`"
            )
        return vectors


def parts(config: Config) -> tuple[str, ...]:
    """Artifacts that a bundle of the recipe carries."""
    return (*PARTS, FIT_HEAD) if config.fit.enabled else PARTS


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time changes which bundles are in `folder`, so that what another one left is nobody's work."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released with the process, however it ends
        yield
    finally:
        os.close(handle)


def check_version(holder: str, part: str, version: int, made_by: str) -> None:
    """Raise ArtifactError when the program reads another version of `part` than `holder` has."""
    from rec.features import items as item_features  # here: what only asks whether a shop runs needs no torch
    from rec.models import fit_head, fused, user_tower
    from rec.sources import tables

    served = {
        "user_tower": user_tower.VERSION,
        "sources": tables.VERSION,
        "features": item_features.VERSION,
        "ranker": fused.VERSION,
        FIT_HEAD: fit_head.VERSION,
    }
    known = served.get(part, version)  # the other parts are carried for the record
    if version != known:
        raise ArtifactError(f"{holder} {part} version {version}, this program reads version {known}: run `{made_by}`")


def read(store: str | Path, name: str) -> Bundle:
    """Open the bundle `name` of a store and check its manifest and version; `verify` checks every byte."""
    check_id(name)
    path = Path(store).resolve() / "bundles" / name
    if not (path / "manifest.json").is_file():
        known = ", ".join(names(store)) or "none"
        raise ArtifactError(f"there is no bundle {name!r} in {path.parent} (there: {known}): run `{MADE_BY}`")
    return opened(path, name)


def opened(path: Path, name: str) -> Bundle:
    """The bundle `name` whose files lie, or are to lie, in the folder `path`; checked as `read` does."""
    text = (path / "manifest.json").read_bytes()
    if hashlib.sha256(text).hexdigest()[:12] != name:
        raise ArtifactError(
            f"the manifest of bundle {name} was changed after it was written: remove {path} and run `{MADE_BY}`"
        )
    manifest = json.loads(text)
    if manifest["version"] != VERSION:
        raise ArtifactError(
            f"bundle {name} is of version {manifest['version']}, this program reads version {VERSION}: run `{MADE_BY}`"
        )
    for part, version in manifest["parts"].items():
        check_version(f"bundle {name} holds", part, version, f"python jobs/pipeline.py --recipe {manifest['recipe']}")
    return Bundle(
        path=path,
        id=name,
        recipe=manifest["recipe"],
        items=manifest["items"],
        width=manifest["width"],
        data_until=datetime.fromisoformat(manifest["data_until"]),
        evaluation=Evaluation(**manifest["evaluation"]),
        files=manifest["files"],
        extends=manifest.get("extends"),
        root=manifest.get("root", name),
        encoder_files=manifest.get(ENCODER_FILES),
    )


def make(store: str | Path, fill: Callable[[Path], Mapping[str, Any]]) -> Bundle:
    """Make a bundle: `fill` puts its files into a folder and returns what the manifest says beside them.

    A bundle of the same content that is there already is returned as it is, unless it was damaged: then it is replaced.
    """
    folder = Path(store).resolve() / "bundles"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            name = _make(folder, store, fill)
    except OSError as error:
        raise ArtifactError(
            f"no bundle can be written to {folder} ({error}): see that the folder may be written to "
            "and that its disk has space left"
        ) from error
    return read(store, name)


def _make(folder: Path, store: str | Path, fill: Callable[[Path], Mapping[str, Any]]) -> str:
    for stale in folder.glob(f".*{STAGED}"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = folder / f".{uuid.uuid4().hex}{STAGED}"
    staging.mkdir()
    try:
        said = fill(staging)
        files = {
            path.relative_to(staging).as_posix(): {"sha256": artifact.hash_file(path), "bytes": path.stat().st_size}
            for path in sorted(path for path in staging.rglob("*") if path.is_file())
        }
        manifest = {"kind": "bundle", "version": VERSION, **said, "files": files}
        artifact.write_json(staging / "manifest.json", manifest)
        name = artifact.hash_file(staging / "manifest.json")[:12]
        if not sound(store, name):
            put(staging, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return name


def verify(bundle: Bundle) -> None:
    """Raise ArtifactError naming the first file that is missing, changed or not in the manifest."""
    remedy = f"remove {bundle.path} and run `{MADE_BY}`"
    present = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()} - {"manifest.json"}
    for name in sorted(present | set(bundle.files)):
        if name not in bundle.files:
            raise ArtifactError(f"bundle {bundle.id} holds {name}, which its manifest does not list: {remedy}")
        if name not in present:
            raise ArtifactError(f"bundle {bundle.id} lacks {name}: {remedy}")
        if artifact.hash_file(bundle.path / name) != bundle.files[name]["sha256"]:
            raise ArtifactError(f"{name} of bundle {bundle.id} was changed after it was written: {remedy}")


def sound(store: str | Path, name: str) -> bool:
    """Whether the bundle `name` is there with every byte it was made with."""
    try:
        verify(read(store, name))
    except ArtifactError:
        return False
    return True


def put(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`, in place of what is there; for who is `alone`."""
    if target.exists():
        os.rename(target, target.with_name(f".{uuid.uuid4().hex}{STAGED}"))
    os.rename(staging, target)
    for old in target.parent.glob(f".*{STAGED}"):
        shutil.rmtree(old, ignore_errors=True)


def prune(store: str | Path, recipe: str, keep: Collection[str], *, dry_run: bool = False) -> list[str]:
    """Remove the bundles of `recipe` but those of `keep`; returns their ids, oldest first."""
    folder = Path(store).resolve() / "bundles"
    removed = []
    if not folder.is_dir():
        return []
    with alone(folder):
        for name in names(store):
            if name not in keep and _recipe(folder / name) == recipe:
                removed.append(name)
                if not dry_run:
                    _remove(folder / name)
    return removed


def remove(store: str | Path, gone: Collection[str]) -> None:
    """Remove bundles by id; one that is not there is passed over."""
    folder = Path(store).resolve() / "bundles"
    with alone(folder):
        for name in gone:
            if (folder / name).is_dir():
                _remove(folder / name)


def _remove(path: Path) -> None:
    aside = path.with_name(f".{uuid.uuid4().hex}{STAGED}")
    os.rename(path, aside)  # a bundle is there whole or not at all
    shutil.rmtree(aside)


def _recipe(path: Path) -> str | None:
    """The recipe of the bundle in a folder; None where its manifest cannot be read, so that nobody removes it."""
    try:
        return str(json.loads((path / "manifest.json").read_text(encoding="utf-8"))["recipe"])
    except (ValueError, KeyError, TypeError):
        return None


def leftovers(store: str | Path, *, dry_run: bool = False) -> list[str]:
    """Remove what processes that were killed left in their staging folders; returns the folders' names."""
    folder = Path(store).resolve() / "bundles"
    found: list[str] = []
    if not folder.is_dir():
        return found
    with alone(folder):
        for path in sorted((*folder.glob(f".*{STAGED}"), *folder.glob(f".*{PULLED}"))):
            with _unused(path) as unused:
                if unused:
                    found.append(path.name)
                    if not dry_run:
                        shutil.rmtree(path)
    return found


@contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Whether nobody is `alone` with `folder`; if so, nobody gets to be meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def check_id(name: str) -> None:
    """Raise ArtifactError for what is no bundle id, before it becomes part of a path."""
    if not BUNDLE_ID.fullmatch(name):
        raise ArtifactError(f"{name!r} is no bundle id (12 hexadecimal digits): see `python jobs/bundles.py list`")


def names(store: str | Path) -> list[str]:
    """Ids of the bundles in a store, oldest first."""
    folder = Path(store).resolve() / "bundles"
    found = [path.parent for path in folder.glob("[0-9a-f]*/manifest.json")]
    return [path.name for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))]
