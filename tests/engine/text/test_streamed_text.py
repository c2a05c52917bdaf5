"""Streamed text is the text of all ids decoded at once, for every family of tokenizers."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from drawloom.engine.api.engine import GenerateRequest
from drawloom.engine.config import EngineConfig
from drawloom.engine.hosting.build import load
from drawloom.engine.sequence import SamplingParams
from drawloom.engine.text.tokenizer import TextStream, Tokenizer
from tests.lanes import examples

_SPECIAL = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{i:02X}>" for i in range(256)]
_WORDS = ["▁", "▁the", "▁Paris", "▁is", "a", "b", ".", "é", "▁▁", "ab", "日", "\ufffd", "<0x"]


def _with_added(made: HfTokenizer) -> Tokenizer:
    made.add_special_tokens([AddedToken(t, special=True) for t in (*_SPECIAL, "<|im_end|>")])
    made.add_tokens([AddedToken("<tool_call>", special=False), AddedToken(" b", special=False)])
    return Tokenizer(made)


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = _numbered([*_SPECIAL, *alphabet, "Ġ.", "ĠĠ", "æĹ", "ab"])
    made = HfTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _with_added(made)


def _byte_fallback(*decoder: Any) -> Tokenizer:
    vocabulary = _numbered([*_SPECIAL, *_BYTES, *_WORDS])
    made = HfTokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(list(decoder))
    return _with_added(made)


def _llama2() -> Tokenizer:
    strip = decoders.Strip(" ", 1, 0)
    replace = decoders.Replace("▁", " ")
    return _byte_fallback(replace, decoders.ByteFallback(), decoders.Fuse(), strip)


def _gemma() -> Tokenizer:
    return _byte_fallback(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())


def _metaspace_bytes() -> Tokenizer:
    return _byte_fallback(decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"))


def _unigram() -> Tokenizer:
    tokens = [*_SPECIAL, *_BYTES, *_WORDS]
    made = HfTokenizer(models.Unigram([(t, -1.0) for t in tokens], 0, byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _with_added(made)


def _word_piece() -> Tokenizer:
    vocabulary = _numbered([*_SPECIAL, "the", "##s", "##é", ".", "'", "do", "n't", "##日", ","])
    made = HfTokenizer(models.WordPiece(vocab=vocabulary, unk_token="<unk>"))
    made.decoder = decoders.WordPiece()
    return _with_added(made)


def _word_level() -> Tokenizer:
    made = HfTokenizer(models.WordLevel(vocab=_numbered([*_SPECIAL, "x", "y."]), unk_token="<unk>"))
    return _with_added(made)


def _suffixed() -> Tokenizer:
    vocabulary = _numbered([*_SPECIAL, "a", "b</w>", "c", "d</w>"])
    made = HfTokenizer(models.BPE(vocab=vocabulary, merges=[], end_of_word_suffix="</w>"))
    made.decoder = decoders.BPEDecoder()
    return _with_added(made)


_FAMILIES: dict[str, Tokenizer] = {
    make.__name__.strip("_"): make()
    for make in (
        _byte_level,
        _llama2,
        _gemma,
        _metaspace_bytes,
        _unigram,
        _word_piece,
        _word_level,
        _suffixed,
    )
}
_BEYOND = st.sampled_from([-1, 9_999, 1 << 40])


def _ids(tokenizer: Tokenizer, most: int = 90) -> st.SearchStrategy[list[int]]:
    """Any ids: runs of bytes of real characters, of broken ones, words, special tokens."""
    size = tokenizer.size
    whole = st.text(max_size=4).map(tokenizer.encode)
    bytes_ = [
        i for t in (*_BYTES, "Ã", "æ", "Ĺ", "¥", "ð") if (i := tokenizer.id_of(t)) is not None
    ]
    some = [st.integers(0, size - 1), st.sampled_from(range(3))]
    if bytes_:
        some.append(st.sampled_from(bytes_))
    runs = st.lists(st.one_of(*some), max_size=most // 4)
    long = st.lists(some[-1], min_size=most // 9, max_size=most // 3)
    return st.lists(whole | runs | long, max_size=6).map(
        lambda parts: [i for part in parts for i in part]
    )


def _streamed(stream: TextStream, ids: list[int]) -> str:
    text = ""
    for id in ids:
        text += stream.push(id)
        if stream.stopped:
            return text
    return text + stream.flush()


@pytest.mark.parametrize("name", _FAMILIES)
@settings(max_examples=examples(60), deadline=None)
@given(st.data(), st.booleans())
def test_streamed_text_is_that_of_all_ids_at_once(name: str, data: Any, special: bool) -> None:
    tokenizer = _FAMILIES[name]
    ids = data.draw(_ids(tokenizer))
    whole = tokenizer.decode(ids, special=special)
    assert _streamed(tokenizer.stream(special=special), ids) == whole


@pytest.mark.parametrize("name", _FAMILIES)
@settings(max_examples=examples(60), deadline=None)
@given(st.data(), st.booleans())
def test_streamed_text_excludes_the_prompt(name: str, data: Any, special: bool) -> None:
    tokenizer = _FAMILIES[name]
    prompt, ids = data.draw(_ids(tokenizer)), data.draw(_ids(tokenizer))
    before = tokenizer.decode(prompt, special=special)
    whole = tokenizer.decode(prompt + ids, special=special)
    text = _streamed(tokenizer.stream(special=special, after=prompt), ids)
    if whole.startswith(before):
        assert before + text == whole
    else:  # the prompt ends in a character, or in a run of bytes, that the answer goes on with
        kept = next(n for n in range(len(before), -1, -1) if whole.startswith(before[:n]))
        assert text == whole[max(kept, len(before.rstrip("\ufffd"))) :]


@pytest.mark.parametrize("name", _FAMILIES)
@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_ids_outside_the_vocabulary_have_no_text(name: str, data: Any) -> None:
    tokenizer = _FAMILIES[name]
    ids = data.draw(_ids(tokenizer, 12))
    mixed = list(ids)
    for at in data.draw(st.lists(st.integers(0, len(ids)), max_size=3)):
        mixed.insert(at, data.draw(_BEYOND))
    assert tokenizer.decode(mixed) == tokenizer.decode(ids)
    assert _streamed(tokenizer.stream(), mixed) == tokenizer.decode(ids)
    assert _streamed(tokenizer.stream(after=mixed), ids) == _streamed(
        tokenizer.stream(after=ids), ids
    )


@pytest.mark.parametrize("name", _FAMILIES)
@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_text_ends_before_the_first_stop_string(name: str, data: Any) -> None:
    tokenizer = _FAMILIES[name]
    ids = data.draw(_ids(tokenizer, 40))
    clean = tokenizer.decode(ids).replace("\ufffd", "")
    pieces = st.integers(0, max(0, len(clean) - 1)).flatmap(
        lambda at: st.integers(1, 4).map(lambda n: clean[at : at + n])
    )
    stops = tuple(s for s in data.draw(st.lists(pieces, max_size=3)) if s)
    stream = tokenizer.stream(stops)
    text = _streamed(stream, ids)
    at = next((n for n in range(len(ids) + 1) if _first(tokenizer.decode(ids[:n]), stops) >= 0), 0)
    ended = tokenizer.decode(ids[:at] if stream.stopped else ids)
    assert not any(s in text for s in stops)
    assert ended.startswith(text)
    if stream.stopped:
        assert text == ended[: _first(ended, stops)]
    else:
        assert text == ended


def _first(text: str, stops: tuple[str, ...]) -> int:
    return min((at for s in stops if (at := text.find(s)) >= 0), default=-1)


def test_the_first_word_of_an_answer_keeps_its_space() -> None:
    for name in ("llama2", "metaspace_bytes", "unigram"):
        tokenizer = _FAMILIES[name]
        ids = [tokenizer.id_of(t) or 0 for t in ("▁the", "▁is", "▁Paris")]
        assert _streamed(tokenizer.stream(), ids) == "the is Paris"
        assert _streamed(tokenizer.stream(after=ids), ids) == " the is Paris"


def test_text_is_sent_as_soon_as_it_is_certain() -> None:
    tokenizer = _FAMILIES["llama2"]
    ids = [tokenizer.id_of(t) or 0 for t in ("a", "<0xE6>", "<0x97>", "<0xA5>", "▁is", "b")]
    stream = tokenizer.stream()
    assert [stream.push(id) for id in ids] == ["a", "", "", "", "日 is", "b"]


def test_an_unfinished_character_is_shown_as_the_tokenizer_shows_it() -> None:
    tokenizer = _FAMILIES["byte_level"]
    ids = tokenizer.encode("a日")[:-1]
    assert _streamed(tokenizer.stream(), ids) == "a\ufffd"


def test_a_character_that_is_not_complete_is_no_stop_string() -> None:
    tokenizer = _FAMILIES["byte_level"]
    assert _streamed(tokenizer.stream(("\ufffd",)), tokenizer.encode("a日b")) == "a日b"


def test_an_answer_that_completes_the_prompts_last_character_shows_it_alone() -> None:
    tokenizer = _FAMILIES["byte_level"]
    lead, rest = tokenizer.encode("×")
    assert _streamed(tokenizer.stream(after=[lead] * 20), [rest]) == "×"


@pytest.mark.parametrize("bad", [0, 10])
def test_a_run_of_bytes_that_the_prompt_began_is_decoded_with_it(bad: int) -> None:
    tokenizer = _FAMILIES["llama2"]
    run = [tokenizer.id_of("<0x61>") or 0] * 20
    run[bad] = tokenizer.id_of("<0xFF>") or 0
    assert _streamed(tokenizer.stream(after=run), run[-1:]) == "\ufffd"


@example([1, 1])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=8))
def test_a_decoder_that_panics_raises_nothing(ids: list[int]) -> None:
    made = HfTokenizer(models.BPE(vocab={"a": 0, " ": 1, "b": 2}, merges=[]))
    made.decoder = decoders.Strip(" ", 2, 3)
    _streamed(Tokenizer(made).stream(after=ids), ids)


def test_an_engine_streams_what_the_tokenizer_decodes(llama: Any, tmp_path: Path) -> None:
    """A model that says bytes at random, which are seldom UTF-8, on a byte-fallback tokenizer."""
    folder = Path(shutil.copytree(llama.folder, tmp_path / "model"))
    made = HfTokenizer(models.BPE(vocab=_numbered([*_SPECIAL, *_BYTES]), merges=[]))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(_SPECIAL)
    made.save(str(folder / "tokenizer.json"))
    core = load(str(folder), EngineConfig(kv_tokens=1024))
    prompt, texts, ids = (10, 200, 67), dict[str, str](), dict[str, list[int]]()
    for name in "abcd":
        params = SamplingParams(max_tokens=40, temperature=1.0, seed=3, ignore_eos=True)
        core.submit(GenerateRequest(name, name, prompt, params))
    while core.busy:
        for delta in core.step():
            assert delta.error is None, delta.error
            texts[delta.request] = texts.get(delta.request, "") + delta.text
            ids.setdefault(delta.request, []).extend(delta.tokens)
    before = core.tokenizer.decode(list(prompt))
    for name, said in ids.items():
        assert len(said) == 40
        assert before + texts[name] == core.tokenizer.decode([*prompt, *said])


def test_long_text_costs_the_same_for_each_token() -> None:
    """The ids that are decoded for one token do not grow with the text before it."""
    tokenizer, most = _FAMILIES["byte_level"], 0

    def counted(ids: list[int]) -> str:
        nonlocal most
        most = max(most, len(ids))
        return tokenizer.decode(ids)

    stream = TextStream(counted, _shown(tokenizer))
    for id in tokenizer.encode("x日 ") * 200 + [tokenizer.size - 8] * 300:
        stream.push(id)
    assert most < 64


def _shown(tokenizer: Tokenizer) -> Callable[[int], str | None]:
    return lambda id: tokenizer.decode([id], special=True) or None
