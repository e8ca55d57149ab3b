"""The answers shipped with the sample catalogue are those of the current text, prompt and vocabulary."""

import json

from rec.config import load
from rec.data.sample import LAUNCH, generate
from rec.enrich import imports
from rec.enrich.prompt import PROMPT_VERSION
from rec.enrich.text import canonical
from rec.vocab.std import StdVocabulary

REMEDY = (
    "the shipped answers are stale: run `python jobs/enrich.py --recipe demo --set 'enrich.answers=[]' "
    "--set enrich.max_calls=400` and then "
    "`python jobs/enrich.py --recipe demo --export rec/data/sample/answers.jsonl --created-before 2025-04-21`"
)


def test_every_shipped_answer_is_a_hit_and_the_demo_has_something_left_to_ask() -> None:
    config = load("demo")
    products = generate(config.seed).products
    texts = {row["product_id"]: canonical(row, config.enrich.max_text_chars) for row in products}
    path = imports.locate(imports.SAMPLE, config.source.folder)
    shipped = list(imports.read(path, dict))
    assert len({found.product_id for found in shipped}) == len(shipped)
    asked = StdVocabulary.load().asked
    for found in shipped:
        assert found.product_id in texts, REMEDY
        now = (texts[found.product_id].content_hash, config.enrich.model, PROMPT_VERSION, asked)
        then = (found.content_hash, found.answer.model, found.answer.prompt_version, found.vocab_version)
        assert then == now, f"{found.product_id}: {REMEDY}"
        assert found.answer.tokens_out > 0
        assert "re" in json.loads(found.answer.body)
    answered = {found.product_id for found in shipped}
    left = {product_id for product_id in texts if product_id not in answered}
    assert left == {row["product_id"] for row in products if row["created_at"] >= LAUNCH}, REMEDY
    assert config.enrich.max_calls == len(left) >= 20
