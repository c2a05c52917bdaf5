"""Functions of `native.c` over tensors; `load` returns None where it cannot be compiled."""

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.compile_c import CannotCompile, compiled
from drawloom.engine.kernels.types import BatchMeta, RopeArgs

# sums may be split over lanes, and clamps become minima and maxima
_FLAGS = tuple(
    "-O3 -march=native -fassociative-math -fno-signed-zeros -fno-trapping-math -fno-math-errno "
    "-ffinite-math-only -ffp-contract=fast -shared -fPIC".split()
)
_SOURCE = Path(__file__).with_name("native.c")
DTYPES = (torch.float32, torch.bfloat16)
_MAX_GROUP, _MAX_DEPTH = 96, 256  # as in native.c
_PANEL = 64
_PARALLEL_WORK = 1 << 18  # multiplications from which a second thread pays off


class _Attention(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("q", "keys", "values", "out")),
        *((name, c_void_p) for name in ("tables", "widths", "counts", "contexts")),
        *((name, c_int64) for name in ("sequences", "heads", "kv_heads", "depth", "size")),
        *((name, c_int64) for name in ("head_stride", "slot_stride", "window")),
        ("scale", c_float),
        ("half", c_int),
        ("parallel", c_void_p),
        ("threads", c_int64),
        ("next", c_int64),
    ]


class _Linear(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("x", "weights", "bias", "out")),
        *((name, c_int64) for name in ("rows", "inputs", "outputs")),
        ("half", c_int),
        ("parallel", c_void_p),
        ("threads", c_int64),
        ("next", c_int64),
    ]


class _Layer(Structure):
    _fields_ = [
        *((name, _Linear) for name in ("qkv", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_norm")),
    ]


class _Layers(Structure):
    _fields_ = [
        ("layers", c_void_p),
        *((name, c_int64) for name in ("count", "tokens", "width")),
        *((name, c_void_p) for name in ("x", "residual", "normed", "wide", "narrow")),
        *((name, c_void_p) for name in ("cos", "sin", "positions", "slots")),
        ("layer_stride", c_int64),
        ("eps", c_float),
        ("attention", _Attention),
    ]


class Native:
    """Call the compiled functions.

    They take contiguous float32 or bfloat16 tensors on the CPU, unless stated otherwise.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._norm = library.drawloom_rms_norm
        self._norm.argtypes = [c_void_p] * 5 + [c_int64] * 2 + [c_float, c_int]
        self._silu = library.drawloom_silu_mul
        self._silu.argtypes = [c_void_p] * 2 + [c_int64] * 2 + [c_int]
        self._rope = library.drawloom_rope_store
        self._rope.argtypes = [c_void_p] * 10 + [c_int64] * 9 + [c_int]
        self._attention = library.drawloom_attention
        self._attention.argtypes = [POINTER(_Attention)]
        self._linear = library.drawloom_linear
        self._linear.argtypes = [POINTER(_Linear)]
        self._linear.restype = None
        self._layers = library.drawloom_layers
        self._layers.argtypes = [POINTER(_Layers)]
        self._layers.restype = None
        self._parallel = _parallel()
        for void in (self._norm, self._silu, self._rope):
            void.restype = None
        self._meta: BatchMeta | None = None
        self._arrays: tuple[Tensor, Tensor, Tensor, Tensor, int] | None = None

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the RMS norm of ``x + residual`` and that sum, both [T, H]."""
        x = x.contiguous()
        out, total = torch.empty_like(x), torch.empty_like(x)
        more = None if residual is None else residual.contiguous().data_ptr()
        width = x.shape[-1]
        pointers = (x.data_ptr(), more, weight.data_ptr(), out.data_ptr(), total.data_ptr())
        self._norm(*pointers, x.numel() // width, width, eps, x.dtype is torch.bfloat16)
        return out, total

    def silu_mul(self, x: Tensor) -> Tensor:
        """Return ``silu(a) * b`` [T, I] of x = [a, b] [T, 2 I]."""
        x = x.contiguous()
        rows, width = x.shape[0], x.shape[1] // 2
        out = x.new_empty(rows, width)
        self._silu(x.data_ptr(), out.data_ptr(), rows, width, x.dtype is torch.bfloat16)
        return out

    def linear(self, x: Tensor, panels: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
        """Return x [M, K] times the weights [outputs, K] that `packed` packed, plus a bias."""
        x = x.contiguous()
        rows, inputs = x.shape[0], panels.shape[1]
        out = x.new_empty(rows, outputs)
        call = _Linear(
            x=x.data_ptr(),
            weights=panels.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            out=out.data_ptr(),
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            half=x.dtype is torch.bfloat16,
            parallel=self._parallel,
            threads=self._threads(rows * inputs * outputs),
        )
        self._linear(byref(call))
        return out

    def layers(
        self,
        described: "ctypes.Array[_Layer]",
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        store: Tensor,
        heads: int,
        eps: float,
        meta: BatchMeta,
    ) -> tuple[Tensor, Tensor]:
        """Compute layers, one after the other.

        Args:
            described: the layers, by `describe`.
            x: [T, H], overwritten.
            rope: cosines and sines [P, d / 2] by position, float32.
            store: [blocks, layers, 2, size, kv_heads, d], with strides; its first layers are used.
            heads: query heads.
            eps: epsilon of the norms.
            meta: positions of the T tokens.

        Returns:
            The last layer's output and the residual that it is to be added to, both [T, H].
        """
        tokens, width = x.shape
        size, kv_heads, depth = store.shape[3:]
        inner = described[0].down.inputs * (2 if x.dtype is torch.bfloat16 else 1)
        residual, normed = torch.empty_like(x), torch.empty_like(x)
        wide = x.new_empty(tokens, max(2 * inner, (heads + 2 * kv_heads) * depth))
        narrow, q, out = (x.new_empty(tokens, n) for n in (inner, heads * depth, heads * depth))
        tables, widths, counts, contexts, _ = self._step_arrays(meta)
        attention = _Attention(
            q=q.data_ptr(),
            keys=store[:, 0, 0].data_ptr(),
            values=store[:, 0, 1].data_ptr(),
            out=out.data_ptr(),
            tables=tables.data_ptr(),
            widths=widths.data_ptr(),
            counts=counts.data_ptr(),
            contexts=contexts.data_ptr(),
            sequences=len(meta.contexts),
            heads=heads,
            kv_heads=kv_heads,
            depth=depth,
            size=size,
            head_stride=store.stride(4),
            slot_stride=store.stride(3),
            window=meta.window,
            scale=depth**-0.5,
            half=x.dtype is torch.bfloat16,
            parallel=self._parallel,
            threads=torch.get_num_threads() if self._parallel else 1,
        )
        call = _Layers(
            layers=ctypes.addressof(described),
            count=len(described),
            tokens=tokens,
            width=width,
            x=x.data_ptr(),
            residual=residual.data_ptr(),
            normed=normed.data_ptr(),
            wide=wide.data_ptr(),
            narrow=narrow.data_ptr(),
            cos=rope[0].data_ptr(),
            sin=rope[1].data_ptr(),
            positions=meta.positions.data_ptr(),
            slots=meta.kv_slots.data_ptr(),
            layer_stride=store.stride(1),
            eps=eps,
            attention=attention,
        )
        self._layers(byref(call))
        return x, residual

    def _threads(self, work: int) -> int:
        """Return the threads for `work` multiplications: waking a thread takes 10 us."""
        return torch.get_num_threads() if self._parallel and work > _PARALLEL_WORK else 1

    def rope_and_store(self, args: RopeArgs) -> Tensor:
        """Rotate queries and keys, and store keys and values; return the rotated queries.

        Unlike those of `Ops.rope_and_store`, `args.keys` and `args.values` are [kv_heads, slots, d]
        with any strides of the first two, and there are no norms. Queries, keys and values may have
        any stride between tokens; `args.rope` is float32.
        """
        meta, keys, (cos, sin) = args.meta, args.keys, args.rope
        q, k, v = (
            t if t.stride()[1:] == (t.shape[2], 1) else t.contiguous()
            for t in (args.q, args.k, args.v)
        )
        tokens, heads, depth = q.shape
        rotated = torch.empty((tokens, heads, depth), dtype=q.dtype)
        given = (q, k, v, rotated, keys, args.values, cos, sin, meta.positions, meta.kv_slots)
        sizes = (tokens, heads, k.shape[1], depth)
        strides = (q.stride(0), k.stride(0), v.stride(0), keys.stride(0), keys.stride(1))
        pointers = [tensor.data_ptr() for tensor in given]
        self._rope(*pointers, *sizes, *strides, q.dtype is torch.bfloat16)
        return rotated

    def attention(
        self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta, size: int
    ) -> Tensor:
        """Compute causal attention.

        Args:
            q: [T, heads, d].
            keys: [kv_heads, slots, d], with any strides of the first two.
            values: alike.
            meta: positions of the T tokens.
            size: KV slots of a block.
        """
        q = q.contiguous()
        out = torch.empty_like(q)
        tables, widths, counts, contexts, work = self._step_arrays(meta)
        threads = self._threads(work * q.shape[1] * q.shape[2])
        call = _Attention(
            q=q.data_ptr(),
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            out=out.data_ptr(),
            tables=tables.data_ptr(),
            widths=widths.data_ptr(),
            counts=counts.data_ptr(),
            contexts=contexts.data_ptr(),
            sequences=len(meta.contexts),
            heads=q.shape[1],
            kv_heads=keys.shape[0],
            depth=q.shape[2],
            size=size,
            head_stride=keys.stride(0),
            slot_stride=keys.stride(1),
            window=meta.window,
            scale=q.shape[2] ** -0.5,
            half=q.dtype is torch.bfloat16,
            parallel=self._parallel,
            threads=threads,
        )
        refused = self._attention(byref(call))
        assert not refused, f"a group of {q.shape[1] // keys.shape[0]} and depth {q.shape[2]}"
        return out

    def _step_arrays(self, meta: BatchMeta) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Return a step's lists as arrays, and its (query, key) pairs; cached for all layers."""
        if self._arrays is None or self._meta is not meta:
            counts, contexts = meta.query_lengths, meta.contexts
            lists = (
                [block for table in meta.tables for block in table],
                [len(table) for table in meta.tables],
                counts,
                contexts,
            )
            tables, widths, new, known = (torch.tensor(one, dtype=torch.int32) for one in lists)
            work = sum(count * context for count, context in zip(counts, contexts, strict=True))
            self._meta, self._arrays = meta, (tables, widths, new, known, work)
        return self._arrays


def _parallel() -> int | None:
    """Return the address of `GOMP_parallel` in the OpenMP that torch has loaded, or None.

    A second team of threads beside torch's would compete with it for the same cores.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        paths = dict.fromkeys(line.split()[-1] for line in lines if "omp" in line.split()[-1])
        for path in paths:
            if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
                found = ctypes.cast(ctypes.CDLL(path).GOMP_parallel, c_void_p).value
                return found
    except (OSError, AttributeError):
        pass
    return None


@cache
def load() -> Native | None:
    """Load the functions, compiled for this processor on first use (three seconds).

    Returns:
        None where they cannot be compiled; torch computes the same, slower.
    """
    try:
        return Native(ctypes.CDLL(str(compiled(_SOURCE, _FLAGS, own_cpu=True))))
    except (CannotCompile, OSError):
        return None


def describe(
    layers: list[tuple[list[tuple[Tensor, Tensor | None, int]], list[Tensor]]],
) -> "ctypes.Array[_Layer]":
    """Describe layers to `Native.layers`.

    Args:
        layers: of each, its four products as (panels, bias, outputs), and the gains of its two
            norms. The tensors must outlive the result.
    """
    array = (_Layer * len(layers))()
    for target, (linears, norms) in zip(array, layers, strict=True):
        for name, (panels, bias, outputs) in zip(
            ("qkv", "output", "gate_up", "down"), linears, strict=True
        ):
            linear = getattr(target, name)
            linear.weights, linear.bias = (
                panels.data_ptr(),
                bias.data_ptr() if bias is not None else None,
            )
            linear.inputs, linear.outputs = panels.shape[1], outputs
        target.input_norm, target.post_norm = (norm.data_ptr() for norm in norms)
    return array


def packs(weight: Tensor) -> bool:
    """Return whether `packed` supports this weight, and nothing else is faster.

    Our product is 1.02-1.07 times as fast as oneDNN's for 512 rows and 1.4-1.9 times for one to
    eight (CPU time on one AMD Zen 4 core). Processors with tiles (AMX) have bfloat16 products that
    only oneDNN uses.
    """
    half = weight.dtype is torch.bfloat16
    return weight.dtype in DTYPES and not (half and (weight.shape[1] % 2 or _has_tiles()))


@cache
def _has_tiles() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def packed(weight: Tensor) -> Tensor:
    """Pack weights [N, K] into 32-bit words [panels, K or K / 2, 64], padded with zeros."""
    weight = F.pad(weight, (0, 0, 0, -weight.shape[0] % _PANEL)).contiguous()
    words: Tensor = weight.view(torch.int32).unflatten(0, (-1, _PANEL))
    return words.transpose(1, 2).contiguous()


def supports(q: Tensor, keys: Tensor) -> bool:
    """Return whether `Native.attention` supports these queries and keys."""
    return q.dtype in DTYPES and supports_heads(q.shape[1] // keys.shape[0], q.shape[2])


def supports_heads(group: int, depth: int) -> bool:
    """Return whether attention is compiled for `group` query heads a key head, of this depth."""
    return group <= _MAX_GROUP and depth <= _MAX_DEPTH


__all__ = [
    "DTYPES",
    "Native",
    "describe",
    "load",
    "packed",
    "packs",
    "supports",
    "supports_heads",
]
