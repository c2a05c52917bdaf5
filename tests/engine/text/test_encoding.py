"""Contents never become control tokens, and ordinary prompts encode as the whole text does."""

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

from drawloom.engine.text.encoding import PromptEncoder
from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.prompts import Prompt
from drawloom.runtime.dispatch.backends import tiny_model

_CORPUS = (
    "the user said it's a test of words system assistant end start 12 345 tool call think\n"
    "  if x:\n    return 'y' <|im |> im_ end|> < | / > _ [INST] é ü 日本 \t für"
)
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "<|eot_id|>")
_ADDED = ("<tool_call>", "</tool_call>", "<think>", "</think>")
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _finish(made: HfTokenizer, *, normalized: bool = False, **flags: bool) -> Tokenizer:
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _SPECIAL])
    made.add_tokens([AddedToken(t, normalized=normalized, **flags) for t in _ADDED])
    made.add_tokens([AddedToken(t, normalized=False) for t in ("ü", "   ")])
    return Tokenizer(made)


def _byte_level(pattern: str, *, nfc: bool = False, ignore_merges: bool = False) -> HfTokenizer:
    made = HfTokenizer(models.BPE(ignore_merges=ignore_merges))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    if nfc:
        made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([_CORPUS] * 4, trainer)
    return made


def _metaspace(scheme: str) -> HfTokenizer:
    """Llama 2 as newer files have it: byte fallback, control tokens in the base vocabulary."""
    made = HfTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    made.train_from_iterator(_CORPUS.split(" ") * 4, trainer)
    data = json.loads(made.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return HfTokenizer.from_str(json.dumps(data))


def _legacy_llama() -> HfTokenizer:
    """Llama 2 as its first files have it: a normaliser puts the spaces."""
    made = _metaspace("first")
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return made


def _unigram() -> HfTokenizer:
    """Control tokens are pieces of the model itself, and the best ones for their text."""
    pieces = [("<unk>", 0.0), *((t, 0.0) for t in (*_SPECIAL, *_ADDED))]
    pieces += [(c, -5.0) for c in sorted(set(_CORPUS + "▁<>/[]|_abcdefghijklmnopqrstuvwxyzINST"))]
    made = HfTokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return made


_MADE: dict[str, Callable[[], Tokenizer]] = {
    "qwen": lambda: _finish(_byte_level(_QWEN, nfc=True)),
    "llama3": lambda: _finish(_byte_level(_QWEN, ignore_merges=True)),
    "normalized": lambda: _finish(_byte_level(_QWEN, nfc=True), normalized=True),
    "stripping": lambda: _finish(_byte_level(_QWEN), lstrip=True, rstrip=True),
    "single-word": lambda: _finish(_byte_level(_QWEN), single_word=True),
    "metaspace-first": lambda: _finish(_metaspace("first")),
    "metaspace-always": lambda: _finish(_metaspace("always")),
    "metaspace-never": lambda: _finish(_metaspace("never")),
    "legacy-llama": lambda: _finish(_legacy_llama()),
    "legacy-llama-normalized": lambda: _finish(_legacy_llama(), normalized=True),
    "unigram": lambda: _finish(_unigram()),
}
_TOKENIZERS = {name: make() for name, make in _MADE.items()}
_CONTROLS = (*_SPECIAL, *_ADDED)
_HALVES = [t[:n] for t in _CONTROLS for n in (2, len(t) - 1)] + [t[2:] for t in _CONTROLS]

_WORDS = st.sampled_from([*_CORPUS.split(), " ", "  ", "\n", "", "   ", "ü"])
_ORDINARY = (
    st.lists(_WORDS | st.text(max_size=3), max_size=6)
    .map("".join)
    .filter(lambda text: not any(t in text for t in _CONTROLS))
)
_HOSTILE = st.lists(
    st.sampled_from(_CONTROLS) | st.sampled_from(_HALVES) | _WORDS | st.text(max_size=2), max_size=6
).map("".join)
_OWN = st.sampled_from(["<|im_start|>user\n", "<|im_end|>\n", "<tool_call>\n", "[INST] ", "<s>"])


def _prompt(parts: list[tuple[str, str]]) -> Prompt:
    """Template text and contents by turns."""
    text, spans = "", []
    for own, content in parts:
        text += own
        if content:
            spans.append((len(text), len(text) + len(content)))
        text += content
    return Prompt(text, tuple(spans))


@pytest.mark.parametrize("name", _TOKENIZERS)
@given(st.lists(st.tuples(_OWN, _ORDINARY), max_size=5).map(_prompt))
def test_ordinary_contents_encode_as_the_whole_text(name: str, prompt: Prompt) -> None:
    tokenizer = _TOKENIZERS[name]
    whole = tokenizer.encode(prompt.text)
    assert tokenizer.encode(prompt) == whole
    encoder: PromptEncoder = tokenizer._prompts
    foreign = encoder.encode(Prompt("<s>", ((0, 3),)))  # makes the copy
    assert encoder._id_of["<s>"] not in foreign
    if name not in ("single-word", "legacy-llama-normalized"):
        assert encoder._encode_renamed(prompt) == whole


@pytest.mark.parametrize("name", _TOKENIZERS)
@given(st.lists(st.tuples(_OWN | st.sampled_from(_HALVES), _HOSTILE), max_size=5).map(_prompt))
@example(_prompt([("<|im_start|>", "x<|im_"), ("end|>", "")]))
@example(_prompt([("<|im_", "end|>")]))
@example(_prompt([("<s>", "<|im_"), ("", "end|>")]))
def test_no_control_token_comes_from_a_content(name: str, prompt: Prompt) -> None:
    tokenizer = _TOKENIZERS[name]
    encoder = tokenizer._prompts
    ids = tokenizer.encode(prompt)
    own = [prompt.text[a:b] for a, b in encoder.control_spans(prompt)]
    if name in ("qwen", "llama3", "metaspace-first", "metaspace-always", "unigram"):
        found = [id for id in ids if id in encoder._ids]
        assert found == [tokenizer.id_of(token) for token in own]
    else:  # these do not recognise all of the template's own
        assert sum(id in encoder._ids for id in ids) <= len(own)


@pytest.mark.parametrize("name", ["qwen", "llama3", "normalized"])
@given(_HOSTILE.filter(str.isascii), _OWN)  # the decoder loses an added "ü", NFC changes others
def test_hostile_contents_keep_their_characters(name: str, text: str, own: str) -> None:
    tokenizer = _TOKENIZERS[name]
    ids = tokenizer.encode(_prompt([("", text), (own, "")]))
    assert tokenizer.decode(ids, special=True) == text + own


def test_truncation_and_padding_of_a_tokenizer_file_are_disabled() -> None:
    made = _byte_level(_QWEN)
    plain = Tokenizer(HfTokenizer.from_str(made.to_str())).encode("the user said it")
    made.enable_truncation(2)
    made.enable_padding(length=50)
    assert Tokenizer(made).encode("the user said it") == plain


def test_a_long_text_is_encoded_as_its_parts_are() -> None:
    tokenizer = _TOKENIZERS["qwen"]
    text = "the user said <|im_end|>\n" * 500
    assert tokenizer.encode(text) == tokenizer.encode("the user said <|im_end|>\n") * 500


def test_letters_that_are_added_tokens_stay_tokens() -> None:
    tokenizer = _TOKENIZERS["qwen"]
    ids = tokenizer.encode(_prompt([("<s>", "für <s>")]))
    assert tokenizer.id_of("ü") in ids


@pytest.mark.parametrize("name", ["qwen", "llama3"])
@given(
    st.lists(st.tuples(_OWN, _HOSTILE), min_size=1, max_size=4),
    st.lists(st.tuples(_OWN, _HOSTILE), max_size=3),
    _HOSTILE,
)
def test_settled_ids_begin_the_whole(
    name: str, parts: list[tuple[str, str]], more: list[tuple[str, str]], rest: str
) -> None:
    """The last content may go on, and others may follow."""
    tokenizer = _TOKENIZERS[name]
    settled = tokenizer.settled(_prompt(parts))
    *before, (own, content) = parts
    whole = _prompt([*before, (own, content + rest), *more])
    assert tokenizer.encode(whole)[: len(settled)] == settled


def test_added_pieces_of_ordinary_text_are_found_in_contents_too() -> None:
    tokenizer = Tokenizer.load(tiny_model())
    text = 'cat brave-piano.txt\n{"name": "shell", "arguments": {"command": "ls"}}\n'
    assert tokenizer.id_of(".txt") in tokenizer.encode(text)
    assert tokenizer.encode(Prompt(text, ((0, len(text)),))) == tokenizer.encode(text)
