"""Any OpenAI-compatible endpoint, through the `openai` SDK.

The SDK repeats what may pass: lost connections, time-outs, 408, 409, 429 and 5xx, with exponential back-off and
jitter. Below it, every attempt waits for the run's pace, and a Retry-After holds back all workers, not only the one
that was told. An answer that does not fit its schema is sent back once with what is wrong. The key comes from
REC_LLM_API_KEY and goes nowhere but into the header. Images go into the message as data, and the endpoint fetches none.
"""

import base64
import json
import os
import re
import threading
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import jsonschema

from rec import certificates
from rec.config import Enrich
from rec.enrich.completion import Completion
from rec.enrich.pace import Pace
from rec.errors import EndpointError, EngineError

KEY_VARIABLE = "REC_LLM_API_KEY"

MAX_FAILURES = 10
"""Prompts in a row without an answer, each after all its repetitions: then the endpoint is taken for down."""
BYTES_PER_TOKEN = 4
"""For the pace only: what the tokens of a request are taken for before the endpoint counts them."""
_URL = "data:image/jpeg;base64,"
_DATA = re.compile(re.escape(_URL).encode() + rb"[A-Za-z0-9+/=]*")
"""An image in the bytes of a request."""


def require(base_url: str) -> None:
    """Raise EngineError unless the SDK is installed and the key is set; a local endpoint may need none."""
    _sdk()
    if not base_url and not key():
        raise EngineError(
            f"{KEY_VARIABLE} is not set: export the key of the endpoint, or name another in enrich.base_url"
        )


def key() -> str:
    """The endpoint's key, empty for none: read where the job runs, workers have an environment of their own."""
    return os.environ.get(KEY_VARIABLE, "")


def _sdk() -> ModuleType:
    try:
        return import_module("openai")
    except ImportError as error:
        raise EngineError("the package openai is not installed: `pip install 'shop-rec[openai]'`") from error


def _http_client(sdk: ModuleType, **options: Any) -> Any:
    """The SDK's own client; its error for a certificate is one that newer SDKs do not know, and so do not repeat."""

    class Client(sdk.DefaultHttpxClient):  # type: ignore[name-defined]
        def send(self, request: Any, **more: Any) -> Any:
            try:
                return super().send(request, **more)
            except Exception as error:
                reason = certificates.fault(error)
                if reason is None:
                    raise
                raise EndpointError(
                    f"the certificate of the endpoint {request.url.host} is not accepted ({reason}): renew it, or name "
                    "in SSL_CERT_FILE, on every node, a file with the authority that signed it"
                ) from None

    return Client(**options)


class OpenAI:
    """A client of one endpoint and model. `complete` may be called by many threads."""

    def __init__(self, enrich: Enrich, pace: Pace | None, key: str) -> None:
        self._sdk = _sdk()
        self._enrich = enrich
        self._pace = pace
        self._key = key
        hooks = {"request": [self._wait], "response": [self._listen]}  # of every attempt, the SDK's repetitions too
        self._client = self._sdk.OpenAI(
            api_key=self._key or "none",
            base_url=enrich.base_url or None,
            max_retries=enrich.max_retries,
            timeout=enrich.timeout_s,
            http_client=_http_client(self._sdk, timeout=enrich.timeout_s, event_hooks=hooks),
        )
        self._where = f"{self._client.base_url.host}, model {enrich.model!r}"
        self._failures = 0
        self._lock = threading.Lock()

    def complete(
        self, prompt: str, schema: dict[str, Any], max_tokens: int, images: Sequence[bytes] = ()
    ) -> Completion:
        """See `rec.enrich.engine.Engine`. The tokens of a repaired answer are those of both attempts."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": _content(prompt, images)}]
        first = self._ask(messages, schema, max_tokens)
        problem = misfit(first.text, schema) if first.finished else None
        if problem is None:
            return first
        messages += again(first.text, problem)
        try:
            second = self._ask(messages, schema, max_tokens)
        except EngineError:
            return first  # it is paid for; whether the endpoint is down shows with the next product
        tokens = (first.tokens_in + second.tokens_in, first.tokens_out + second.tokens_out)
        return Completion(second.text, second.finished, *tokens)

    def _ask(self, messages: list[dict[str, Any]], schema: dict[str, Any], max_tokens: int) -> Completion:
        sdk, options = self._sdk, self._enrich
        form = {"type": "json_schema", "json_schema": {"name": "attributes", "strict": True, "schema": schema}}
        # OpenAI's own models refuse max_tokens, other servers may not know its successor and would write on
        cap = {"max_tokens" if options.base_url else "max_completion_tokens": max_tokens}
        try:
            answer = self._client.chat.completions.create(
                model=options.model, messages=messages, response_format=form, extra_body=options.request, **cap
            )
            choice = answer.choices[0]
            text = choice.message.content or ""
            used = answer.usage
            tokens = (used.prompt_tokens, used.completion_tokens) if used else self._most(messages, text)
            made = Completion(text, choice.finish_reason != "length", *tokens)
        except (sdk.AuthenticationError, sdk.PermissionDeniedError, sdk.NotFoundError) as error:
            raise EndpointError(
                f"the endpoint {self._where} refuses every call ({self._said(error)}): check {KEY_VARIABLE}, "
                "enrich.base_url and enrich.model"
            ) from None
        except (sdk.BadRequestError, sdk.UnprocessableEntityError) as error:  # of this prompt, such as too long a text
            raise EngineError(f"the endpoint {self._where} refuses this prompt: {self._said(error)}") from None
        except (sdk.OpenAIError, ValueError, TypeError, IndexError, AttributeError) as error:
            # the last four: a body that is no chat completion
            if isinstance(error.__cause__, EndpointError):  # of `_http_client`, which older SDKs repeat and wrap
                raise error.__cause__ from None
            self._count_failure(error)
            raise EngineError(f"the endpoint {self._where} gave no answer: {self._said(error)}") from None
        self._failures = 0
        return made

    def _count_failure(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            if self._failures < MAX_FAILURES:
                return
        raise EndpointError(
            f"the endpoint {self._where} gave no answer to {MAX_FAILURES} prompts in a row ({self._said(error)}): what "
            "was answered is kept; run again when it is up, or check enrich.base_url and enrich.timeout_s"
        ) from None

    def _wait(self, request: Any) -> None:
        if self._pace is not None:
            text, images = _DATA.subn(b"", request.content)
            shown = images * self._enrich.images.tokens_per_image
            self._pace.wait(len(text) // BYTES_PER_TOKEN + shown + self._enrich.max_output_tokens)

    def _listen(self, response: Any) -> None:
        seconds = _retry_after(response.headers.get("retry-after"))
        if self._pace is not None and seconds is not None:
            self._pace.hold(seconds)

    def _most(self, messages: list[dict[str, Any]], text: str) -> tuple[int, int]:
        """The most tokens that question and answer can be, for a server that does not count: a byte of text each."""
        parts = [
            part for m in messages for part in (m["content"] if isinstance(m["content"], list) else [m["content"]])
        ]
        told = [part if isinstance(part, str) else part.get("text") for part in parts]
        shown = told.count(None) * self._enrich.images.tokens_per_image
        return shown + sum(len(words.encode()) for words in told if words is not None), len(text.encode())

    def _said(self, error: Exception) -> str:
        """The error in one line, without the key, which some servers repeat."""
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return (line.replace(self._key, "***") if self._key else line)[:200]


def _content(prompt: str, images: Sequence[bytes]) -> str | list[dict[str, Any]]:
    """A message's content; without images the prompt itself."""
    if not images:
        return prompt
    urls = [_URL + base64.b64encode(image).decode() for image in images]
    return [{"type": "text", "text": prompt}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]


def again(text: str, problem: str) -> list[dict[str, str]]:
    """The messages that send an answer back with what is wrong with it."""
    said = f"That does not fit the JSON schema: {problem}. Answer again, with JSON alone."
    return [{"role": "assistant", "content": text}, {"role": "user", "content": said}]


def misfit(text: str, schema: dict[str, Any]) -> str | None:
    """What is wrong with an answer, in one line; None when it fits."""
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    except json.JSONDecodeError as error:
        return f"it is no JSON ({error})"
    except jsonschema.ValidationError as error:
        return f"{error.json_path}: {error.message}"[:300]
    return None


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header; a date is left to the SDK."""
    try:
        return None if value is None else min(max(float(value), 0.0), 3_600.0)
    except ValueError:
        return None
