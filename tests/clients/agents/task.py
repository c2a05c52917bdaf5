"""A task of three steps for every client: read two files, add what they say, answer."""

FILES = {"brave-piano.txt": "415", "wise-owl.txt": "27"}
SYSTEM = "You answer questions about files. Use the tools."
QUESTION = "What is the sum of brave-piano.txt and wise-owl.txt?"
ANSWER = "442"


def shell(command: str) -> str:
    """Run a shell command.

    Args:
        command: the command.
    """
    return FILES[command.split()[-1]]


def add(a: int, b: int) -> int:
    """Add two integers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


TOOLS = {"shell": shell, "add": add}
SCHEMAS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": words,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key in keys},
                "required": list(keys),
            },
        },
    }
    for name, words, kind, keys in (
        ("shell", "Run a shell command.", "string", ("command",)),
        ("add", "Add two integers.", "integer", ("a", "b")),
    )
]
