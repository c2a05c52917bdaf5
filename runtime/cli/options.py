"""Options that several commands share: their names, bounds and help."""

import os
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

STORE = os.environ.get("DRAWLOOM_STORE", "sqlite:///.drawloom/programs.db")


def _at_least(least: float) -> Parameter:
    return Parameter(validator=Number(gte=least))


Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead.")]
StoreUrl = Annotated[
    str,
    Parameter(
        name="--store", help="Where programs are kept: sqlite:///FILE or postgresql+psycopg://…"
    ),
]
Model = Annotated[str, Parameter(help="A model folder, a hub id, or the model in the box.")]
Policy = Annotated[str, Parameter(help="How programs are scheduled, by name.")]
Kind = Annotated[str, Parameter(help="auto, docker, process, none, or a broker's mqtt[s]:// URL.")]
Docker = Annotated[str | None, Parameter(help="The Docker engine's URL; by default DOCKER_HOST.")]
Device = Annotated[str, Parameter(help="auto (a GPU if there is one), cpu or cuda.")]
Dtype = Annotated[str, Parameter(help="auto, float32, bfloat16 or float16.")]
Workload = Annotated[str, Parameter(help="A workload by name, or a trace file.")]
Machine = Annotated[
    str,
    Parameter(help="h200-8b, 4xh200-70b, or a file that `drawloom profile --out` wrote."),
]

KvTokens = Annotated[int, _at_least(0), Parameter(help="Tokens of KV cache; 0 takes what fits.")]
Pressure = Annotated[
    float, _at_least(0), Parameter(help="KV capacity over working set; 0 is memory without end.")
]
Seeds = Annotated[int, _at_least(1), Parameter(help="Draws of programs and arrivals.")]
Programs = Annotated[
    int, _at_least(0), Parameter(help="Programs of each draw; 0 is four times those in flight.")
]
Count = Annotated[int, _at_least(1)]
Size = Annotated[int, _at_least(0)]
Seconds = Annotated[float, _at_least(0)]


__all__ = [
    "STORE",
    "Count",
    "Device",
    "Docker",
    "Dtype",
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
    "Size",
    "StoreUrl",
    "Workload",
]
