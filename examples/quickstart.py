"""An agent in thirty lines: it thinks on the embedded engine and acts in a container of its own.

drawloom run examples/quickstart.py:solve
"""

from drawloom import Chat, Env, Sandbox, ToolError, agent, tool

box = Env(
    "drawloom/box:1", setup=("echo 415 > brave-piano.txt; echo 27 > wise-owl.txt",), memory="64m"
)


@tool(env=box, expect=0.05, timeout=20)
async def shell(sandbox: Sandbox, command: str) -> str:
    """Run a shell command."""
    result = await sandbox.sh(command)
    if result.code:
        raise ToolError(f"exit {result.code}: {result.text.strip()}")
    return result.text.removesuffix("\n")


@tool(readonly=True)
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@agent(system="You answer questions about files. Use the tools.", tools=[shell, add])
async def solve(question: str = "What is the sum of brave-piano.txt and wise-owl.txt?") -> str:
    chat = Chat().user(question)
    while (turn := await chat.turn()).calls:  # the container is claimed as its tool is named
        await chat.run(turn.calls)  # the KV cache stays leased until the results are back
    return turn.text
