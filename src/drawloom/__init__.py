"""drawloom: agent programs whose LLM calls, KV cache and tool containers one scheduler governs.

The names below are the public surface. They are loaded when first used, so that importing
drawloom costs nothing and needs no torch, docker or sqlalchemy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drawloom.engine.sequence import SamplingParams
    from drawloom.environments import Env, ExecResult, Sandbox, Service
    from drawloom.errors import (
        BudgetExceeded,
        DrawloomError,
        EngineError,
        ReplayMismatch,
        SandboxError,
        ToolError,
    )
    from drawloom.events import TenantShare
    from drawloom.graph.declared import Graph
    from drawloom.runtime.agent import Agent, agent
    from drawloom.runtime.budget import Budget
    from drawloom.runtime.chat import Chat
    from drawloom.runtime.combine import best_of, gather
    from drawloom.runtime.graphs import graph_agent
    from drawloom.runtime.llmcall import Turn
    from drawloom.runtime.run import Run
    from drawloom.runtime.runtime import Runtime
    from drawloom.tools.calls import ToolCall, ToolResult
    from drawloom.tools.mcp import McpServer
    from drawloom.tools.tool import Tool, tool

_HOMES = {
    "Agent": "runtime.agent",
    "Budget": "runtime.budget",
    "BudgetExceeded": "errors",
    "Chat": "runtime.chat",
    "DrawloomError": "errors",
    "EngineError": "errors",
    "Env": "environments",
    "ExecResult": "environments",
    "Graph": "graph.declared",
    "McpServer": "tools.mcp",
    "ReplayMismatch": "errors",
    "Run": "runtime.run",
    "Runtime": "runtime.runtime",
    "SamplingParams": "engine.sequence",
    "Sandbox": "environments",
    "SandboxError": "errors",
    "Service": "environments",
    "TenantShare": "events",
    "Tool": "tools.tool",
    "ToolCall": "tools.calls",
    "ToolError": "errors",
    "ToolResult": "tools.calls",
    "Turn": "runtime.llmcall",
    "agent": "runtime.agent",
    "best_of": "runtime.combine",
    "gather": "runtime.combine",
    "graph_agent": "runtime.graphs",
    "tool": "tools.tool",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'drawloom' has no attribute {name!r}")
    value = getattr(import_module(f"drawloom.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]


__all__ = [
    "Agent",
    "Budget",
    "BudgetExceeded",
    "Chat",
    "DrawloomError",
    "EngineError",
    "Env",
    "ExecResult",
    "Graph",
    "McpServer",
    "ReplayMismatch",
    "Run",
    "Runtime",
    "SamplingParams",
    "Sandbox",
    "SandboxError",
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
