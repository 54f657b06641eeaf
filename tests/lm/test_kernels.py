"""Each Triton kernel against the plain torch reference in float64, on CUDA or through Triton's interpreter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pelton.runtimes.lm import reference  # noqa: E402
from pelton.runtimes.lm.kernels import (  # noqa: E402
    decode_attention,
    elementwise,
    float8_linear,
    prefill_attention,
    thin_linear,
)
from pelton.runtimes.lm.product import Product, finished  # noqa: E402

pytestmark = pytest.mark.lm

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
TOLERANCE = 1e-2 if CUDA else 2e-6


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    out, expected = out.double().cpu(), expected.double().cpu()
    assert torch.isfinite(out).all()
    return float((out - expected).norm() / expected.norm().clamp(min=1e-30))


def random(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


class Paged:
    """A cache whose sequences lie in shuffled blocks; block 0 is never used, so that a wrong table shows."""

    def __init__(self, lengths: list[int], kv_heads: int, dim: int, block: int, dtype: torch.dtype = DTYPE) -> None:
        per_slot = max(1, max(-(-n // block) for n in lengths) + 1)
        count = len(lengths) * per_slot + 1
        self.cache = random(2, count, kv_heads, block, dim, dtype=torch.float32).to(dtype)
        self.cache[:, 0] = 0
        order = torch.randperm(count - 1) + 1
        self.table = order[: len(lengths) * per_slot].view(len(lengths), per_slot).int().to(DEVICE)


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("programs", [1, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 32), (3, 1, 64)])
def test_decode_attention_equals_the_reference(heads: int, kv_heads: int, dim: int, programs: int, window: int) -> None:
    paged = Paged([1, 16, 45, 70], kv_heads, dim, block=16)
    slots, positions = ints([2, 0, 1, 3, 3]), ints([44, 0, 15, 69, -1])
    q = random(5, heads, dim)
    out = torch.full_like(q, float("nan"))
    shape = decode_attention.DecodeShape(tile=16, programs=programs, max_splits=8)
    decode_attention.decode_attention(q, out, paged.cache, paged.table, slots, positions, 0.2, window, shape)
    expected = reference.decode_attention(q.double(), paged.cache.double(), paged.table, slots, positions, 0.2, window)
    assert error(out, expected) < TOLERANCE
    assert not out[4].any()


@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("rows", [16, 64])
def test_prefill_attention_equals_the_reference(rows: int, window: int) -> None:
    heads, dim = 4, 32
    starts, counts = [0, 30, 5], [50, 7, 33]
    begins = [2, 52, 59]  # two decode rows stand before the packed sequences
    packed = ints([*begins, *counts, *starts, 2, 0, 1]).view(4, 3)
    lengths = [s + n for s, n in zip(starts, counts, strict=True)]
    paged = Paged([lengths[1], lengths[2], lengths[0]], 2, dim, block=16)
    q = random(92, heads, dim)
    out = torch.zeros_like(q)
    tiles = ints([x for i, n in enumerate(counts) for at in range(0, n, rows) for x in (i, at)]).view(-1, 2)
    shape = prefill_attention.PrefillShape(rows=rows, tile=16)
    prefill_attention.prefill_attention(q, out, paged.cache, paged.table, tiles, packed, 0.2, window, shape)
    expected = reference.prefill_attention(q.double(), paged.cache.double(), paged.table, packed, 0.2, window)
    assert error(out, expected) < TOLERANCE
    assert not out[:2].any()


@pytest.mark.parametrize(("norm", "dtype"), [(True, DTYPE), (False, DTYPE), (True, reference.FP8)])
def test_rope_and_store_writes_the_cache_and_returns_rotated_queries(norm: bool, dtype: torch.dtype) -> None:
    heads, kv_heads, dim, block = 6, 2, 32, 16
    paged = Paged([20, 33], kv_heads, dim, block, dtype)
    qkv = random(4, (heads + 2 * kv_heads) * dim)
    norms = (random(dim, dtype=torch.float32), random(dim, dtype=torch.float32)) if norm else None
    angles = torch.rand(64, dim // 2, device=DEVICE)
    cos_sin = (angles.cos(), angles.sin())
    slots, positions = ints([0, 1, 1, 0]), ints([19, 15, 32, -1])
    cache = paged.cache.clone()
    q = elementwise.rope_and_store(finished(qkv), cache, norms, cos_sin, paged.table, slots, positions, heads, 1e-5)
    wanted = paged.cache.clone() if dtype == reference.FP8 else paged.cache.double()
    expected = reference.rope_and_store(
        qkv.double(), wanted, norms, cos_sin, paged.table, slots, positions, heads, 1e-5
    )
    assert error(q[:3], expected[:3]) < TOLERANCE
    assert error(cache, wanted) < (0.02 if dtype == reference.FP8 else TOLERANCE)  # one place of float8 now and then
    changed = (cache.double() != paged.cache.double()).sum()
    assert 0 < changed <= 3 * 2 * kv_heads * dim


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("size", [96, 576])
def test_rms_norm_adds_to_the_residual_and_norms_it(size: int, add: bool) -> None:
    x, residual = random(3, size), random(3, size)
    weight = random(size, dtype=torch.float32)
    expected_residual = residual.double()
    expected, _ = reference.rms_norm(x.double(), weight, 1e-5, expected_residual if add else None)
    out, _ = elementwise.rms_norm(finished(x), weight, 1e-5, residual if add else None)
    assert error(out, expected) < TOLERANCE
    assert error(residual, expected_residual) < TOLERANCE


@pytest.mark.parametrize("gelu", [True, False])
def test_gated_equals_the_reference(gelu: bool) -> None:
    x = random(3, 2 * 1500)
    expected, _ = reference.gated(x.double(), gelu)
    assert error(elementwise.gated(finished(x), gelu)[0], expected) < TOLERANCE


@pytest.mark.parametrize("kernel", ["norm", "gated", "plain"])
def test_quantized_rows_are_as_close_as_float8_allows(kernel: str) -> None:
    x = random(3, 512)
    x[1] = 0
    weight = torch.ones(512, device=DEVICE)
    if kernel == "norm":
        (values, scale), (expected, _) = (
            elementwise.rms_norm(finished(x), weight, 1e-5, quantize=True),
            reference.rms_norm(x.double(), weight, 1e-5),
        )
    elif kernel == "gated":
        x = random(3, 2 * 5000)
        x[1] = 0
        (values, scale), (expected, _) = elementwise.gated(finished(x), False, True), reference.gated(x.double(), False)
    else:
        (values, scale), expected = elementwise.quantize_rows(x), x.double()
    assert scale is not None
    assert scale.shape == (3, 1)
    assert error(values.float() * scale, expected) < (0.04 if CUDA else 0.1)  # the interpreter cuts off, CUDA rounds


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_thin_linear_equals_the_reference(rows: int) -> None:
    x, weight, bias = random(rows, 200), random(70, 200), random(70)
    out = thin_linear.thin_linear(x, weight, bias, thin_linear.ThinShape(outs=16, depth=256))
    assert error(out, x.double() @ weight.double().T + bias.double()) < TOLERANCE


def unfinished(parts: int, scaled: bool, rows: int, outs: int) -> tuple[Product, torch.Tensor]:
    """A product as a matrix product may leave it, and what it is worth."""
    values = random(parts, rows, outs, dtype=torch.float32) if parts > 1 else random(rows, outs)
    worth = values.double().sum(0) if parts > 1 else values.double()
    if not scaled:
        return Product(values, DTYPE), worth
    row_scale, out_scale = random(rows, 1, dtype=torch.float32), random(1, outs, dtype=torch.float32)
    return Product(values, DTYPE, row_scale, out_scale), worth * row_scale * out_scale


@pytest.mark.parametrize(("parts", "scaled"), [(1, True), (3, False), (2, True)])
def test_a_product_is_finished_by_the_kernel_that_reads_it(parts: int, scaled: bool) -> None:
    product, worth = unfinished(parts, scaled, 5, 192)
    picked, wanted = product.select(ints([4, 1])), worth[[4, 1]]
    weight, residual = random(192, dtype=torch.float32), random(2, 192)
    expected_residual = residual.double()
    expected, _ = reference.rms_norm(wanted, weight, 1e-5, expected_residual)
    assert error(elementwise.rms_norm(picked, weight, 1e-5, residual)[0], expected) < TOLERANCE
    assert error(residual, expected_residual) < TOLERANCE
    assert error(elementwise.gated(product, False)[0], reference.gated(worth, False)[0]) < TOLERANCE
    paged = Paged([20, 33], 1, 32, 16)
    cos_sin = (torch.ones(64, 16, device=DEVICE), torch.zeros(64, 16, device=DEVICE))
    slots, positions = ints([0, 1, 1, 0, 0]), ints([19, 15, 32, 3, -1])
    cache, cached = paged.cache.clone(), paged.cache.double()
    q = elementwise.rope_and_store(product, cache, None, cos_sin, paged.table, slots, positions, 4, 1e-5)
    expected = reference.rope_and_store(worth, cached, None, cos_sin, paged.table, slots, positions, 4, 1e-5)
    assert error(q[:4], expected[:4]) < TOLERANCE
    assert error(cache, cached) < TOLERANCE


@pytest.mark.parametrize(
    ("rows", "outs", "size", "bias", "parts"),
    [(1, 128, 256, False, 2), (20, 72, 160, False, 1), (64, 64, 384, True, 1), (33, 64, 512, False, 4)],
)
def test_float8_linear_equals_the_reference(rows: int, outs: int, size: int, bias: bool, parts: int) -> None:
    x, x_scale = reference.quantize_rows(random(rows, size))
    weight, w_scale = reference.quantize_rows(random(outs, size))
    added = random(outs) if bias else None
    shape = float8_linear.Float8Shape(depth=32, programs=4)
    out = float8_linear.float8_linear((x, x_scale), (weight, w_scale.T.contiguous()), added, DTYPE, shape)
    expected = (x.double() * x_scale) @ (weight.double() * w_scale).T
    assert (out.rows, out.outs, out.parts, out.dtype) == (rows, outs, parts, DTYPE)
    values = out.values.double().sum(0) if parts > 1 else out.values
    assert error(values, expected if added is None else expected + added.double()) < max(TOLERANCE, 1e-5)
    whole = float8_linear.float8_linear((x, x_scale), (weight, w_scale.T.contiguous()), added, DTYPE, shape, True)
    assert whole.parts == 1


def test_greedy_takes_the_lowest_of_equal_tokens_and_remembers_it() -> None:
    logits = random(3, 5000)
    logits[0, [77, 4000]] = 100.0
    logits[1, 4999] = 100.0
    last = ints([-5] * 6)
    tokens = elementwise.greedy_and_remember(logits, last, ints([4, 1, 2]))
    assert tokens.tolist()[:2] == [77, 4999]
    assert tokens.tolist()[2] == int(logits[2].argmax())
    assert last.tolist() == [-5, 4999, tokens.tolist()[2], -5, 77, -5]


def test_embed_takes_the_token_of_the_last_step_where_the_id_is_minus_one() -> None:
    weights = random(9, 40)
    out = elementwise.embed(weights, ints([3, -1, 0]), ints([0, 1, 2]), ints([7, 8, 7]), 2.0)
    assert error(out, weights[[3, 8, 0]].double() * 2.0) < TOLERANCE


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("programs", [1, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "block"), [(4, 2, 32, 32), (3, 1, 64, 64), (9, 1, 32, 64)])
def test_decode_attention_reads_a_float8_cache(
    heads: int, kv_heads: int, dim: int, block: int, programs: int, window: int
) -> None:
    paged = Paged([1, 64, 45, 170], kv_heads, dim, block, dtype=reference.FP8)
    slots, positions = ints([2, 0, 1, 3, 3]), ints([44, 0, 63, 169, -1])
    q = random(5, heads, dim)
    out = torch.full_like(q, float("nan"))
    shape = decode_attention.DecodeShape(tile=64, warps=4, stages=3, programs=programs, max_splits=4)
    decode_attention.decode_attention(q, out, paged.cache, paged.table, slots, positions, 0.2, window, shape)
    expected = reference.decode_attention(q.double(), paged.cache, paged.table, slots, positions, 0.2, window)
    assert error(out, expected) < (5e-3 if CUDA else 2e-2)  # the interpreter cuts off what float8 cannot hold
    assert not out[4].any()


def test_prefill_attention_reads_a_float8_cache() -> None:
    heads, dim, n = 4, 32, 40
    paged = Paged([n], 2, dim, block=32, dtype=reference.FP8)
    q = random(n, heads, dim)
    out, packed = torch.zeros_like(q), ints([0, n, 0, 0]).view(4, 1)
    shape = prefill_attention.PrefillShape(rows=16, tile=16)
    tiles = ints([0, 0, 0, 16, 0, 32]).view(-1, 2)
    prefill_attention.prefill_attention(q, out, paged.cache, paged.table, tiles, packed, 0.2, 0, shape)
    expected = reference.prefill_attention(q.double(), paged.cache, paged.table, packed, 0.2, 0)
    assert error(out, expected) < 5e-3
