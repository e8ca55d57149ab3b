"""Attention of packed texts by its Triton kernels: what torch's own attention gives of each text, gradients included.

On a GPU the kernels are compiled, elsewhere Triton's interpreter runs them: `pip install triton` where torch came
without it.
"""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="Triton is not installed: the kernels of packed attention are not tested")

from rec.models import packed_attention, packing  # noqa: E402

HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
"""The interpreter computes with numpy, which has no bfloat16."""
LOOSE = 8 if DEVICE == "cuda" else 1
"""How much less exact bfloat16 is than float16, in which the tolerances are."""


def drawn(lengths: list[int], heads: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values float16[3, P, H, d], starts int32[B + 1], and a weight of each number that comes out."""
    torch.manual_seed(seed)
    tokens = sum(lengths)
    parts = torch.randn(3, tokens, heads, width, dtype=HALF).to(DEVICE)
    starts = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
    return parts, starts, torch.randn(tokens, heads, width, dtype=HALF).to(DEVICE)


def text_by_text(parts: torch.Tensor, starts: torch.Tensor, scale: float) -> torch.Tensor:
    """float32[P, H, d] by torch's own attention, one text at a time."""
    made = []
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        q, k, v = (part[first:last].transpose(0, 1) for part in parts)
        made.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1))
    return torch.cat(made)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    heads=st.integers(1, 3),
    width=st.sampled_from(packed_attention.WIDTHS[:3]),
    seed=st.integers(0, 99),
)
def test_each_text_attends_to_itself_alone(lengths: list[int], heads: int, width: int, seed: int) -> None:
    agrees(lengths, heads, width, seed)


def test_the_longest_texts_and_the_widest_heads() -> None:
    agrees([packed_attention.LONGEST, 1, 100], 1, max(packed_attention.WIDTHS), 0)


@pytest.mark.skipif(DEVICE == "cpu", reason="the kernels are for GPUs")
def test_what_the_kernels_do_not_know_is_said() -> None:
    query = torch.empty(1, 1, 64, dtype=HALF, device=DEVICE)
    assert packed_attention.knows(query, packed_attention.LONGEST)
    assert not packed_attention.knows(query, packed_attention.LONGEST + 1)
    assert not packed_attention.knows(query.float(), 1)
    assert not packed_attention.knows(query[..., :24], 1)


def agrees(lengths: list[int], heads: int, width: int, seed: int) -> None:
    """What comes out and the gradients are those of torch's own attention."""
    parts, starts, weight = drawn(lengths, heads, width, seed)
    scale = width**-0.5
    parts.requires_grad_()
    made = packed_attention.attend(*parts, starts, max(lengths), scale, 0.0)
    (made * weight).sum().backward()
    oracle = parts.detach().float().requires_grad_()
    expected = text_by_text(oracle, starts, scale)
    (expected * weight.float()).sum().backward()
    torch.testing.assert_close(made.float(), expected, atol=LOOSE * 5e-3, rtol=LOOSE * 5e-3)
    assert parts.grad is not None
    assert oracle.grad is not None
    torch.testing.assert_close(parts.grad.float(), oracle.grad, atol=LOOSE * 2e-2, rtol=LOOSE * 1e-2)


def test_heads_may_stand_in_any_order_in_memory() -> None:
    parts, starts, _ = drawn([3, 5], 2, 16, 0)
    by_head = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in parts]
    by_number = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts]
    expected = packed_attention.attend(*parts, starts, 5, 0.25, 0.0)
    for moved in (by_head, by_number):
        assert torch.equal(packed_attention.attend(*moved, starts, 5, 0.25, 0.0), expected)


def test_dropout_keeps_the_mean_and_its_gradient_is_of_what_was_dropped() -> None:
    parts, starts, weight = drawn([7, 20], 2, 16, 1)
    kept = packed_attention.attend(*parts, starts, 20, 0.25, 0.0).float()
    several = torch.stack([packed_attention.attend(*parts, starts, 20, 0.25, 0.4).float() for _ in range(200)])
    assert not torch.equal(several[0], several[1])
    spread = several.std(0) / len(several) ** 0.5
    assert ((several.mean(0) - kept).abs() < 5 * spread + 1e-3).all()
    parts.requires_grad_()
    made = packed_attention.attend(*parts, starts, 20, 0.25, 0.4)
    (made.float() * weight.float()).sum().backward()
    assert parts.grad is not None
    # What comes out is linear in the values, so its sum is their product with the gradient, if both dropped the same.
    linear = (parts.grad[2].float() * parts[2].float()).sum().item()
    assert linear == pytest.approx((made.float() * weight.float()).sum().item(), abs=0.1)


def test_the_same_seed_drops_the_same() -> None:
    parts, starts, _ = drawn([9], 1, 16, 2)
    torch.manual_seed(3)
    first = packed_attention.attend(*parts, starts, 9, 0.25, 0.5)
    torch.manual_seed(3)
    assert torch.equal(packed_attention.attend(*parts, starts, 9, 0.25, 0.5), first)


@pytest.mark.parametrize("compiled", [False, True])
def test_layers_make_the_states_of_padded_ones(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled without a break: each break costs copies of queries, keys, values and their gradients."""
    torch.manual_seed(0)
    shape = {"n_layers": 2, "dim": 32, "hidden_dim": 64, "n_heads": 2, "vocab_size": 60, "dropout": 0.0}
    config = AutoConfig.for_model("distilbert", attention_dropout=0.0, **shape)
    held = AutoModel.from_config(config).train()
    padded = deepcopy(held).to(DEVICE)
    packed = packing.packed(held, reads_ids=True)
    assert packed is not None
    assert packing._kernel is packed_attention
    held.to(DEVICE)
    if DEVICE == "cpu":
        monkeypatch.setattr(packed_attention, "knows", lambda query, _: query.dtype == HALF)
    if compiled:
        torch._dynamo.reset()
        for layer in held.transformer.layer:
            layer.compile(dynamic=True, backend="aot_eager", fullgraph=True)
    for texts in (3, 5):
        seen = packing.seen(torch.rand(texts, 9) < 0.7).to(DEVICE)
        ids, weight = torch.randint(1, 60, seen.shape).to(DEVICE), torch.randn(int(seen.sum()), 32).to(DEVICE)
        held.zero_grad()
        padded.zero_grad()
        with torch.autocast(DEVICE, HALF):
            made = packed(ids, seen, int(seen.sum()))[seen]
            expected = padded(input_ids=ids, attention_mask=seen.long()).last_hidden_state[seen]
        torch.testing.assert_close(made.float(), expected.float(), atol=LOOSE * 2e-2, rtol=LOOSE * 2e-2)
        (made * weight).sum().backward()
        (expected * weight).sum().backward()
        for (name, one), other in zip(held.named_parameters(), padded.parameters(), strict=True):
            if not name.endswith("k_lin.bias"):  # the same for all keys: its gradient is rounding
                torch.testing.assert_close(one.grad, other.grad, atol=LOOSE * 5e-2, rtol=LOOSE * 5e-2, msg=name)
