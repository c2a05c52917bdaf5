"""Hooks of the documentation's site (mkdocs.yml).

They add the pages that stand outside of docs/ (README.md and its siblings, the examples), list
decisions and results in the navigation, turn links to source files into plain names, and draw
diagrams when the site is built, so that readers load nothing from another server.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

import mermaidx
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "report-a-vulnerability.md",
    "examples": "examples.md",
}
FOLDERS = {"docs/decisions": "decisions", "docs/results": "results"}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """List the decisions and the dated results, the newest first."""
    for entry in config.nav:
        if "Decisions" in entry:
            entry["Decisions"] = _listed("decisions")
        if "Results" in entry:
            entry["Results"] += _listed("results")[::-1]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside of docs/ and an index of each folder that pages link."""
    for source, page in PAGES.items():
        text = _examples() if source == "examples" else (ROOT / source).read_text()
        files.append(File.generated(config, page, content=text))
    for folder in FOLDERS.values():
        if files.get_file_from_path(f"{folder}/index.md") is None:
            title = folder.capitalize()
            links = [
                f"- [{name}]({Path(page).name})"
                for entry in _listed(folder)
                for name, page in entry.items()
            ]
            text = f"# {title}\n\n" + "\n".join(links) + "\n"
            files.append(File.generated(config, f"{folder}/index.md", content=text))
    return files


def on_page_markdown(text: str, *, page: Any, config: Any, files: Files) -> str:
    """Draw diagrams and follow links as they are on the site."""
    here = next((k for k, v in PAGES.items() if v == page.file.src_uri), None)
    source = here or f"docs/{page.file.src_uri}"
    text = _LINK.sub(lambda link: _link(link, source, page.file.src_uri), text)
    return _DIAGRAM.sub(lambda found: _picture(found[1]), text)


def _listed(folder: str) -> list[dict[str, str]]:
    pages = sorted(p for p in (ROOT / "docs" / folder).glob("*.md") if p.name != "index.md")
    return [
        {page.read_text().partition("\n")[0].lstrip("# "): f"{folder}/{page.name}"}
        for page in pages
    ]


def _examples() -> str:
    """Return one page with all examples."""
    parts = ["# Examples\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        parts.append(f"## {path.name}\n\n```python\n{path.read_text()}```\n")
    return "\n".join(parts)


def _link(link: re.Match[str], source: str, page: str) -> str:
    """Return a link of a file of the repository as it is on the site.

    What is not on the site (source files) becomes its text.
    """
    mark, text, target = link.groups()
    target, _, anchor = target.partition("#")
    if "://" in target or target.startswith("mailto:") or not target:
        return link[0]
    path = normpath(join(dirname(source), target))
    if path in PAGES:
        found = PAGES[path]
    elif path in FOLDERS:
        found = f"{FOLDERS[path]}/index.md"
    elif path.startswith("docs/") and (ROOT / path).is_file() and "/mosquitto/" not in path:
        found = path.removeprefix("docs/")
    elif (ROOT / path).exists():
        return text
    else:
        return link[0]  # mkdocs reports it
    return f"{mark}[{text}]({relpath(found, dirname(page) or '.')}{'#' + anchor if anchor else ''})"


def _picture(source: str) -> str:
    return f'<div class="diagram">{mermaidx.render(source).svg()}</div>\n'
