"""The embedded engine itself: constrained, deterministic, closed to others."""

import http.client
import json
import sys
import urllib.error
import urllib.request

import psutil
import pytest

from rec.data.sample.catalogue import catalogue
from rec.enrich import llamacpp
from rec.enrich.llamacpp import LlamaCpp
from rec.enrich.prompt import prompt, schema
from rec.enrich.text import canonical
from rec.errors import EngineError
from rec.vocab.std import StdVocabulary


@pytest.fixture(scope="module")
def engine() -> LlamaCpp:
    return LlamaCpp("gemma3-270m", 1)


@pytest.mark.slow
def test_an_answer_fits_its_schema_and_depends_on_its_prompt_alone(engine: LlamaCpp) -> None:
    texts = [canonical(row, 1_200) for row in catalogue().products[1:3]]
    forms = [schema(text, StdVocabulary.load(), [], set()) for text in texts]
    first = engine.complete(prompt(texts[0], []), forms[0], 100)
    other = engine.complete(prompt(texts[1], []), forms[1], 100)
    again = engine.complete(prompt(texts[0], []), forms[0], 100)
    assert first == again
    assert first.text != other.text
    assert first.finished
    for phrases in json.loads(first.text).values():
        assert all(texts[0].span(phrase) for phrase in phrases)

    cut = engine.complete(prompt(texts[0], []), forms[0], 5)
    assert not cut.finished
    assert cut.tokens_out == 5


@pytest.mark.slow
def test_a_prompt_beyond_the_context_is_refused_in_one_sentence(engine: LlamaCpp) -> None:
    with pytest.raises(EngineError, match="refused a prompt of 20000 characters"):
        engine.complete("warm " * 4_000, {"type": "object"}, 5)


@pytest.mark.slow
@pytest.mark.usefixtures("engine")
def test_the_loopback_port_of_llama_cpp_answers_nobody() -> None:
    answered = []
    for socket in psutil.Process().net_connections("tcp"):
        if socket.status == psutil.CONN_LISTEN:  # Ray, when another test has started it, listens too, but not to HTTP
            request = urllib.request.Request(
                f"http://127.0.0.1:{socket.laddr.port}/completion",
                data=b'{"prompt": "x", "n_predict": 1}',
                headers={"Content-Type": "application/json"},
            )
            try:
                answered.append(urllib.request.urlopen(request, timeout=10).status)
            except urllib.error.HTTPError as refused:
                answered.append(refused.code)
            except (OSError, http.client.HTTPException):
                continue
    assert answered == [401]


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(EngineError, match=r"xllamacpp is not installed: `pip install 'shop-rec\[embedded\]'`"):
        llamacpp.require("gemma3-270m")
