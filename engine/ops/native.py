"""`native.c` as functions over tensors; `load` says None where it cannot be compiled."""

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from drawloom.compile_c import CannotCompile, compiled
from drawloom.engine.ops.base import BatchMeta

# sums may be split over lanes, and clamps become minima and maxima
_FLAGS = (
    "-O3", "-march=native", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math",
    "-fno-math-errno", "-ffinite-math-only", "-ffp-contract=fast", "-shared", "-fPIC",
)  # fmt: skip
_SOURCE = Path(__file__).with_name("native.c")
DTYPES = (torch.float32, torch.bfloat16)
_MAX_GROUP, _MAX_DEPTH = 96, 256
_PANEL = 64
_WORTH = 1 << 18


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
    """The compiled functions. All take contiguous float32 or bfloat16 tensors on the CPU, if not
    said otherwise."""

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
        self._places: tuple[Tensor, Tensor, Tensor, Tensor, int] | None = None

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        out, total = torch.empty_like(x), torch.empty_like(x)
        more = None if residual is None else residual.contiguous().data_ptr()
        width = x.shape[-1]
        self._norm(
            x.data_ptr(), more, weight.data_ptr(), out.data_ptr(), total.data_ptr(),
            x.numel() // width, width, eps, x.dtype is torch.bfloat16,
        )  # fmt: skip
        return out, total

    def silu_mul(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows, width = x.shape[0], x.shape[1] // 2
        out = x.new_empty(rows, width)
        self._silu(x.data_ptr(), out.data_ptr(), rows, width, x.dtype is torch.bfloat16)
        return out

    def linear(self, x: Tensor, panels: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
        """Return x [M, K] times weights that `packed` made [outputs, K], plus a bias."""
        x = x.contiguous()
        rows, inputs = x.shape[0], panels.shape[1]
        out = x.new_empty(rows, outputs)
        call = _Linear(
            x.data_ptr(), panels.data_ptr(), None if bias is None else bias.data_ptr(),
            out.data_ptr(), rows, inputs, outputs, x.dtype is torch.bfloat16, self._parallel,
            self._threads(rows * inputs * outputs),
        )  # fmt: skip
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
            x: [T, H], written over.
            store: [blocks, layers, 2, size, kv_heads, d], with strides; the first layers' is used.
            heads: heads of queries.

        Returns:
            What the last layer adds and the residual that it is to be added to, [T, H].
        """
        tokens, width = x.shape
        size, kv_heads, depth = store.shape[3:]
        inner = described[0].down.inputs * (2 if x.dtype is torch.bfloat16 else 1)
        residual, normed = torch.empty_like(x), torch.empty_like(x)
        wide = x.new_empty(tokens, max(2 * inner, (heads + 2 * kv_heads) * depth))
        narrow, q, out = (x.new_empty(tokens, n) for n in (inner, heads * depth, heads * depth))
        tables, widths, counts, contexts, _ = self._of(meta)
        attention = _Attention(
            q.data_ptr(), store[:, 0, 0].data_ptr(), store[:, 0, 1].data_ptr(), out.data_ptr(),
            tables.data_ptr(), widths.data_ptr(), counts.data_ptr(), contexts.data_ptr(),
            len(meta.contexts), heads, kv_heads, depth, size, store.stride(4), store.stride(3),
            meta.window, depth**-0.5, x.dtype is torch.bfloat16, self._parallel,
            torch.get_num_threads() if self._parallel else 1,
        )  # fmt: skip
        call = _Layers(
            ctypes.addressof(described), len(described), tokens, width, x.data_ptr(),
            residual.data_ptr(), normed.data_ptr(), wide.data_ptr(), narrow.data_ptr(),
            rope[0].data_ptr(), rope[1].data_ptr(), meta.positions.data_ptr(),
            meta.slots.data_ptr(), store.stride(1), eps, attention,
        )  # fmt: skip
        self._layers(byref(call))
        return x, residual

    def _threads(self, work: int) -> int:
        """Return how many threads to use for so many products: waking one takes 10 us."""
        return torch.get_num_threads() if self._parallel and work > _WORTH else 1

    def rope_and_store(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        meta: BatchMeta,
    ) -> Tensor:
        """`q` [T, heads, d], `k` and `v` [T, kv_heads, d], each with rows any distance apart;
        `keys` and `values` [kv_heads, slots, d] alike, in place; `rope` float32."""
        q, k, v = (t if t.stride()[1:] == (t.shape[2], 1) else t.contiguous() for t in (q, k, v))
        tokens, heads, depth = q.shape
        rotated = torch.empty((tokens, heads, depth), dtype=q.dtype)
        self._rope(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), rotated.data_ptr(), keys.data_ptr(),
            values.data_ptr(), rope[0].data_ptr(), rope[1].data_ptr(), meta.positions.data_ptr(),
            meta.slots.data_ptr(), tokens, heads, k.shape[1], depth, q.stride(0), k.stride(0),
            v.stride(0), keys.stride(0), keys.stride(1), q.dtype is torch.bfloat16,
        )  # fmt: skip
        return rotated

    def attention(
        self, q: Tensor, keys: Tensor, values: Tensor, meta: BatchMeta, size: int
    ) -> Tensor:
        """`q` [T, heads, d]; `keys` and `values` [kv_heads, slots, d] alike, blocks of `size`."""
        q = q.contiguous()
        out = torch.empty_like(q)
        tables, widths, counts, contexts, work = self._of(meta)
        threads = self._threads(work * q.shape[1] * q.shape[2])
        call = _Attention(
            q.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr(), tables.data_ptr(),
            widths.data_ptr(), counts.data_ptr(), contexts.data_ptr(), len(meta.contexts),
            q.shape[1], keys.shape[0], q.shape[2], size, keys.stride(0), keys.stride(1),
            meta.window, q.shape[2] ** -0.5, q.dtype is torch.bfloat16, self._parallel, threads,
        )  # fmt: skip
        refused = self._attention(byref(call))
        assert not refused, f"a group of {q.shape[1] // keys.shape[0]} and depth {q.shape[2]}"
        return out

    def _of(self, meta: BatchMeta) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Return a step's tables as arrays, and its pairs of a query and a key; the same for all
        layers."""
        if self._places is None or self._meta is not meta:
            counts, contexts = meta.query_lengths, meta.contexts
            lists = (
                [block for table in meta.tables for block in table],
                [len(table) for table in meta.tables],
                counts,
                contexts,
            )
            tables, widths, new, known = (torch.tensor(one, dtype=torch.int32) for one in lists)
            work = sum(count * context for count, context in zip(counts, contexts, strict=True))
            self._meta, self._places = meta, (tables, widths, new, known, work)
        return self._places


def _parallel() -> int | None:
    """Return the address of `GOMP_parallel` in the OpenMP that torch has loaded, None without one.

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
    """The functions of this processor, compiled on first use (three seconds); None where they
    cannot be: torch computes the same, slower."""
    try:
        return Native(ctypes.CDLL(str(compiled(_SOURCE, _FLAGS, own_cpu=True))))
    except (CannotCompile, OSError):
        return None


def describe(
    layers: list[tuple[list[tuple[Tensor, Tensor | None, int]], list[Tensor]]],
) -> "ctypes.Array[_Layer]":
    """Return layers as `Native.layers` takes them: of each, its four products as panels, bias and
    outputs, and its two norms. All of them must outlive the result."""
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
    """Return whether `packed` does this weight, and nothing else is quicker.

    A product of ours is 1.02-1.07 times as quick as oneDNN's for 512 rows and 1.4-1.9 times for one
    to eight (CPU time on one AMD Zen 4 core). Processors with tiles (AMX) have bfloat16 products
    that only oneDNN knows.
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
    """Return weights [N, K] as words of 32 bits [panels, K or K / 2, 64], padded with zeros."""
    weight = F.pad(weight, (0, 0, 0, -weight.shape[0] % _PANEL)).contiguous()
    words: Tensor = weight.view(torch.int32).unflatten(0, (-1, _PANEL))
    return words.transpose(1, 2).contiguous()


def fits(q: Tensor, keys: Tensor) -> bool:
    """Whether `Native.attention` does this shape."""
    return q.dtype in DTYPES and fit(q.shape[1] // keys.shape[0], q.shape[2])


def fit(group: int, depth: int) -> bool:
    """Return whether attention is compiled for so many queries a key head, of this depth."""
    return group <= _MAX_GROUP and depth <= _MAX_DEPTH


__all__ = ["DTYPES", "Native", "describe", "fit", "fits", "load", "packed", "packs"]
