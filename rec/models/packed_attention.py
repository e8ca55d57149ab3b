"""Attention within each of many short texts that stand end to end, on a GPU: one Triton program per text and head.

What a program reads of a text fits into one multiprocessor: it is read once, and neither padding nor scores are ever in
the GPU's memory. The backward pass computes the weights again, as FlashAttention does (Dao et al., 2022, arXiv
2205.14135), whose own kernels are made for texts of thousands of tokens.

P tokens in all, of B texts; H heads of width d.
"""

from typing import Any

import torch
import triton
import triton.language as tl

LONGEST = 128
"""Tokens of a text that a program can hold."""
CAPABILITY = (8, 0)
"""The oldest GPUs with units for bfloat16; older ones also have too little shared memory for the largest block."""
WIDTHS = (16, 32, 64, 128)
"""Head widths d that it knows."""
SHORTEST = 16
"""Rows of the smallest product of matrices."""

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def knows(query: torch.Tensor, longest: int) -> bool:
    """Whether `attend` can take float[P, H, d] of texts of at most `longest` tokens."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and half and longest <= LONGEST and query.shape[-1] in WIDTHS


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """softmax(scale q k^T) v of each text and head: bfloat16 or float16[P, H, d] from three of that shape.

    Text i has tokens starts[i] to starts[i + 1] - 1, at most `longest` of them; `starts` int32[B + 1]. The share
    `dropout` of the weights counts as 0, the others as 1 / (1 - dropout) times what they are.
    """
    mixed: torch.Tensor = _attend(query, key, value, starts, longest, scale, dropout)[0]
    return mixed


@torch.library.custom_op("rec::packed_attention", mutates_args=(), tags=torch.Tag.nondeterministic_seeded)
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes out, and the seed of what was dropped: int64[1]."""
    seed = torch.randint(2**31, (1,), device=query.device) if dropout else starts.new_zeros(1, dtype=torch.int64)
    query, key, value = (_rows(part) for part in (query, key, value))
    mixed = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    packed_attention_forward[_grid(query, starts)](
        query, key, value, mixed, starts, seed, *_strides(query, key, value), scale, dropout,
        DROPS=dropout > 0, T=_block(longest), D=query.shape[2], num_warps=_warps(longest),
    )  # fmt: skip
    return mixed, seed


@_attend.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, *_: Any) -> Any:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device), starts.new_empty(1, dtype=torch.int64)


@torch.library.custom_op("rec::packed_attention_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    seed: torch.Tensor,
    longest: int,
    scale: float,
    dropout: float,
) -> Tensors:
    query, key, value = (_rows(part) for part in (query, key, value))
    gradient = gradient.contiguous()
    made = [torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(3)]
    packed_attention_backward[_grid(query, starts)](
        gradient, query, key, value, *made, starts, seed, *_strides(query, key, value), scale, dropout,
        DROPS=dropout > 0, T=_block(longest), D=query.shape[2], num_warps=_warps(longest),
    )  # fmt: skip
    return made[0], made[1], made[2]


@_gradients.register_fake
def _(gradient: torch.Tensor, query: torch.Tensor, *_: Any) -> Any:
    return tuple(torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(3))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, starts, *ctx.how = inputs
    ctx.save_for_backward(query, key, value, starts, output[1])


def _through(ctx: Any, gradient: torch.Tensor, _: None) -> tuple[Any, ...]:
    return *_gradients(gradient, *ctx.saved_tensors, *ctx.how), None, None, None, None


_attend.register_autograd(_through, setup_context=_keep)


def _rows(part: torch.Tensor) -> torch.Tensor:
    """`part` with the numbers of a head side by side."""
    return part if part.stride(2) == 1 else part.contiguous()


def _strides(*parts: torch.Tensor) -> tuple[int, ...]:
    return tuple(stride for part in parts for stride in part.stride()[:2])


def _grid(query: torch.Tensor, starts: torch.Tensor) -> tuple[int, int]:
    return len(starts) - 1, query.shape[1]


def _block(longest: int) -> int:
    return max(SHORTEST, 1 << (longest - 1).bit_length())


def _warps(longest: int) -> int:
    return 8 if longest > 64 else 4 if longest > 32 else 2


@triton.jit
def _text(starts):
    """Where the program's text begins, and its length."""
    first = tl.load(starts + tl.program_id(0))
    return first, tl.load(starts + tl.program_id(0) + 1) - first


@triton.jit
def _read(source, first, length, token, head, T: tl.constexpr, D: tl.constexpr):
    """[T, D] of one text and head, zeros behind the text's end; `token` and `head` are strides."""
    rows = tl.arange(0, T)
    place = source + (first + rows[:, None]).to(tl.int64) * token + tl.program_id(1) * head + tl.arange(0, D)[None, :]
    return tl.load(place, mask=rows[:, None] < length, other=0.0)


@triton.jit
def _write(target, values, first, length, T: tl.constexpr, D: tl.constexpr):
    """[T, D] of one text and head, where the numbers of all heads of a token stand side by side."""
    rows = tl.arange(0, T)
    token = tl.num_programs(1) * D
    place = target + (first + rows[:, None]).to(tl.int64) * token + tl.program_id(1) * D + tl.arange(0, D)[None, :]
    tl.store(place, values.to(target.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit
def _weights(query, key, length, scale, seed, dropout, DROPS: tl.constexpr, T: tl.constexpr):
    """Weights float32[T, T] of one text and head, and by what dropout multiplies each."""
    columns = tl.arange(0, T)[None, :]
    scores = tl.where(columns < length, tl.dot(query, tl.trans(key)) * scale, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    counted = tl.full((T, T), 1.0, tl.float32)
    if DROPS:
        program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        drawn = tl.rand(tl.load(seed) + program, tl.arange(0, T)[:, None] * T + columns)
        counted = tl.where(drawn < dropout, 0.0, 1.0 / (1.0 - dropout))
    return weights, counted


@triton.jit
def packed_attention_forward(
    query, key, value, mixed, starts, seed,
    query_token, query_head, key_token, key_head, value_token, value_head, scale, dropout,
    DROPS: tl.constexpr, T: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    first, length = _text(starts)
    q = _read(query, first, length, query_token, query_head, T, D)
    k = _read(key, first, length, key_token, key_head, T, D)
    v = _read(value, first, length, value_token, value_head, T, D)
    weights, counted = _weights(q, k, length, scale, seed, dropout, DROPS, T)
    _write(mixed, tl.dot((weights * counted).to(v.dtype), v), first, length, T, D)


@triton.jit
def packed_attention_backward(
    gradient, query, key, value, of_query, of_key, of_value, starts, seed,
    query_token, query_head, key_token, key_head, value_token, value_head, scale, dropout,
    DROPS: tl.constexpr, T: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    first, length = _text(starts)
    q = _read(query, first, length, query_token, query_head, T, D)
    k = _read(key, first, length, key_token, key_head, T, D)
    v = _read(value, first, length, value_token, value_head, T, D)
    g = _read(gradient, first, length, tl.num_programs(1) * D, D, T, D)
    weights, counted = _weights(q, k, length, scale, seed, dropout, DROPS, T)
    _write(of_value, tl.dot(tl.trans((weights * counted).to(g.dtype)), g), first, length, T, D)
    of_weights = tl.dot(g, tl.trans(v)) * counted
    of_scores = weights * (of_weights - tl.sum(of_weights * weights, 1)[:, None])
    of_scores = (of_scores * scale).to(q.dtype)
    _write(of_query, tl.dot(of_scores, k), first, length, T, D)
    _write(of_key, tl.dot(tl.trans(of_scores), q), first, length, T, D)
