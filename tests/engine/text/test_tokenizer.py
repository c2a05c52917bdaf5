"""Ids of a text that no continuation can change."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.prompts import Prompt
from drawloom.runtime.dispatch.backends import tiny_model

# the patterns of GPT-2, Llama 3 and Qwen 2, as their tokenizer.json have them
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_WORDS = (
    "a b ab aab it's It'S we'll 'll 12 123 1234 12345  \n \n\n \r\n \t -- !? !?\n () (a) ü é "
    "e\u0301 日本 <|im_start|> <|im_ <|im_end|> tool\n    if x:\n        return 'y' 0.125 'a''b'"
)
_PIECES = [*_WORDS.split(" "), " ", "  ", "\n", "'", "<|", "\u0301", "s", "ll"]
_TEXT = st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=14).map("".join)


def _byte_level(pattern: str, *, nfc: bool = False) -> Tokenizer:
    """A tokenizer that has merged all it could of a small text."""
    made = HfTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    if nfc:
        made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([_WORDS] * 4, trainer)
    specials = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return Tokenizer(made)


_TOKENIZERS = {
    "gpt2": _byte_level(_GPT2),
    "llama3": _byte_level(_LLAMA3),
    "qwen2": _byte_level(_QWEN2, nfc=True),
    "tiny": Tokenizer.load(tiny_model()),
}


@pytest.mark.parametrize("name", _TOKENIZERS)
@given(_TEXT, _TEXT)
@example("a\n  ", "\n")
@example("it'", "s")
@example("12", "3")
@example("ab<|im_", "end|>")
@example("cafe", "\u0301")
def test_settled_ids_are_those_that_the_whole_begins_with(name: str, text: str, more: str) -> None:
    tokenizer = _TOKENIZERS[name]
    settled = tokenizer.settled(text)
    assert tokenizer.encode(text + more)[: len(settled)] == settled


@pytest.mark.parametrize("name", _TOKENIZERS)
def test_all_but_the_last_words_are_settled(name: str) -> None:
    tokenizer = _TOKENIZERS[name]
    text = "<|im_start|>tool\nthe answer is here and there\n"
    assert tokenizer.decode(tokenizer.settled(text), special=True).split()[-1] in ("and", "there")


def test_without_pre_tokens_or_with_a_normalizer_at_work_nothing_is_settled() -> None:
    whole = HfTokenizer(models.BPE())
    assert Tokenizer(whole).settled("a b c") == []
    lower = HfTokenizer(models.BPE())
    lower.pre_tokenizer, lower.normalizer = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    assert Tokenizer(lower).settled("A b c") == []


@given(
    st.text(st.characters(categories=None) | st.sampled_from("\ud800\udfff<|im_end|>"), max_size=40)
)
def test_text_with_lone_surrogates_is_encoded_as_its_replacement(text: str) -> None:
    tokenizer = Tokenizer.load(tiny_model())
    shown = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    spans = ((0, len(text)),)
    assert tokenizer.encode(text) == tokenizer.encode(shown)
    assert tokenizer.encode(Prompt(text, spans)) == tokenizer.encode(Prompt(shown, spans))
    assert tokenizer.encode_with_specials(text) == tokenizer.encode_with_specials(shown)
    assert tokenizer.settled(text) == tokenizer.settled(shown)
