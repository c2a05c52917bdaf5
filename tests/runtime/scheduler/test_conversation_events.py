"""Conversations: what they share and give back."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from drawloom.runtime.scheduler.actions import (
    ReleaseEnvs,
    ReleaseKV,
)
from drawloom.runtime.scheduler.events import (
    ConversationEnded,
    Forked,
    StepFinished,
    StepReady,
)

from .harness import three_fit


def test_an_ended_program_gives_everything_back_in_the_same_instant() -> None:
    core = three_fit()
    core.submit("p")
    core.ready("p", 100, 1.0)
    core.handle(Forked("p", "p", "p:0.0", "e"), 1.5)
    actions = core.end("p", 2.0)
    assert {a.conversation for a in actions if isinstance(a, ReleaseKV)} == {"p", "p:0.0"}
    assert ReleaseEnvs("p") in actions
    assert core.state.programs == {}


@given(st.data())
def test_what_branches_share_is_counted_once_whoever_ends_first(data: Any) -> None:
    core, now = three_fit(kv=10**6), 0.0
    core.submit("p")
    tokens, fresh = {"p": list[int]()}, iter(range(10**6))
    made = 1
    for _ in range(data.draw(st.integers(1, 25))):
        if not tokens:
            break
        name, now = data.draw(st.sampled_from(sorted(tokens))), now + 1.0
        what = data.draw(st.sampled_from(["call", "call", "fork", "end"]))
        if what == "call":
            tokens[name] += [next(fresh) for _ in range(data.draw(st.integers(1, 50)))]
            prompt = len(tokens[name])
            core.handle(
                StepReady(
                    program="p",
                    conversation=name,
                    step=f"{name}#{now}",
                    state="site",
                    engine="e",
                    prompt=prompt,
                    output=10,
                ),
                now,
            )
            tokens[name] += [next(fresh) for _ in range(10)]
            event = StepFinished(
                program="p",
                conversation=name,
                step=f"{name}#{now}",
                state="site",
                engine="e",
                context=prompt + 10,
                calls=("t",),
                computed=prompt,
            )
            core.handle(event, now + 0.5)
        elif what == "fork" and tokens[name]:
            made += 1
            tokens[f"p:{made}"] = list(tokens[name])
            core.handle(Forked("p", name, f"p:{made}", "e"), now)
        elif what == "end":
            del tokens[name]
            core.handle(ConversationEnded("p", name), now)
        held = {token for line in tokens.values() for token in line}
        assert core.state.totals.private_tokens == len(held)
