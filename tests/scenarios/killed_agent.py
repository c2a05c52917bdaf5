"""An agent that tests kill in the middle: it writes a file, thinks, works slowly, and reads."""

from drawloom import Chat, Env, Sandbox, agent, best_of, tool
from drawloom.runtime.demo import tasks

BOX = Env("drawloom/box:1", memory="64m", pids=64)


@tool(env=BOX)
async def put(box: Sandbox, text: str) -> str:
    """Add a line to the log."""
    await box.sh(f"echo {text} >> log")
    return text


async def _slowly(box: Sandbox) -> str:
    return (await box.sh("sleep 3; echo slow >> log; echo worked")).text.strip()


@tool(env=BOX, timeout=60)
async def slow(box: Sandbox) -> str:
    """Work for a while, then add a line to the log; not to be done twice."""
    return await _slowly(box)


@tool(env=BOX, timeout=60, idempotent=True)
async def slow_or_again(box: Sandbox) -> str:
    """The same, for hosts where a command dies with its owner."""
    return await _slowly(box)


@tool(env=BOX)
async def get(box: Sandbox) -> str:
    """Read the log."""
    return (await box.sh("cat log")).text


@tool
async def ring() -> str:
    """Something outside that nobody may do twice; it takes its time."""
    import asyncio

    await asyncio.sleep(3)
    return "rung"


@agent(system=tasks.SYSTEM, tools=[put, slow, slow_or_again, get, ring], max_tokens=8)
async def work(again: bool = False) -> dict[str, str]:
    await put("first")
    chat = Chat().user("What number is in calm-falcon.txt?")
    turn = await chat.turn()
    return {
        "said": turn.text + str(turn.ids),
        "slow": await (slow_or_again() if again else slow()),
        "log": await get(),
    }


@agent(system=tasks.SYSTEM, tools=[put, slow, slow_or_again, get])
async def branches(again: bool = False) -> tuple[str, str]:
    await put("base")
    numbers = iter(range(2))

    async def attempt(branch: Chat) -> str:
        await put(f"branch{next(numbers)}")
        await (slow_or_again() if again else slow())
        return await get()

    best = await best_of(2, attempt, Chat().user("x"), key=str, fork_env=True)
    await put("after")
    return best, await get()


@agent(tools=[ring])
async def alarm() -> str:
    try:
        return await ring()
    except Exception as error:
        return f"told: {error}"
