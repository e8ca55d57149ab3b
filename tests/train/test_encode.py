"""Which texts are the same, which are encoded, and what a killed run leaves: flat arrays against lists."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rec import artifact, config, dataset, encode
from rec.config import Config, Text
from rec.encode import distinct
from rec.models import text_encoder
from rec.models.item_inputs import Ragged
from rec.models.text_encoder import TextEncoder
from rec.partial_array import PartialArray
from rec.schema import TENSORS
from tests.train.in_process import data_in_process

Titles = list[list[int]]
LOAD = text_encoder.load

RECIPE = """
name = "texts"
store = "{store}"
[text]
batch_size = 4
cpus_per_actor = 1
"""
KILLED_AFTER_TWO_BATCHES = """
import itertools, os, signal, sys
from rec import config, encode
from rec.partial_array import PartialArray

put, count = PartialArray.put, itertools.count(1)

def put_and_die(*block):
    put(*block)
    if next(count) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

PartialArray.put = put_and_die
encode.run(config.load(sys.argv[1], []))
"""


@given(st.lists(st.lists(st.integers(0, 2), max_size=3), max_size=20))
def test_distinct_titles_are_numbered_as_they_first_occur(titles: list[list[int]]) -> None:
    column = pa.chunked_array([pa.array(part, pa.list_(pa.int32())) for part in (titles[:7], titles[7:])])
    first, text_of_item = distinct(Ragged.of(column))
    known = list(dict.fromkeys(map(tuple, titles)))
    assert [titles[item] for item in first] == [list(title) for title in known]
    assert text_of_item.tolist() == [known.index(tuple(title)) for title in titles]
    assert first.dtype == text_of_item.dtype == np.int64


@pytest.fixture(autouse=True)
def one_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is read once for all tests of this process."""
    monkeypatch.setattr(text_encoder, "load", lambda _text, layers_above: encoder_of(layers_above))


@cache
def encoder_of(layers_above: int) -> TextEncoder:
    return LOAD(Text(), layers_above)


def texts(folder: Path, titles: Titles) -> Config:
    """A recipe in `folder` whose tensors have these titles and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "texts.toml").write_text(RECIPE.format(store=folder), encoding="utf-8")
    tree = config.load(str(folder / "texts.toml"), [])
    ids = {name: [[]] * len(titles) for name in ("std_key", "std_id", "re_key", "re_id")}
    numbers = range(len(titles))
    rows = {"product_id": [f"p{n}" for n in numbers], "group": numbers, **ids, "title_id": titles}
    table = pa.Table.from_pydict(rows, schema=TENSORS.schema)
    dataset.write(tree.at("tensors"), TENSORS, [table], inputs={}, config={"text": {"encoder": tree.text.encoder}})
    return tree


@dataclass(frozen=True)
class Made:
    """What `encode` wrote."""

    files: Mapping[str, NDArray[Any]]
    content_hash: str

    @classmethod
    def by(cls, tree: Config) -> "Made":
        folder = tree.at("text_states")
        manifest = artifact.peek(folder)
        assert manifest is not None
        return cls({path.stem: np.load(path) for path in folder.glob("*.npy")}, manifest.content_hash)

    def states(self, item: int) -> NDArray[np.float16]:
        """float16[T, width] of a product's title."""
        text = self.files["text_of_item"][item]
        found: NDArray[np.float16] = self.files["states"][slice(*self.files["offsets"][text : text + 2])]
        return found


def some_titles(rng: np.random.Generator, count: int) -> Titles:
    """Token ids; a title of nine is blank."""
    return [
        rng.integers(1_000, 20_000, rng.integers(1, 9)).tolist() if rng.random() > 1 / 9 else [] for _ in range(count)
    ]


def changed(rng: np.random.Generator, titles: Titles) -> Titles:
    """Some products removed, some with another title or that of another product, some new; in another order."""
    left = [title for title in titles if rng.random() > 0.2]
    kept = [some_titles(rng, 1)[0] if rng.random() < 0.2 else title for title in left]
    after = [*kept, *some_titles(rng, 5), *(kept[row] for row in rng.integers(0, len(kept), 3))]
    return [after[row] for row in rng.permutation(len(after))]


def known_of(titles: Titles) -> set[tuple[int, ...]]:
    return set(map(tuple, titles))


@pytest.mark.slow
def test_only_new_texts_are_encoded_and_all_is_as_if_made_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    titles = some_titles(rng, 40)
    growing = texts(tmp_path / "growing", titles)
    first = encode.run(growing)
    assert (first["encoded"], first["kept"]) == (len(known_of(titles)), 0)
    for step in range(4):
        before, had = Made.by(growing), titles
        titles = changed(rng, titles)
        facts = encode.run(texts(tmp_path / "growing", titles))
        new = known_of(titles) - known_of(had)
        assert (facts["encoded"], facts["kept"]) == (len(new), len(known_of(titles)) - len(new))
        found, at_once = Made.by(growing), texts(tmp_path / f"at_once_{step}", titles)
        encode.run(at_once)
        whole = Made.by(at_once)
        for name in ("tokens", "offsets", "text_of_item"):
            np.testing.assert_array_equal(found.files[name], whole.files[name])
        np.testing.assert_allclose(  # to the bit on the CPUs that were tried
            found.files["states"].astype(np.float32), whole.files["states"].astype(np.float32), atol=2e-3
        )
        for item, title in enumerate(titles):
            if title in had:
                assert (found.states(item) == before.states(had.index(title))).all()
    assert not list(growing.at("runs").iterdir())


@pytest.mark.slow
def test_where_no_text_is_new_nothing_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = some_titles(np.random.default_rng(4), 20)
    tree = texts(tmp_path, titles)
    encode.run(tree)
    before = Made.by(tree)
    texts(tmp_path, [*titles[::-1], titles[0]])
    with monkeypatch.context() as patch:
        patch.setattr(encode, "_states", lambda *_: pytest.fail("a text was encoded again"))
        facts = encode.run(tree)
    assert (facts["encoded"], facts["kept"]) == (0, len(known_of(titles)))
    after = Made.by(tree)
    for item, title in enumerate(titles):
        assert (after.states(len(titles) - 1 - item) == before.states(titles.index(title))).all()
    assert encode.run(tree)["skipped"]


@pytest.mark.slow
def test_states_of_other_layers_are_not_kept(tmp_path: Path) -> None:
    encode.run(texts(tmp_path, some_titles(np.random.default_rng(5), 6)))
    assert encode.run(config.load(str(tmp_path / "texts.toml"), ["item_tower.text=top"]))["kept"] == 0


@pytest.mark.slow
def test_states_of_an_older_program_that_wrote_no_tokens_are_not_kept(tmp_path: Path) -> None:
    titles = some_titles(np.random.default_rng(5), 6)
    tree = texts(tmp_path, titles)
    encode.run(tree)
    (tree.at("text_states") / "tokens.npy").unlink()
    assert encode.run(texts(tmp_path, titles[1:]))["kept"] == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_after_its_last_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked = encode._encoded, []

    def counted(tree: Config, encoder: Any, batches: Sequence[pa.Table]) -> Any:
        asked.append(len(batches))
        return whole(tree, encoder, batches)

    monkeypatch.setattr(encode, "_encoded", counted)
    titles = some_titles(np.random.default_rng(6), 40)
    calm, killed = texts(tmp_path / "calm", titles), texts(tmp_path / "killed", titles)
    encode.run(calm)
    command = [sys.executable, "-c", KILLED_AFTER_TWO_BATCHES, str(tmp_path / "killed" / "texts.toml")]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert artifact.peek(killed.at("text_states")) is None
    facts = encode.run(killed)
    assert asked[0] - asked[1] == 2, "two batches were there"
    assert (facts["encoded"], facts["kept"]) == (len(known_of(titles)), 0)
    assert Made.by(killed).content_hash == Made.by(calm).content_hash
    assert not list(killed.at("runs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("gpu", [False, True])
def test_who_encodes_is_no_matter_of_what_a_killed_run_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    """Neither are there many batches left, nor are they few from the start where a GPU encodes them."""
    asked: list[int] = []

    def actors(batches: Sequence[pa.Table], _tree: Config) -> Iterator[pa.Table]:
        asked.append(len(batches))
        for batch in batches[:-3] if len(asked) == 1 else batches:
            yield encode._states(encoder_of(0), batch)
        if len(asked) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(encode, "_by_actors", actors)
    monkeypatch.setattr(encode, "_here", lambda *_: pytest.fail("encoded in this process"))
    monkeypatch.setattr(encode, "FEW", 64 if gpu else 5)
    tree = texts(tmp_path, some_titles(np.random.default_rng(6), 40))
    tree = tree.model_copy(update={"text": tree.text.model_copy(update={"use_gpu": gpu})})
    with pytest.raises(KeyboardInterrupt):
        encode.run(tree)
    encode.run(tree)
    assert 5 < asked[0] <= 64
    assert asked[1:] == [3]


@pytest.mark.slow
def test_what_a_run_leaves_that_is_killed_after_its_artifact_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = texts(tmp_path, some_titles(np.random.default_rng(5), 6))

    def killed(_states: PartialArray) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialArray, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            encode.run(tree)
    assert [path.name[:12] for path in tree.at("runs").iterdir()] == ["text_states-"]
    assert encode.run(tree)["skipped"]
    assert not list(tree.at("runs").iterdir())


@pytest.mark.slow
def test_a_lone_short_text_has_the_states_that_it_has_among_others() -> None:
    title, others = [101, 2_003, 2_157, 2_200, 102], np.random.default_rng(7).integers(1_000, 20_000, (12, 5)).tolist()
    with data_in_process():
        encoder = encode.Encode(Text(cpus_per_actor=2), 0)

        def states(rows: Titles) -> NDArray[np.float16]:
            """float16[len(rows), 5 * width]"""
            asked = pa.table({"batch": [0], "texts": [len(rows)], "tokens": [list(chain.from_iterable(rows))]})
            return np.frombuffer(encoder(asked)["states"][0].as_py(), np.float16).reshape(len(rows), -1)

        assert (states([title])[0] == states([title, *others])[0]).all()
