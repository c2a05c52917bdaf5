"""Compile kernels without a GPU: exactly as their launchers would launch them on a given chip.

A launcher is called with tensors on the `meta` device while launches are recorded instead of made;
each is then compiled as the launch would have been, with the same constants, warps and stages.
This needs Triton outside its interpreter.
"""

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from drawloom.engine.kernel_tools.compile_cache import cached
from drawloom.engine.kernels.gpu_arch import pretend
from drawloom.errors import ConfigError

# bytes of shared memory that one program may have (CUDA C++ Programming Guide, table 27)
SHARED_LIMIT = {80: 166_912, 90: 232_448}
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_OPTIONS = ("num_warps", "num_stages", "launch_pdl")


@dataclass(frozen=True, slots=True)
class Launch:
    """Record a kernel and what it would have been launched with."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return the kernel's module and name, such as ``decode.split``."""
        return f"{self.kernel.__module__.rpartition('.')[2]}.{self.kernel.__name__.lstrip('_')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """Describe a compiled kernel.

    Attributes:
        name: module and name of the kernel.
        chip: 90 for ``sm_90``.
        warps: warps of a program.
        registers: registers of a thread.
        shared: bytes of shared memory of a program.
        spilled: bytes of a thread's stack; our kernels have no arrays, so these are spills.
        wgmma: it multiplies by warpgroups.
        binary: SHA-256 of the machine code.
        form: the launch that it was met in.
    """

    name: str
    chip: int
    warps: int
    registers: int
    shared: int
    spilled: int
    wgmma: bool
    binary: str
    form: str = ""

    @property
    def fits(self) -> bool:
        """Return whether it can be launched and keeps its values in registers."""
        return self.shared <= SHARED_LIMIT[self.chip] and not self.spilled


@contextmanager
def recording(chip: int) -> Iterator[list[Launch]]:
    """Record the launches that would be made on ``sm_<chip>``, instead of making them.

    Raises:
        ConfigError: Triton's interpreter is on.
    """
    if triton.knobs.runtime.interpret:
        raise ConfigError("kernels are compiled outside the interpreter: unset TRITON_INTERPRET")
    launches: list[Launch] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        names = dict(zip(self.arg_names, args, strict=False))
        launches.append(Launch(self, {**names, **kwargs}, options, tuple(grid)))

    before = JITFunction.run
    JITFunction.run = run
    try:
        with pretend(chip):
            yield launches
    finally:
        JITFunction.run = before


def compile_for(launch: Launch, chip: int) -> Compiled:
    """Compile a launch for ``sm_<chip>``, or take the result from the cache.

    Raises what Triton raises for a kernel that it cannot compile.
    """
    source = _source(launch)
    parts = [source.hash(), triton.__version__, str(chip), repr(sorted(launch.options.items()))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def compute() -> dict[str, Any]:
        made = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=launch.options)
        registers, stack = _resources(made.asm["cubin"])
        return {
            "warps": made.metadata.num_warps,
            "registers": registers,
            "shared": made.metadata.shared,
            "spilled": stack,
            "wgmma": "wgmma.mma_async" in made.asm["ptx"],
            "binary": hashlib.sha256(made.asm["cubin"]).hexdigest(),
        }

    return Compiled(name=launch.name, chip=chip, **cached(key, compute))


def _source(launch: Launch) -> ASTSource:
    """Specialise a kernel on its arguments as Triton does at a launch."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or one:
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        if parameter.do_not_specialize:
            continue
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return the registers and stack bytes of a thread, from the toolkit's dump of the binary."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        dump = subprocess.run(
            [tool, "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", dump)
    if found is None:
        raise ConfigError(f"cuobjdump reports no registers: {dump!r}")
    return int(found[1]), int(found[2])


__all__ = ["SHARED_LIMIT", "Compiled", "Launch", "compile_for", "recording"]
