"""Every kernel compiles for a GPU, where there is none: outside the interpreter, in a process of
its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import drawloom.engine.kernels
from tests.lanes import slow_unless

# the first launch of each kernel, without the command line that compiles all of them
REPRESENTATIVE = """
from dataclasses import asdict
from json import dumps
from drawloom.engine.kernel_tools.launch_configs import compiled
rows = [asdict(k) | {"fits": k.fits} for k in compiled((80, 90), representative=True)]
print(dumps({"kernels": [r | {"kernel": r["name"], "chip": f"sm_{r['chip']}"} for r in rows]}))
"""
WAYS = {"representative": ["-c", REPRESENTATIVE], "all": ["-m", "drawloom", "bench", "kernels"]}


@pytest.fixture(scope="module", params=slow_unless(WAYS, ["representative"]))
def kernels(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *WAYS[request.param], "--json"],
        env=env,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode in (0, 1), done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["kernels"]
    return found


def test_every_kernel_is_compiled_for_both_chips(kernels: list[dict[str, Any]]) -> None:
    by_chip = {
        chip: {row["kernel"] for row in kernels if row["chip"] == chip}
        for chip in ("sm_80", "sm_90")
    }
    assert by_chip["sm_80"] == by_chip["sm_90"]
    folder = Path(next(iter(drawloom.engine.kernels.__path__)))
    launching = {
        path.stem
        for path in folder.glob("*.py")
        if re.search(r"^ +_\w+\[\(", path.read_text(), re.M)
    }
    assert {name.partition(".")[0] for name in by_chip["sm_90"]} == launching


def test_no_kernel_spills_or_asks_for_more_shared_memory_than_there_is(
    kernels: list[dict[str, Any]],
) -> None:
    assert [row for row in kernels if not row["fits"]] == []


def test_prefill_and_cascade_multiply_by_warpgroups(kernels: list[dict[str, Any]]) -> None:
    wide = [r for r in kernels if r["kernel"] in ("prefill.prefill", "cascade.shared")]
    assert {r["wgmma"] for r in wide if r["chip"] == "sm_90"} == {True}


def test_a_launch_is_not_recorded_in_the_interpreter() -> None:
    from drawloom.engine.kernel_tools.aot_compile import recording
    from drawloom.errors import ConfigError

    with pytest.raises(ConfigError, match="TRITON_INTERPRET"), recording(90):
        pass
