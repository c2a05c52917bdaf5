"""Everything that requests of one server share."""

from dataclasses import dataclass, field

from drawloom.engine.text.tokenizer import Tokenizer
from drawloom.runtime.server.errors import HttpError
from drawloom.runtime.server.metrics import Timings
from drawloom.runtime.server.prompting import PromptBuilder
from drawloom.runtime.server.sessions import SessionTable
from drawloom.tools.chat_template import ChatTemplate


@dataclass(slots=True)
class ServingContext:
    """Hold the model, its template, the sessions and the metrics of a server.

    Attributes:
        model: the model's name for clients.
        max_context: tokens of prompt and answer together.
        reasoning: answers begin with reasoning, whatever the template says.
        prompts: builds the prompts of chats.
    """

    model: str
    template: ChatTemplate
    tokenizer: Tokenizer
    sessions: SessionTable
    timings: Timings
    max_context: int
    reasoning: bool = False
    prompts: PromptBuilder = field(init=False)

    def __post_init__(self) -> None:
        self.prompts = PromptBuilder(self.template, self.tokenizer, self.max_context)

    def check_model(self, name: str | None) -> None:
        """Raise `HttpError` (404) if a request names another model."""
        if name and name != self.model:
            raise HttpError(
                404,
                f"model {name!r} is not served here; {self.model!r} is",
                param="model",
                code="model_not_found",
            )


__all__ = ["ServingContext"]
