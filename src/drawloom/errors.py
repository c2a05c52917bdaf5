"""The one error tree. A message says what failed, where, and what to do about it.

DrawloomError
├── ConfigError            a declaration, option or argument is wrong
├── BudgetExceeded         a program spent what it was given
├── Cancelled              the program was cancelled by its owner
├── ReplayMismatch         a resumed program took another path than its record
├── ToolError              a tool failed; what the model is told
│   ├── ToolTimeout
│   └── ToolInterrupted    in flight when the process died; outcome unknown
├── GraphError
├── StoreError
│   ├── StoreMissing       there is none at this URL
│   ├── StoreInUse         another runtime owns it
│   └── StoreDamaged       its file, or a row of it, cannot be read
├── SandboxError
│   ├── SandboxUnavailable no provider can run here
│   ├── ImageNotFound
│   └── SandboxDied        the environment is gone; never replaced by a blank one
└── EngineError
    ├── CheckpointError    files missing, corrupt or of an unknown architecture
    ├── ContextTooLong
    └── EngineClosed
"""


class DrawloomError(Exception):
    """Base of everything drawloom raises on purpose."""


class ConfigError(DrawloomError):
    """A declaration, an option or an argument is wrong."""


class BudgetExceeded(DrawloomError):
    """A program spent what it was given."""


class Cancelled(DrawloomError):
    """The program was cancelled by its owner."""


class ReplayMismatch(DrawloomError):
    """A resumed program took another path than the one that is recorded."""


class ToolError(DrawloomError):
    """A tool failed; the message goes to the model."""


class ToolTimeout(ToolError):
    """A tool took longer than it may."""


class ToolInterrupted(ToolError):
    """A tool was in flight when the process died; its outcome is unknown."""


class GraphError(DrawloomError):
    """A declared graph cannot run."""


class StoreError(DrawloomError):
    """The store cannot be opened, is owned by another runtime, or refused a write."""


class StoreMissing(StoreError):
    """There is no store at this URL."""


class StoreInUse(StoreError):
    """Another runtime owns the store."""


class StoreDamaged(StoreError):
    """A store's file, or a row of it, cannot be read."""


class SandboxError(DrawloomError):
    """A tool environment failed."""


class SandboxUnavailable(SandboxError):
    """No sandbox provider can run on this host."""


class ImageNotFound(SandboxError):
    """The image of an environment does not exist."""


class SandboxDied(SandboxError):
    """A live environment is gone. It is never silently replaced by a blank one."""


class EngineError(DrawloomError):
    """The engine could not carry out a request."""


class CheckpointError(EngineError):
    """A checkpoint is missing, corrupt, or of an architecture this engine does not know."""


class ContextTooLong(EngineError):
    """A prompt does not fit the model's context or the KV cache.

    Attributes:
        tokens: how long the prompt is, if known.
        limit: the longest prompt and answer together, if known.
    """

    def __init__(self, *words: object, tokens: int | None = None, limit: int | None = None) -> None:
        super().__init__(*words)
        self.tokens, self.limit = tokens, limit


class EngineClosed(EngineError):
    """The engine was closed, or has failed for good."""


__all__ = sorted(
    name
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, DrawloomError)
)
