"""The public surface: what is exported is what is promised, and it is all there."""

import drawloom

PUBLIC = [
    "Agent",
    "Budget",
    "BudgetExceeded",
    "Chat",
    "DrawloomError",
    "EngineConfig",
    "EngineError",
    "Env",
    "ExecResult",
    "Graph",
    "Limits",
    "McpServer",
    "ReplayMismatch",
    "Run",
    "Runtime",
    "SamplingParams",
    "Sandbox",
    "SandboxError",
    "SandboxOptions",
    "Service",
    "TenantShare",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolResult",
    "Turn",
    "agent",
    "best_of",
    "gather",
    "graph_agent",
    "tool",
]


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(drawloom.__all__) == drawloom.__all__ == sorted(PUBLIC)
    assert set(dir(drawloom)) >= set(PUBLIC)


def test_each_can_be_imported() -> None:
    for name in PUBLIC:
        assert getattr(drawloom, name).__module__.startswith("drawloom.") or name in ("Graph",)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(drawloom, "nothing")
