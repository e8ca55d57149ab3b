"""Layers of a text encoder inside the tower: one vector a product, and nothing seen that is hidden."""

from dataclasses import replace
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec import artifact
from rec.config import ItemTower as Options
from rec.config import Text
from rec.errors import ConfigError
from rec.models import item_tower, text_encoder, text_layers
from rec.models.item_inputs import ItemBatch
from rec.models.item_tower import ItemTower, Shape
from rec.train import contrast, text_start
from tests.item_tower import encoders
from tests.item_tower.products import TEXT_WIDTH, Product, batch, inputs, products

BARE = Product([], [], 0)
FULL = Product([(1, 3), (2, 9)], [(1, 4), (5, 22)], 6)
MODES = {"frozen": 0, "top": 2, "full": None}
"""Mode → layers taken of the encoder."""


def build(mode: str, kind: str = "distilbert") -> ItemTower:
    """A small tower in eval mode, with the encoder's own weights where it holds some."""
    layers = text_layers.take(encoders.model(kind), MODES[mode], kind) if mode != "frozen" else None
    shape = Shape(
        num_keys=6,
        num_std_ids=40,
        num_re_tokens=30,
        text_width=TEXT_WIDTH,
        text_encoder=kind,
        width=16,
        heads=4,
        dropout=0.1,
        inputs=("std", "re", "title"),
        text=None if layers is None else layers.shape,
    )
    torch.manual_seed(0)
    tower = ItemTower(shape)
    if tower.text is not None and layers is not None:
        tower.text.load_state_dict(layers.state_dict())
    return tower.eval()


TOWERS = {mode: build(mode) for mode in MODES}


def vectors(tower: ItemTower, catalogue: list[Product]) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = tower(batch(catalogue, ids=tower.shape.reads_ids))
    return made


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("layers", [1, 2, encoders.LAYERS, None])
def test_below_and_above_the_cut_make_the_whole(kind: str, layers: int | None) -> None:
    model = encoders.model(kind)
    ids = torch.randint(4, encoders.VOCABULARY, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    with torch.inference_mode():
        whole = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        above = text_layers.take(model, layers, kind)
        lower = (
            ids if layers is None else text_layers.below(model, layers, kind)(input_ids=ids, attention_mask=mask.long())
        )
        made = above(lower if layers is None else lower.last_hidden_state, mask)
    torch.testing.assert_close(made[mask], whole[mask], atol=1e-5, rtol=0)
    assert above.shape.layers == (layers or encoders.LAYERS)


def test_the_embedded_encoder_can_be_cut() -> None:
    ids = text_encoder.load_tokenizer(Text()).tokenize(["a warm coat of brushed wool"], 32)
    whole = text_encoder.load(Text()).token_states(ids, 1)[0].astype(np.float32)
    lower = text_encoder.load(Text(), 2).token_states(ids, 1)[0].astype(np.float32)
    above = text_encoder.load_layers(Text(), 2)
    with torch.inference_mode():
        made = above(torch.from_numpy(lower)[None], torch.ones(1, len(ids[0]), dtype=torch.bool))[0]
    np.testing.assert_allclose(made.numpy(), whole, atol=5e-3)  # both were rounded to float16
    assert np.abs(lower - whole).max() > 0.1
    assert sum(p.numel() for p in above.parameters()) < 4_000_000, "no word table is held"


@pytest.mark.parametrize("kind", ["albert", "electra"])
def test_what_cannot_be_cut_is_refused_and_can_be_held_whole(kind: str) -> None:
    model = encoders.model(kind)
    for cut in (text_layers.take, text_layers.below):
        with pytest.raises(ConfigError, match=r"cannot be cut between its layers: take one built as BERT .*\"full\""):
            cut(model, 1, kind)
    ids = torch.arange(4, 10)[None]
    with torch.inference_mode():
        made = text_layers.take(model, None, kind)(ids, ids > 0)
        torch.testing.assert_close(made, model(input_ids=ids).last_hidden_state, atol=1e-5, rtol=0)


def test_states_that_do_not_add_up_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_layers.HandOn, "forward", lambda _, inputs_embeds, **__: inputs_embeds.flip(-1))
    with pytest.raises(ConfigError, match="below and above the cut its states differ by"):
        text_layers.below(encoders.model("bert"), 1, "bert")


def test_more_layers_than_there_are_name_the_option() -> None:
    with pytest.raises(ConfigError, match=r"text_layers is 4, but text\.encoder 'x' has 3 layers: lower it, or set"):
        text_layers.take(encoders.model("distilbert"), 4, "x")


@pytest.mark.parametrize("mode", MODES)
@given(product=products, mates=st.lists(products, max_size=6), place=st.integers(0, 6))
def test_a_product_has_one_vector_whatever_it_is_batched_with(
    mode: str, product: Product, mates: list[Product], place: int
) -> None:
    tower, place = TOWERS[mode], min(place, len(mates))
    alone = vectors(tower, [product])[0]
    among = vectors(tower, [*mates[:place], product, *mates[place:]])[place]
    assert torch.linalg.vector_norm(alone).item() == pytest.approx(1, abs=1e-5)
    assert torch.dot(alone, among).item() >= 1 - 1e-5


@pytest.mark.parametrize("mode", ["top", "full"])
@pytest.mark.parametrize("catalogue", [[BARE], [BARE, FULL], [FULL]])
def test_blank_titles_leave_no_nan_and_every_parameter_a_gradient(mode: str, catalogue: list[Product]) -> None:
    """Also where no text has a token: data-parallel training waits for every gradient."""
    tower = build(mode).train()
    whole = batch(catalogue, ids=mode == "full")
    made = tower(whole.views(**_none_hidden(whole, 2)))
    made.sum().backward()
    assert torch.linalg.vector_norm(made, dim=1).tolist() == pytest.approx([1] * 2 * len(catalogue), abs=1e-5)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tower.parameters())
    moved = [name for name, p in tower.text.named_parameters() if p.grad.abs().max() > 0]  # type: ignore[union-attr]
    assert bool(moved) == (FULL in catalogue)


@pytest.mark.parametrize("mode", ["top", "full"])
def test_hidden_tokens_are_not_seen_and_views_go_apart(mode: str) -> None:
    tower = TOWERS[mode]
    whole = batch([FULL, Product([(3, 7)], [], 3, seed=4)], ids=mode == "full")
    masks = _none_hidden(whole, 3)
    masks["title"][1, :, 2], masks["title"][2] = True, True
    other = replace(whole, title=whole.title.clone())
    other.title[:, 2] = 7
    with torch.inference_mode():
        seen, hidden, blank = tower(whole.views(**masks)).chunk(3)
        torch.testing.assert_close(tower(other.views(**masks)).chunk(3)[1], hidden, atol=1e-6, rtol=0)
        assert not torch.allclose(tower(other.views(**masks)).chunk(3)[0], seen, atol=1e-3)
        for view, expected in enumerate((seen, hidden, blank)):
            alone = tower(whole.views(**{name: mask[view : view + 1] for name, mask in masks.items()}))
            torch.testing.assert_close(alone, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(seen, hidden, atol=1e-3)
    bare = vectors(tower, [replace(FULL, title=0), Product([(3, 7)], [], 0)])
    torch.testing.assert_close(blank, bare, atol=1e-6, rtol=0)


def _none_hidden(whole: ItemBatch, views: int) -> dict[str, torch.Tensor]:
    shapes = {"std": whole.std_id.shape, "re": whole.re_id.shape, "title": whole.title_mask.shape}
    return {name: torch.zeros(views, *shape, dtype=torch.bool) for name, shape in shapes.items()}


@pytest.mark.parametrize("mode", ["top", "full"])
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_saved_tower_needs_neither_hub_nor_folder(
    mode: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = build(mode, kind)
    with artifact.write(
        tmp_path / "tower", kind=item_tower.KIND, version=item_tower.VERSION, inputs={}, config={}
    ) as draft:
        tower.save(draft.path)
    assert sorted(p.name for p in (tmp_path / "tower").iterdir()) == [
        "_manifest.json", "item_tower.json", "item_tower.safetensors",
    ]  # fmt: skip
    monkeypatch.setattr(text_encoder, "parts", None)
    found = item_tower.load(tmp_path / "tower")
    assert found.shape == tower.shape
    assert torch.equal(vectors(found, [FULL, BARE]), vectors(tower, [FULL, BARE]))


def test_layers_of_the_encoder_have_a_smaller_step_size() -> None:
    options = Options(text="top", text_learning_rate=3e-5)
    tower = TOWERS["top"]
    rest, text = contrast.parameter_groups(tower, options)
    assert text["lr"] == 3e-5
    assert "lr" not in rest
    assert {id(p) for p in text["params"]} == {id(p) for p in tower.text.parameters()}  # type: ignore[union-attr]
    assert len(rest["params"]) + len(text["params"]) == len(list(tower.parameters()))
    [alone] = contrast.parameter_groups(TOWERS["frozen"], Options())
    assert len(alone["params"]) == len(list(TOWERS["frozen"].parameters()))


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_near_and_the_loss_float32(mode: str) -> None:
    tower = TOWERS[mode]
    items = inputs([replace(FULL, seed=seed) for seed in range(6)], ids=mode == "full")
    losses = {}
    for precision in ("float32", "bfloat16"):
        options = Options.model_validate({"train": {"precision": precision}, "temperature": 0.5})
        loss, _ = contrast.step(
            tower, contrast.draw(items, np.arange(6), 6, options, np.random.default_rng(0)), options
        )
        assert loss.dtype == torch.float32
        losses[precision] = loss.item()
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.05)
    assert losses["bfloat16"] != losses["float32"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [
        "eager",  # what is traced, and no compiler of C++, which torch.compile takes on a CPU
        pytest.param(
            "inductor", marks=[pytest.mark.long, pytest.mark.skipif(not which("g++"), reason="no compiler of C++")]
        ),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_tower_is_the_same(mode: str, backend: str) -> None:
    plain, compiled = build(mode), build(mode)
    compiled.compile_parts(backend)
    for count in (2, 3):
        some = batch([replace(FULL, seed=count), BARE, FULL][:count], ids=mode == "full")
        for tower in (plain, compiled):
            tower.zero_grad()
            tower(some)[:, 0].sum().backward()
        for (name, expected), found in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, atol=1e-5, rtol=1e-4, msg=name)
        torch.testing.assert_close(compiled(some), plain(some), atol=1e-5, rtol=0)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_a_tower_with_layers_starts_from_what_these_make_of_the_states() -> None:
    """As in a batch of one: products are read in padded blocks, and one of them has no title."""
    catalogue = [Product([(1, 3)], [(2, 5)], length, seed) for seed, length in enumerate([6, 1, 0, 9, 4, 7])]
    tower, items = build("top"), inputs(catalogue)
    untouched = {name: weight.clone() for name, weight in tower.text.state_dict().items()} if tower.text else {}
    text_start.apply(tower, items, torch.device("cpu"))
    assert tower.text is not None
    said = []
    with torch.inference_mode():
        for place in (0, 1, 3, 4, 5):
            alone = items.batch(np.array([place]))
            said.append(tower.text(alone.title, alone.title_mask)[0].mean(0).numpy())
    means = np.stack(said)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    expected = text_start.whitening(means / lengths, tower.shape.width)
    assert expected is not None
    np.testing.assert_allclose(tower.title.weight.detach().numpy(), expected[1].T / lengths.mean(), atol=2e-2)
    assert not tower.text.training
    for name, weight in tower.text.state_dict().items():
        assert torch.equal(weight, untouched[name]), name
