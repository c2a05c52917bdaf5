"""Parse docstrings in the styles of Google, numpy and Sphinx: description and parameters."""

import re

_PARAMETERS = (
    "args",
    "arguments",
    "params",
    "parameters",
    "keyword args",
    "keyword arguments",
    "other parameters",
)
_SECTIONS = (*_PARAMETERS, "returns", "return", "raises", "yields", "yield", "warns", "attributes")
_GOOGLE = re.compile(r"(\w[\w ]*):\s*$")
_RULE = re.compile(r"-{3,}\s*$")
_GOOGLE_ENTRY = re.compile(r"\s+\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(?:\s+|$)(.*)")
_NUMPY_ENTRY = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")
_FIELD = re.compile(r":(\w+)((?:\s+[^:]+)?):(?:\s+|$)(.*)")
_PARAMETER_FIELDS = ("param", "parameter", "arg", "argument", "key", "keyword")


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its description and the help of each parameter.

    Args:
        text: as `inspect.getdoc` returns it. Sections on results and errors are left out of the
            description; anything that is no section of a known style stays in it.
    """
    lines = text.splitlines()
    prose: list[str] = []
    helps: dict[str, str] = {}
    at = 0
    while at < len(lines):
        if (header := _section(lines, at)) is not None:
            name, start, numpy = header
            end = _section_end(lines, start, numpy)
            if name in _PARAMETERS:
                helps |= _numpy(lines[start:end]) if numpy else _google(lines[start:end])
        elif (field := _FIELD.match(lines[at])) is not None:
            end = _indented(lines, at + 1)
            words = field[2].split()
            if field[1] in _PARAMETER_FIELDS and words:
                helps[words[-1].lstrip("*\\")] = _joined(field[3], *lines[at + 1 : end])
        else:
            prose.append(lines[at])
            end = at + 1
        at = end
    return _joined(*prose), {name: help for name, help in helps.items() if help}


def _section(lines: list[str], at: int) -> tuple[str, int, bool] | None:
    """Return the name and first line of a section that begins here, and whether it is numpy's."""
    name = lines[at].strip().lower()
    if name in _SECTIONS and at + 1 < len(lines) and _RULE.match(lines[at + 1].strip()):
        return name, at + 2, True
    found = _GOOGLE.match(lines[at])
    if found is not None and found[1].lower() in _SECTIONS:
        return found[1].lower(), at + 1, False
    return None


def _section_end(lines: list[str], start: int, numpy: bool) -> int:
    if not numpy:
        return _indented(lines, start)
    rules = (i for i in range(start + 1, len(lines)) if _RULE.match(lines[i].strip()))
    return next(rules, len(lines) + 1) - 1


def _indented(lines: list[str], at: int) -> int:
    """Return the first line from `at` on that begins at the margin."""
    while at < len(lines) and (not lines[at].strip() or lines[at][0].isspace()):
        at += 1
    return at


def _google(lines: list[str]) -> dict[str, str]:
    """Entries are `name (type): text`; their further lines stand deeper."""
    helps: dict[str, str] = {}
    margin = min((_depth(line) for line in lines if line.strip()), default=0)
    name = ""
    for line in lines:
        entry = _GOOGLE_ENTRY.match(line) if _depth(line) == margin else None
        if entry is not None:
            name = entry[1]
        helps[name] = _joined(helps.get(name, ""), entry[2] if entry is not None else line)
    helps.pop("", None)
    return helps


def _numpy(lines: list[str]) -> dict[str, str]:
    """Entries are `name : type` at the margin; their text stands deeper."""
    helps: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        entry = None if line[:1].isspace() else _NUMPY_ENTRY.match(line)
        if entry is not None:
            names = [name.strip(" *") for name in entry[1].split(",")]
            continue
        for name in names:
            helps[name] = _joined(helps.get(name, ""), line)
    return helps


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(*lines: str) -> str:
    return " ".join(" ".join(lines).split())


__all__ = ["parse_docstring"]
