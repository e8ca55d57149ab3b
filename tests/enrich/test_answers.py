"""Answers: validation, grounding, normalisation, merging; the schema; rules. No engine, no Ray."""

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.enrich import answers, attributes
from rec.enrich.answers import Answer
from rec.enrich.attributes import Attribute, Report
from rec.enrich.prompt import RE_KEYS, Body, body, open_keys, prompt, schema
from rec.enrich.text import Canonical, canonical
from rec.vocab.std import StdVocabulary

PRODUCT = {
    "title": "Alma Coat",
    "description": "Warm wool coat with a detachable hood. Perfect for a winter walk.",
    "html": "<li>Fit: loose</li><li>Dry clean only</li>",
    "attributes": [("colour", ["red"])],
}


@pytest.fixture(scope="module")
def vocabulary() -> StdVocabulary:
    return StdVocabulary.load()


@pytest.fixture(scope="module")
def text() -> Canonical:
    return canonical(PRODUCT, 1_200)


def answer(content: Body | str, state: str = "finished") -> Answer:
    return Answer("m", "1", state, content if isinstance(content, str) else content.dump(), 10, 5)


WORDS = st.lists(st.sampled_from([*PRODUCT["description"].split(), "gold", "silk", ""]), max_size=4).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(re=st.dictionaries(st.sampled_from(["fibre", "detail", "vibe", "nonsense"]), st.lists(WORDS, max_size=4)))
def test_what_is_not_in_the_text_survives_only_under_inferable_keys(
    vocabulary: StdVocabulary, text: Canonical, re: dict[str, list[str]]
) -> None:
    report = Report()
    outcome = answers.read(answer(Body(re=re)), text, vocabulary, report)
    asked = sum(len(values) for values in re.values())
    assert len(outcome.re) + report.ungrounded.total() == asked, "nothing vanishes uncounted"
    for attribute in outcome.re:
        assert attribute.key in vocabulary.keys
        if attribute.evidence is None:
            assert vocabulary.inferable(attribute.key)
        else:
            assert attribute.evidence in text.text
    assert outcome.status == ("partial" if len(outcome.re) < asked else "ok")


def test_std_values_are_normalised_grounded_or_counted(vocabulary: StdVocabulary, text: Canonical) -> None:
    report = Report()
    std = {"season": ["Winter, Blorp"], "fibre": ["cashmere"], "occasion": ["party"], "size": ["XL"]}
    outcome = answers.read(answer(Body(std=std)), text, vocabulary, report)
    assert {(a.key, a.value, a.evidence) for a in outcome.std} == {
        ("season", "winter", "winter"),
        ("occasion", "party", None),
    }
    assert report.unmapped == {("season", "Blorp"): 1}
    assert report.ungrounded == {"fibre": 1}, "no cashmere in the text"
    assert report.unknown_keys == {"size": 1}
    assert outcome.status == "partial"


def test_what_the_tagger_concludes_is_its_own_and_grounded_as_a_models(
    vocabulary: StdVocabulary, text: Canonical
) -> None:
    report = Report()
    body = Body(std={"style": ["casual"], "colour": ["gold"]}).dump()
    outcome = answers.read(Answer(answers.TAGGER, "v", "finished", body, 0, 0), text, vocabulary, report)
    assert outcome.std == [Attribute("style", "casual", "tagger", None)]
    assert report.ungrounded == {"colour": 1}, "that key must be said"


@pytest.mark.parametrize(
    ("content", "state", "status"),
    [
        ("I am sorry", "finished", "invalid"),
        ('{"re": {"fibre": ["wo', "cut", "invalid"),
        ('{"re": {"fibre": "wool"}}', "finished", "invalid"),
        ('{"price": 0}', "finished", "invalid"),
        ("{}", "finished", "ok"),
    ],
)
def test_what_is_no_answer_gives_a_status_and_a_reason(
    vocabulary: StdVocabulary, text: Canonical, content: str, state: str, status: str
) -> None:
    outcome = answers.read(answer(content, state), text, vocabulary, Report())
    assert (outcome.status, outcome.std, outcome.re) == (status, [], [])
    assert (outcome.reason is None) == (status == "ok")


def test_the_shop_beats_the_rules_and_the_rules_beat_the_model() -> None:
    shop = [Attribute("colour", "red", "given", "red")]
    rule = [Attribute("colour", "blue", "rule", "blue"), Attribute("fibre", "wool", "rule", "wool")]
    model = [Attribute("fibre", "silk", "llm", "silk"), Attribute("vibe", "cool", "llm", None)]
    assert answers.merge_std(shop, rule, model) == [shop[0], rule[1], model[1]]
    twice = [Attribute("fibre", "WOOL", "llm", "WOOL"), Attribute("fibre", "soft wool", "llm", "soft wool")]
    assert answers.merge_re(rule[1:], twice) == [rule[1], twice[1]]


def test_the_schema_admits_phrases_of_the_text_and_vocabulary_values_only(
    vocabulary: StdVocabulary, text: Canonical
) -> None:
    std_keys = open_keys(vocabulary, {"occasion"})
    assert "occasion" not in std_keys
    assert all(vocabulary.inferable(key) for key in std_keys)
    form = schema(text, vocabulary, std_keys, {"wool"})
    jsonschema.Draft202012Validator.check_schema(form)
    validator = jsonschema.Draft202012Validator(form)
    empty = {**{key: [] for key in RE_KEYS}, **{f"std.{key}": None for key in std_keys}}
    assert validator.is_valid(empty)
    assert validator.is_valid({**empty, "fibre": ["Warm wool"]})
    assert not validator.is_valid({**empty, "fibre": ["gold"]})
    assert not validator.is_valid({**empty, "fibre": ["wool"]}), "the rules know that already"
    assert not validator.is_valid({**empty, "fibre": ["Warm wool"] * 9})
    assert not validator.is_valid({**empty, f"std.{std_keys[0]}": "gold"})
    assert text.fence in prompt(text, std_keys)


def test_a_text_without_phrases_still_has_a_schema(vocabulary: StdVocabulary) -> None:
    bare = Canonical("...", "...", None)
    validator = jsonschema.Draft202012Validator(schema(bare, vocabulary, [], set()))
    assert validator.is_valid({key: [] for key in RE_KEYS})
    assert not validator.is_valid({**{key: [] for key in RE_KEYS}, "fibre": [""]})


def test_a_raw_answer_loses_repetitions_and_keeps_what_is_no_json() -> None:
    raw = {"fibre": ["Soft silk", "Soft silk"], "detail": ["silk", "slits"], "occasion": ["slits"], "vibe": []}
    kept = Body.model_validate_json(body(json.dumps({**raw, "std.style": "casual", "std.vibe": None})))
    assert kept == Body(re={"fibre": ["Soft silk"], "detail": ["slits"]}, std={"style": ["casual"]})
    assert body('{"fibre": ["So') == '{"fibre": ["So'


def test_rules_find_values_labels_and_phrases(vocabulary: StdVocabulary, text: Canonical) -> None:
    std, re = attributes.from_rules(text, vocabulary)
    assert {("category", "coat"), ("fibre", "wool"), ("season", "winter"), ("fit", "loose")} <= {
        (a.key, a.value) for a in std
    }
    assert {("fit", "loose"), ("fibre", "Warm wool")} <= {(a.key, a.value) for a in re}
    assert all(a.evidence and a.evidence in text.text for a in (*std, *re))
    assert not any("clean" in a.value for a in re), "care is no attribute"


def test_shop_words_become_values_or_are_kept_and_counted(vocabulary: StdVocabulary) -> None:
    report = Report()
    shop = {"Color": ["Red, blorp"], "gender": ["man/woman"], "season": ["blorp"], "flavour": ["vanilla"]}
    std, re = attributes.from_shop(shop, vocabulary, report)
    assert [(a.key, a.value) for a in std] == [
        ("colour", "red"), ("gender", "men"), ("gender", "women"), ("season", "unknown"),
    ]  # fmt: skip
    assert [(a.key, a.value, a.source) for a in re] == [("colour", "blorp", "given"), ("season", "blorp", "given")]
    assert report.unmapped == {("colour", "blorp"): 1, ("season", "blorp"): 1}
    assert report.unknown_keys == {"flavour": 1}
    assert Report.from_json(report.to_json()) == report
