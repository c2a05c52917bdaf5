"""Forks: one conversation continued several ways, sharing everything behind it.

    drawloom run examples/best_of.py:guess --sandbox none

The branches share the KV cache of what came before, copy on write. As soon as one is good enough
the others are cancelled, and what they held is free in the same instant.
"""

from drawloom import Chat, agent, best_of


@agent(system="You answer questions about files. Use the tools.", max_tokens=24, temperature=1.0)
async def guess(attempts: int = 4) -> str:
    chat = Chat().user("What number is in brave-piano.txt?")
    await chat.turn()

    async def attempt(branch: Chat) -> str:
        return (await branch.user("Are you sure?").turn()).text

    return await best_of(attempts, attempt, chat, key=len, until=lambda text: len(text) > 60)
