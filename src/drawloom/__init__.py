"""drawloom: agent programs whose LLM calls, KV cache and tool containers one scheduler governs.

The names below are the public surface. They are loaded when first used, so that importing
drawloom costs nothing and needs no torch, docker or sqlalchemy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drawloom.engine.config import EngineConfig
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
    from drawloom.graph.declared_graph import Graph
    from drawloom.runtime.execution.agent import Agent, agent
    from drawloom.runtime.execution.budget import Budget
    from drawloom.runtime.execution.llm_step import Turn
    from drawloom.runtime.scheduler.events import TenantShare
    from drawloom.runtime.sdk.branches import best_of, gather
    from drawloom.runtime.sdk.chat import Chat
    from drawloom.runtime.sdk.graph_agent import graph_agent
    from drawloom.runtime.sdk.options import Limits, SandboxOptions
    from drawloom.runtime.sdk.run import Run
    from drawloom.runtime.sdk.runtime import Runtime
    from drawloom.tools.mcp_client import McpServer
    from drawloom.tools.tool import Tool, tool
    from drawloom.tools.tool_call import ToolCall, ToolResult

_HOMES = {
    "Agent": "runtime.execution.agent",
    "Budget": "runtime.execution.budget",
    "BudgetExceeded": "errors",
    "Chat": "runtime.sdk.chat",
    "DrawloomError": "errors",
    "EngineConfig": "engine.config",
    "EngineError": "errors",
    "Env": "environments",
    "ExecResult": "environments",
    "Graph": "graph.declared_graph",
    "Limits": "runtime.sdk.options",
    "McpServer": "tools.mcp_client",
    "ReplayMismatch": "errors",
    "Run": "runtime.sdk.run",
    "Runtime": "runtime.sdk.runtime",
    "SamplingParams": "engine.sequence",
    "Sandbox": "environments",
    "SandboxError": "errors",
    "SandboxOptions": "runtime.sdk.options",
    "Service": "environments",
    "TenantShare": "runtime.scheduler.events",
    "Tool": "tools.tool",
    "ToolCall": "tools.tool_call",
    "ToolError": "errors",
    "ToolResult": "tools.tool_call",
    "Turn": "runtime.execution.llm_step",
    "agent": "runtime.execution.agent",
    "best_of": "runtime.sdk.branches",
    "gather": "runtime.sdk.branches",
    "graph_agent": "runtime.sdk.graph_agent",
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
