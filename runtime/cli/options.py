"""Options that several commands share: names, bounds and help."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

if TYPE_CHECKING:
    from drawloom.engine.config import EngineConfig

STORE = os.environ.get("DRAWLOOM_STORE", "sqlite:///.drawloom/programs.db")


def _at_least(least: float) -> Parameter:
    return Parameter(validator=Number(gte=least))


Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead.")]
StoreUrl = Annotated[
    str,
    Parameter(
        name="--store", help="The store of programs: sqlite:///FILE or postgresql+psycopg://…"
    ),
]
Model = Annotated[str, Parameter(help="A model folder, a hub id, or tinyagent, the bundled model.")]
Policy = Annotated[str, Parameter(help="The scheduling policy.")]
Kind = Annotated[
    str,
    Parameter(help="auto, docker, process, none, or a broker's mqtt[s]:// URL."),
]
Docker = Annotated[str | None, Parameter(help="URL of the Docker engine; by default DOCKER_HOST.")]
Device = Annotated[str, Parameter(help="auto (a GPU if available), cpu or cuda.")]
Dtype = Annotated[str, Parameter(help="Data type of computation: auto, float32 or bfloat16.")]
Workload = Annotated[str, Parameter(help="A workload by name, or a trace file.")]
Machine = Annotated[
    str,
    Parameter(
        help="h200-8b, h200-8b-small, 4xh200-70b, cpu-135m, or a file of `drawloom profile "
        "--out`; by default the workload's own."
    ),
]

KvTokens = Annotated[
    int, _at_least(0), Parameter(help="Tokens of KV cache; 0 uses all free memory.")
]
Pressure = Annotated[
    float, _at_least(0), Parameter(help="KV capacity over working set; 0 is unlimited.")
]
Seeds = Annotated[int, _at_least(1), Parameter(help="Number of draws of programs and arrivals.")]
Programs = Annotated[
    int,
    _at_least(0),
    Parameter(help="Programs of each draw; 0 is four times those in flight."),
]
Count = Annotated[int, _at_least(1)]
Size = Annotated[int, _at_least(0)]
Seconds = Annotated[float, _at_least(0)]
Share = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]


Threads = Annotated[
    int,
    _at_least(0),
    Parameter(help="CPU threads; 0 is all physical cores that this process may use."),
]


@Parameter(name="*", help="Options of the embedded engine.")
@dataclass(frozen=True)
class EngineOptions:
    """Collect the options of the embedded engine."""

    device: Device = "auto"
    dtype: Dtype = "auto"
    weights: Annotated[
        Literal["dense", "int8"],
        Parameter(help="int8: one byte a weight, 2-3x faster on a CPU, slightly less exact."),
    ] = "dense"
    threads: Threads = 1  # leave cores for tools
    kv_tokens: KvTokens = 0
    host_tokens: Annotated[
        int, _at_least(0), Parameter(help="Tokens of evicted KV that are kept in host memory.")
    ] = 0
    block_size: Annotated[
        int, _at_least(1), Parameter(help="Tokens of a block of the KV cache.")
    ] = 16
    max_batch_tokens: Annotated[
        int,
        _at_least(0),
        Parameter(help="Most tokens of an engine step; 0 is 512 on a CPU and 8192 on a GPU."),
    ] = 0
    max_sequences: Annotated[
        int,
        _at_least(0),
        Parameter(help="Most requests of an engine step; 0 is 64 on a CPU and 256 on a GPU."),
    ] = 0
    deterministic: Annotated[
        bool,
        Parameter(
            negative="",
            help="Log-probabilities do not depend on concurrent requests; slower.",
        ),
    ] = False

    def config(self) -> "EngineConfig":
        """Return the engine's configuration.

        Raises:
            ConfigError: options contradict each other.
        """
        from drawloom.cores import physical_cores
        from drawloom.engine.config import EngineConfig

        return EngineConfig(
            device=self.device,
            dtype=self.dtype,
            weights=self.weights,
            block_size=self.block_size,
            kv_tokens=self.kv_tokens,
            host_tokens=self.host_tokens,
            max_batch_tokens=self.max_batch_tokens,
            max_sequences=self.max_sequences,
            threads=self.threads or physical_cores(),
            deterministic=self.deterministic,
        )


@Parameter(name="*", help="Options of the embedded engine.")
@dataclass(frozen=True)
class ServerEngineOptions(EngineOptions):
    """Collect the options of an engine that has the machine for itself."""

    threads: Threads = 0


__all__ = [
    "STORE",
    "Count",
    "Device",
    "Docker",
    "Dtype",
    "EngineOptions",
    "Json",
    "Kind",
    "KvTokens",
    "Machine",
    "Model",
    "Policy",
    "Pressure",
    "Programs",
    "Seconds",
    "Seeds",
    "ServerEngineOptions",
    "Share",
    "Size",
    "StoreUrl",
    "Workload",
]
