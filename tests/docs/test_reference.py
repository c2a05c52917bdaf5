"""The reference names all that there is, and nothing else."""

import re

import drawloom
from drawloom import errors
from drawloom.engine.api.engine import EngineInfo, EngineStats
from drawloom.runtime.scheduler.policies import policy_names
from drawloom.runtime.server.metrics import Timings, render
from tests.docs.page_runner import ROOT

REFERENCE = ROOT / "docs/reference"


def test_every_public_name_has_one_entry() -> None:
    pages = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    entries = re.findall(r"^::: drawloom\.(\w+)$", pages, re.MULTILINE)
    assert sorted(entries) == sorted(drawloom.__all__)


def test_metrics_are_those_of_the_server() -> None:
    info = EngineInfo("e", "m", "cpu", max_context=64, kv_tokens=64, block_size=16)
    page = render(Timings(info), info, EngineStats(), 0).decode()
    served = dict(re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE))
    served = {name.removesuffix("_total"): kind for name, kind in served.items()}
    served = {name: kind for name, kind in served.items() if not name.endswith("_created")}
    text = (REFERENCE / "metrics.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \|", text, re.MULTILINE)
    assert dict(rows) == served


def test_every_error_is_explained() -> None:
    named = set(re.findall(r"`(\w+)`", (REFERENCE / "errors.md").read_text()))
    assert set(errors.__all__) <= named


def test_the_policies_to_choose_from_are_those_that_there_are() -> None:
    page = (ROOT / "docs/howto/policy.md").read_text().partition("```")[0]
    rows = re.findall(r"^\| (.+?) \|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)(?::N)?`", row)}
    assert named == set(policy_names())
