"""Every example runs as its first lines say."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from drawloom.runtime.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = {
    "quickstart.py": ":solve --sandbox process",
    "best_of.py": ":guess --sandbox none",
    "pipeline.py": ':report --sandbox none --state \'{"files": ["brave-piano.txt"]}\'',
}


def test_all_examples_are_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(LINES)


@pytest.mark.parametrize("name", LINES)
def test_an_example_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(f"run {EXAMPLES / name}{LINES[name]} --store sqlite:///s.db")
    monkeypatch.setattr(sys, "argv", ["drawloom", *words])
    assert main() == 0
    printed = capsys.readouterr().out
    if name == "quickstart.py":
        assert printed.strip().endswith("442")
    elif name == "pipeline.py":
        assert "rounds=2" in printed


@pytest.mark.slow
def test_the_training_of_the_tiny_model_writes_a_checkpoint(tmp_path: Path) -> None:
    words = [str(EXAMPLES / "tinyagent/train.py"), "--seconds", "1", "--out", str(tmp_path / "m")]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    written = {path.name for path in (tmp_path / "m").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"} <= written
