"""The tagger: what it is taught, what it reads back, and that its artifact gives back the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rec.config import Text
from rec.errors import ArtifactError, InputError
from rec.models import tagger
from rec.train import tagger as training
from rec.train.tagger import Example

BRANDS, COLORS = ["Acme", "Bolt", "Crux"], ["red", "blue", "green"]
EXAMPLES = [
    Example("Shoes", f"{brand} Runner, {color}", {"Brand": [brand], "Color": [color.title()]})
    for brand in BRANDS
    for color in COLORS
] + [Example("Tea", f"{brand} tea", {"Brand": [brand]}) for brand in BRANDS]


@pytest.fixture(scope="module")
def trained() -> tagger.Tagger:
    return training.fit(EXAMPLES, Text(), epochs=8)


def test_values_become_labels_at_word_boundaries_longest_first() -> None:
    example = Example("Shoes", "Redwing Red Patent red", {"Color": ["Red", "red patent"]})
    assert training.align(example, ["Brand", "Color"]) == [0, 3, 4, 3]


def test_exchanged_values_keep_their_labels_and_join_no_word() -> None:
    attributes = ["Brand", "Color"]
    values = {("Shoes", 0): ["Old Mill"], ("Shoes", 1): ["sea green"]}
    labels = training.align(EXAMPLES[0], attributes)
    rng = np.random.default_rng(1)
    text, made = training.exchange("Shoes", EXAMPLES[0].text, labels, values, rng, 1.0)
    assert (text, made) == ("Old Mill Runner, sea green", [1, 2, 0, 0, 3, 4])
    assert training.pool(["Shoes"], [text], [made]) == values
    assert training.exchange("Shoes", EXAMPLES[0].text, labels, values, rng, 0.0) == (EXAMPLES[0].text, labels)
    joined = training.exchange("Shoes", "$5", [1, 0], {("Shoes", 0): ["Mill"]}, rng, 1.0)
    assert joined == ("$5", [1, 0])


def test_a_run_ends_where_another_attribute_or_another_begin_comes() -> None:
    assert tagger.runs([1, 2, 1, 4, 0, 2]) == [(0, 0, 2), (0, 2, 3), (1, 3, 4), (0, 5, 6)]


def test_an_inside_label_continues_its_own_attribute_where_the_whole_sequence_is_likelier() -> None:
    scores = torch.log(
        torch.tensor(
            [
                # A likelier begin of attribute 0 behind an outside word, before a sure inside of attribute 1.
                [[0.9, 0.0, 0.0, 0.1, 0.0], [0.1, 0.4, 0.1, 0.3, 0.1], [0.0, 0.0, 0.1, 0.0, 0.9]],
                # One word, whose inside label has nothing to continue; what follows is padding.
                [[0.3, 0.2, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 1.0]],
            ]
        )
    )
    used = torch.tensor([[True, True, True], [True, False, False]])
    assert tagger.best_path(scores, used).tolist() == [[0, 3, 4], [0, 0, 0]]


def test_it_reads_what_it_was_taught_as_the_text_spells_it(trained: tagger.Tagger) -> None:
    read = trained.read([e.group for e in EXAMPLES], [e.text for e in EXAMPLES])
    said = [{k: v.casefold() for k, v in row.items()} for row in read]
    assert said == [{k: v[0].casefold() for k, v in e.values.items()} for e in EXAMPLES]
    assert all(value in e.text for e, row in zip(EXAMPLES, read, strict=True) for value in row.values())


def test_networks_learn_apart_from_each_other_and_read_together(trained: tagger.Tagger) -> None:
    batch = trained.batch(["Shoes"], ["Acme Runner, red"])
    with torch.inference_mode():
        first, second = (network.eval()(batch).labels.log_softmax(dim=-1) for network in trained.networks)
        together = trained.eval()(batch).labels
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.allclose(together, ((first + second) / 2).log_softmax(dim=-1), atol=1e-5)


def test_a_reading_has_every_value_in_order_and_is_surer_of_what_was_taught(trained: tagger.Tagger) -> None:
    taught, new, blank = trained.readings(
        ["Shoes"] * 3, ["Acme Runner, red", "Acme Zephyr quilted over red and blue", ""]
    )
    assert [(name, value) for name, value, _ in taught.spans] == [("Brand", "Acme"), ("Color", "red")]
    assert all(0 < sureness <= 1 for *_, sureness in (*taught.spans, *new.spans))
    assert 1 >= taught.confidence > new.confidence >= 0
    assert (blank.spans, blank.confidence) == ([], 0.0)


def test_a_group_is_not_given_attributes_of_another(trained: tagger.Tagger) -> None:
    (found,) = trained.read(["Tea"], ["Acme Runner, red"])
    assert set(found) <= {"Brand"}


def test_a_blank_text_says_nothing_and_a_long_one_is_read_from_its_start(trained: tagger.Tagger) -> None:
    blank, long = trained.read(["Shoes", "Shoes"], ["  ", "Acme Runner, red" + " and more" * 300])
    assert blank == {}
    assert long.get("Brand") == "Acme"


def test_characters_without_a_token_move_no_word(trained: tagger.Tagger) -> None:
    batch = trained.batch(["Tea"], ["Acme \u200d tea"])
    assert int((batch.shapes > 0).sum()) == len(tagger.words("Acme \u200d tea"))


def test_it_is_the_same_after_its_artifact(trained: tagger.Tagger, tmp_path: Path) -> None:
    training.save(trained, tmp_path / "tagger", inputs={}, config={}, examples=len(EXAMPLES))
    back = tagger.load(tmp_path / "tagger")
    batch = trained.batch(["Shoes"], ["Bolt Runner, blue"])
    with torch.inference_mode():
        assert torch.equal(trained.eval()(batch).labels, back(batch).labels)
    assert back.schema == trained.schema


def test_a_value_without_words_is_concluded_from_the_whole_text(tmp_path: Path) -> None:
    told = {"Straps and a smocked bodice": "summer", "Ribbed collar and thick lining": "winter"}
    examples = [
        Example("Shoes", f"{text}, {brand}", {"Brand": [brand]}, {"season": [season]})
        for text, season in told.items()
        for brand in BRANDS
    ]
    model = training.fit(examples, Text(), epochs=14, networks=1, alike=True)
    texts = [*told, ""]
    summer, winter, blank = model.readings(["Shoes"] * 3, texts)
    assert [reading.concluded["season"][0] for reading in (summer, winter)] == ["summer", "winter"]
    assert all(0.5 < reading.concluded["season"][1] < 1 for reading in (summer, winter))
    assert blank.concluded == {}
    assert model.readings(["Shoes"], ["Straps, Acme"])[0].spans[0][:2] == ("Brand", "Acme")
    training.save(model, tmp_path / "tagger", inputs={}, config={}, examples=len(examples))
    assert tagger.load(tmp_path / "tagger").readings(["Shoes"] * 3, texts) == [summer, winter, blank]


def test_a_key_aims_at_its_values_as_often_as_they_count_at_none_or_at_nothing() -> None:
    examples = [
        Example("Tea", "tea", {}, {"season": ["winter", "winter", "winter", "summer"], "vibe": []}),
        Example("Tea", "cup", {}, {"season": []}),
        Example("Tea", "pot", {}),
    ]
    schema = training.schema_of(examples)
    assert schema.concluded == {"season": ["summer", "winter"]}, "no example has a vibe"
    assert [training.aims(example, schema).tolist() for example in examples] == [
        [0, 0.25, 0.75],
        [1, 0, 0],
        [0, 0, 0],
    ]


def test_without_keys_to_conclude_there_is_no_layer_for_them(trained: tagger.Tagger) -> None:
    assert not [name for name in trained.state_dict() if ".values." in name]
    assert trained.readings(["Tea"], ["Acme tea"])[0].concluded == {}


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 examples carry no attribute value"):
        training.fit([Example("Tea", "tea", {})], Text())
    with pytest.raises(ArtifactError, match="holds no finished tagger"):
        tagger.load(tmp_path / "none")
