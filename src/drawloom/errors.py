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
    """Report a wrong declaration, option or argument."""


class BudgetExceeded(DrawloomError):
    """Report that a program exhausted its budget."""


class Cancelled(DrawloomError):
    """Report that a program was cancelled by its owner."""


class ReplayMismatch(DrawloomError):
    """Report that a resumed program took another path than its record."""


class ToolError(DrawloomError):
    """Report that a tool failed; the message goes to the model."""


class ToolTimeout(ToolError):
    """Report that a tool exceeded its timeout."""


class ToolInterrupted(ToolError):
    """Report that a tool was in flight when the process died; its outcome is unknown."""


class GraphError(DrawloomError):
    """Report that a declared graph cannot run."""


class StoreError(DrawloomError):
    """Report that the store cannot be opened, has another owner, or refused a write."""


class StoreMissing(StoreError):
    """Report that there is no store at this URL."""


class StoreInUse(StoreError):
    """Another runtime owns the store."""


class StoreDamaged(StoreError):
    """Report that a store's file, or a row of it, cannot be read."""


class SandboxError(DrawloomError):
    """Report that a tool environment failed."""


class SandboxUnavailable(SandboxError):
    """Report that no sandbox provider can run on this host."""


class ImageNotFound(SandboxError):
    """Report that the image of an environment does not exist."""


class SandboxDied(SandboxError):
    """Report that a live environment is gone; it is never silently replaced by a blank one."""


class EngineError(DrawloomError):
    """Report that the engine could not carry out a request."""


class CheckpointError(EngineError):
    """Report that a checkpoint is missing, corrupt, or of an unknown architecture."""


class ContextTooLong(EngineError):
    """Report that a prompt does not fit the model's context or the KV cache.

    Attributes:
        tokens: how long the prompt is, if known.
        limit: the longest prompt and answer together, if known.
    """

    def __init__(self, *words: object, tokens: int | None = None, limit: int | None = None) -> None:
        super().__init__(*words)
        self.tokens, self.limit = tokens, limit


class EngineClosed(EngineError):
    """Report that the engine was closed, or has failed for good."""


__all__ = sorted(
    name
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, DrawloomError)
)
