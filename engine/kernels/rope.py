"""Fused query and key norm (Qwen3), rotary embedding and store into the paged cache."""

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from drawloom.engine.kernels.gpu_arch import chained, follow
from drawloom.engine.kernels.types import RopeArgs


@triton.jit
def _kernel(
    q,
    k,
    v,
    out,
    q_norm,
    k_norm,
    cos,
    sin,
    positions,
    slots,
    keys,
    values,
    eps,
    q_token,
    k_token,
    v_token,
    cache_block,
    cache_token,
    cache_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    HALF: tl.constexpr,
    SIZE: tl.constexpr,
    NORM: tl.constexpr,
    TILE: tl.constexpr,
    MANY: tl.constexpr,
    CHAINED: tl.constexpr,
):
    follow(CHAINED)
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * MANY
    head, low = tl.arange(0, MANY)[:, None], tl.arange(0, TILE)[None, :]
    live = (head < MANY) & (low < HALF)
    slot = tl.load(slots + token).to(tl.int64)
    at = (slot // SIZE) * cache_block + (slot % SIZE) * cache_token
    if first >= HEADS + KV_HEADS:
        mine = first - HEADS - KV_HEADS + head
        source = v + token * v_token + mine * DEPTH + low
        target = values + at + mine * cache_head + low
        tl.store(target, tl.load(source, mask=live), mask=live)
        tl.store(target + HALF, tl.load(source + HALF, mask=live), mask=live)
    else:
        if first < HEADS:
            source = q + token * q_token + (first + head) * DEPTH + low
            gain = q_norm + low
        else:
            source = k + token * k_token + (first - HEADS + head) * DEPTH + low
            gain = k_norm + low
        kind = q.dtype.element_ty
        a = tl.load(source, mask=live, other=0.0).to(tl.float32)
        b = tl.load(source + HALF, mask=live, other=0.0).to(tl.float32)
        if NORM:
            scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / DEPTH + eps)[:, None]
            a = (a * scale).to(kind).to(tl.float32)
            b = (b * scale).to(kind).to(tl.float32)
            a *= tl.load(gain, mask=low < HALF, other=0.0).to(tl.float32)
            b *= tl.load(gain + HALF, mask=low < HALF, other=0.0).to(tl.float32)
        place = tl.load(positions + token) * HALF + low
        c = tl.load(cos + place, mask=low < HALF, other=0.0)
        s = tl.load(sin + place, mask=low < HALF, other=0.0)
        if first < HEADS:
            target = out + (token * HEADS + first + head) * DEPTH + low
        else:
            target = keys + at + (first - HEADS + head) * cache_head + low
        tl.store(target, (a * c - b * s).to(kind), mask=live)
        tl.store(target + HALF, (b * c + a * s).to(kind), mask=live)


def rope_and_store(args: RopeArgs) -> Tensor:
    """Rotate queries and keys, and store keys and values; see `Ops.rope_and_store`.

    One program handles a token and a few heads of a kind. The heads of a token must be contiguous.
    """
    q, k, v, keys, values, norms = args.q, args.k, args.v, args.keys, args.values, args.norms
    count, heads, depth = q.shape
    kv_heads = k.shape[1]
    assert keys.stride() == values.stride() and keys.stride(3) == 1
    out = torch.empty(count, heads, depth, dtype=q.dtype, device=q.device)
    q_norm, k_norm, eps = norms if norms is not None else (q, k, 0.0)
    many = gcd(heads, kv_heads, 8)
    _kernel[(count, (heads + 2 * kv_heads) // many)](
        q,
        k,
        v,
        out,
        q_norm,
        k_norm,
        *args.rope,
        args.meta.positions,
        args.meta.kv_slots,
        keys,
        values,
        eps,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        HEADS=heads,
        KV_HEADS=kv_heads,
        DEPTH=depth,
        HALF=depth // 2,
        SIZE=keys.shape[1],
        NORM=norms is not None,
        TILE=triton.next_power_of_2(depth // 2),
        MANY=many,
        **chained(),
    )
    return out
