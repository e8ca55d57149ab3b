"""The answers shipped with the sample catalogue are those of the current text, prompt and vocabulary."""

import json

from rec.config import load
from rec.data.sample.catalogue import catalogue
from rec.enrich import imports
from rec.enrich.prompt import PROMPT_VERSION
from rec.enrich.text import canonical
from rec.vocab.std import StdVocabulary

REMEDY = (
    "the shipped answers are stale: run `python jobs/enrich.py --recipe demo --set 'enrich.answers=[]' "
    "--set enrich.max_calls=400` and then "
    "`python jobs/enrich.py --recipe demo --export rec/data/sample/answers.jsonl --leave-out-every 16`"
)


def test_every_shipped_answer_is_a_hit_and_the_demo_has_something_left_to_ask() -> None:
    config = load("demo")
    texts = {row["product_id"]: canonical(row, config.enrich.max_text_chars) for row in catalogue().products}
    path = imports.locate(imports.SAMPLE, config.source.folder)
    shipped = list(imports.read(path, {}))
    assert len({found.product_id for found in shipped}) == len(shipped)
    for found in shipped:
        assert found.product_id in texts, REMEDY
        now = (
            texts[found.product_id].content_hash,
            config.enrich.model,
            PROMPT_VERSION,
            StdVocabulary.load().version,
        )
        then = (found.content_hash, found.answer.model, found.answer.prompt_version, found.vocab_version)
        assert then == now, f"{found.product_id}: {REMEDY}"
        assert found.answer.tokens_out > 0
        assert "re" in json.loads(found.answer.body)
    answered = {found.content_hash for found in shipped}
    left = {text.content_hash for text in texts.values()} - answered
    assert 20 <= len(left) <= 30, f"{len(left)} texts are left to ask: {REMEDY}"
    assert config.enrich.max_calls is not None
    assert len(left) <= config.enrich.max_calls
