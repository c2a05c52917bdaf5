"""What all tests share. Triton's interpreter must be chosen before triton is imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import drawloom.engine  # noqa: F401  (before torch loads)
from tests.lanes import FULL, QUICK

# an example's time says how busy the machine is, not whether the code is right
settings.register_profile("quick", deadline=None, max_examples=QUICK)
settings.register_profile("full", deadline=None, max_examples=FULL)
settings.load_profile("quick")  # `make test-all` asks for the other


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of 260 tokens with the chat's special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def docker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """A Docker engine with the demo's image: the one that answers (None), or a private one that
    runs as long as the tests. Skips where there is none and none can be started."""
    from drawloom.sandbox.docker.demo_image import build_box
    from drawloom.sandbox.docker.private_daemon import PrivateDaemon, answers

    if answers():
        build_box()
        yield None
    elif PrivateDaemon.possible():
        with PrivateDaemon(tmp_path_factory.mktemp("docker")) as url:
            build_box(url)
            yield url
    else:
        pytest.skip("no Docker engine answers, and starting one needs root and dockerd")
