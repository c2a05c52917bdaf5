"""Pages of the site that are made from other files: README and its siblings, the API, the CLI.

A hook of mkdocs (`hooks` in mkdocs.yml). The root's pages link files by their place in the
repository; on the site, links to pages lead to these, and links to other files become plain text.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "report.md",
}
GROUPS = {
    "Agents and chats": ("runtime.", "graph."),
    "Tools": ("tools.",),
    "Environments": ("environments",),
    "Sampling": ("engine.",),
    "Errors": ("errors",),
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root, the API reference and the command line."""
    made = {page: site_links((ROOT / name).read_text()) for name, page in ROOT_PAGES.items()}
    made["reference/api.md"] = api_page()
    made["reference/cli.md"] = cli_page()
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def site_links(text: str) -> str:
    """Rewrite the links of a page of the root to where their targets are on the site."""

    def target(match: re.Match[str]) -> str:
        picture, label, path, anchor = match.groups()
        if "://" in path:
            return match.group()
        if path in ROOT_PAGES:
            path = ROOT_PAGES[path]
        elif path == "docs/decisions/":
            path = "decisions/0001-symlinked-rooms.md"
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        else:
            return label
        return f"{picture}[{label}]({path}{anchor or ''})"

    return _LINK.sub(target, text)


def public_names() -> dict[str, str]:
    """Return the public names and the modules that define them, without importing drawloom."""
    tree = ast.parse((ROOT / "src/drawloom/__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise LookupError("src/drawloom/__init__.py has no _HOMES")


def api_page() -> str:
    """Return the API reference as directives of mkdocstrings, in groups."""
    lines = ["# Python API", "", "All names are imported from `drawloom`.", ""]
    names = public_names()
    for group, prefixes in GROUPS.items():
        lines += [f"## {group}", ""]
        for name, module in sorted(names.items(), key=lambda item: item[0].lower()):
            if module.startswith(prefixes):
                lines += [f"::: drawloom.{module}.{name}", ""]
    return "\n".join(lines)


def cli_page() -> str:
    """Return the help of all commands as Markdown."""
    from drawloom.runtime.cli.main import app

    documented: Any = app
    text = str(documented.generate_docs(output_format="markdown"))
    return text if text.startswith("# ") else f"# Command line\n\n{text}"
