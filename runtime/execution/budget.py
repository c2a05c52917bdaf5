"""Budgets: what a program may spend, checked before it spends."""

from dataclasses import dataclass, field

from drawloom.errors import BudgetExceeded, ConfigError


@dataclass(frozen=True, slots=True)
class Budget:
    """Limit what one program may use; None is no limit.

    Args:
        tokens: computed prompt tokens and output tokens together.
        output_tokens: output tokens.
        seconds: wall-clock seconds, waiting included.
        llm_calls: LLM calls.
        tool_calls: tool calls.
    """

    tokens: int | None = None
    output_tokens: int | None = None
    seconds: float | None = None
    llm_calls: int | None = None
    tool_calls: int | None = None

    def __post_init__(self) -> None:
        for name in Budget.__slots__:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"Budget({name}={value}): a limit must be positive")


@dataclass(slots=True)
class BudgetUsage:
    """Count what a program has used; `tokens` are computed prompt tokens and output tokens."""

    tokens: int = 0
    output_tokens: int = 0
    llm_calls: int = 0
    tool_calls: int = 0


@dataclass(slots=True)
class Account:
    """Check a budget against what was used of it."""

    budget: Budget
    usage: BudgetUsage = field(default_factory=BudgetUsage)

    def before_llm(self) -> None:
        """Raise `BudgetExceeded` when no LLM call is left."""
        budget, usage = self.budget, self.usage
        self._check("llm_calls", usage.llm_calls + 1, budget.llm_calls)
        self._check("tokens", usage.tokens + 1, budget.tokens)
        self._check("output_tokens", usage.output_tokens + 1, budget.output_tokens)

    def output_left(self, wanted: int) -> int:
        """Return `wanted` output tokens, or as many as the budget has left."""
        budget, usage = self.budget, self.usage
        limits = [(budget.output_tokens, usage.output_tokens), (budget.tokens, usage.tokens)]
        return min([wanted, *(limit - used for limit, used in limits if limit is not None)])

    def before_tools(self, count: int) -> None:
        """Raise `BudgetExceeded` before a batch of `count` calls that is more than is left."""
        self._check("tool_calls", self.usage.tool_calls + count, self.budget.tool_calls)

    def _check(self, name: str, wanted: int, limit: int | None) -> None:
        if limit is not None and wanted > limit:
            raise BudgetExceeded(
                f"the budget of {limit} {name} is spent ({self.usage}): raise Budget({name}=…)"
            )


__all__ = ["Account", "Budget", "BudgetUsage"]
