"""Driver of one LLM step: permission, stream, progress and exactly one end.

Agents, HTTP requests and the replayer make their LLM calls through it:

    async with run_llm_step(dispatcher, spec) as step:
        async with aclosing(step.stream()) as deltas:
            async for delta in deltas:
                ...
        step.tool_kinds = ("shell",)
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from drawloom.engine.api.engine import Delta, GenerateRequest, Grammar, RequestUsage
from drawloom.engine.sequence import FinishReason, SamplingParams
from drawloom.runtime.dispatch.dispatcher import Dispatcher
from drawloom.runtime.scheduler.events import StepFailed, StepFinished, StepReady


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmStepSpec:
    """Describe one LLM call of a program.

    Args:
        program: id of the program.
        conversation: id of the conversation that the call extends.
        step: id of the call, unique among those that run.
        state: node of the execution graph.
        prompt: all tokens of the context.
        params: sampling parameters.
        salt: keeps the KV of tenants apart.
        grammar: what the output must match.
        noise: stream of the sampling noise; empty: the conversation's own.
    """

    program: str
    conversation: str
    step: str
    state: str
    prompt: tuple[int, ...]
    params: SamplingParams
    salt: bytes = b""
    grammar: Grammar | None = None
    noise: str = ""


class RunningStep:
    """Stream an LLM call that the scheduler has started.

    Attributes:
        spec: what was asked for.
        finish: why the engine ended the call; None until then.
        usage: tokens and times of the call, once the engine has ended it.
        tool_kinds: tools that the answer asks for, as `StepFinished.calls` has them; set before
            the step ends.
        final: the program makes no further call.
    """

    def __init__(self, dispatcher: Dispatcher, spec: LlmStepSpec, priority: float) -> None:
        self.spec = spec
        self.finish: FinishReason | None = None
        self.usage: RequestUsage | None = None
        self.tool_kinds: tuple[str, ...] = ()
        self.final = False
        self._dispatcher, self._priority = dispatcher, priority
        self._output_tokens = 0

    async def stream(
        self,
        source: Callable[[GenerateRequest], AsyncGenerator[Delta, None]] | None = None,
        *,
        request: str = "",
    ) -> AsyncGenerator[Delta, None]:
        """Generate, report progress to the scheduler, and yield each delta.

        Args:
            source: generates the deltas of a request; by default the engine.
            request: id of the request at the engine, where a step makes several; by default the
                step's.

        Raises:
            EngineError: the engine failed; the step may be streamed again.
        """
        spec, dispatcher = self.spec, self._dispatcher
        self.finish, self.usage, self._output_tokens = None, None, 0
        generate = source or dispatcher.engine.generate
        made = GenerateRequest(
            request or spec.step,
            spec.conversation,
            spec.prompt,
            spec.params,
            priority=self._priority,
            salt=spec.salt,
            grammar=spec.grammar,
            noise=spec.noise,
        )
        async with aclosing(generate(made)) as deltas:
            async for delta in deltas:
                self._output_tokens += len(delta.tokens)
                context = len(spec.prompt) + self._output_tokens
                await dispatcher.on_delta(spec.program, spec.step, context, delta)
                self.finish, self.usage = delta.finish, delta.usage or self.usage
                yield delta

    def finished(self) -> StepFinished:
        """Return the event that tells the scheduler of the call's end."""
        spec, usage, prompt = self.spec, self.usage, len(self.spec.prompt)
        return StepFinished(
            spec.program,
            spec.conversation,
            spec.step,
            spec.state,
            engine=self._dispatcher.engine.info.id,
            context=prompt + self._output_tokens,
            calls=self.tool_kinds,
            computed=prompt - (usage.cached_tokens if usage else 0),
            seconds=usage.first - usage.started if usage else 0.0,
            queued=usage.started - usage.submitted if usage else 0.0,
            service=usage.finished - usage.started if usage else 0.0,
            final=self.final,
        )


@asynccontextmanager
async def run_llm_step(dispatcher: Dispatcher, spec: LlmStepSpec) -> AsyncIterator[RunningStep]:
    """Run one LLM call under the scheduler, for the time of the block.

    The block begins when the scheduler starts the call. However it is left, the scheduler gets
    exactly one event: `StepFinished` if the engine ended the call, else `StepFailed`.

    Raises:
        ContextTooLong: the prompt does not fit the engine.
        DrawloomError: the dispatcher drains.
    """
    start = dispatcher.expect_start(spec.step)
    dispatcher.emit(
        StepReady(
            spec.program,
            spec.conversation,
            spec.step,
            spec.state,
            engine=dispatcher.engine.info.id,
            prompt=len(spec.prompt),
            output=spec.params.max_tokens,
        )
    )
    step: RunningStep | None = None
    try:
        step = RunningStep(dispatcher, spec, await start)
        yield step
    finally:  # also where whoever asked has gone
        if step is None or step.finish is None:
            dispatcher.emit(StepFailed(spec.program, spec.step))
        else:
            dispatcher.emit(step.finished())


__all__ = ["LlmStepSpec", "RunningStep", "run_llm_step"]
