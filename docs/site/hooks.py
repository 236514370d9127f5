"""Hooks of the docs site: API pages, files outside of docs/ that pages link to, formulas as MathML."""

from __future__ import annotations

import html
import os
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from properdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import api

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Files that become a page which shows them; of others a copy is linked.
_CODE = {
    ".py": "python",
    ".yaml": "yaml",
    ".sh": "bash",
    ".js": "javascript",
    ".html": "html",
    ".toml": "toml",
    "": "text",
}
_LINK = re.compile(r'(\]\(|\bsrc=")([^)\s"#:]+)((?:#[^)\s"]*)?[)"])')
_FENCED = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the API, and what pages link to, and those that this links to."""
    for uri, text in api.pages().items():
        files.append(File.generated(config, uri, content=text))
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages() if not file.generated_by]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        for target in _targets(path):
            if target in seen or target.startswith("docs/"):
                continue
            seen.add(target)
            source, uri = REPOSITORY / target, site_uri(target)
            if source.suffix == ".md":
                waiting.append(target)
                files.append(File.generated(config, uri, content=source.read_text(encoding="utf-8")))
            elif uri.endswith(".md"):
                fence = f"```{_CODE[source.suffix]}\n{source.read_text(encoding='utf-8')}\n```\n"
                files.append(File.generated(config, uri, content=f"# {target}\n\n{fence}"))
            else:
                files.append(File.generated(config, uri, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links that leave docs/ lead to the pages and copies on the site."""
    uri = page.file.src_uri
    if uri.startswith("api/"):
        return markdown
    path = uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"

    def moved(match: re.Match[str]) -> str:
        target = _resolved(path, match[2])
        if target is None:
            return match[0]
        return f"{match[1]}{os.path.relpath(site_uri(target), os.path.dirname(uri) or '.')}{match[3]}"

    parts = _FENCED.split(markdown)  # code stays as it is
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Turn formulas into MathML, which browsers draw themselves: nothing is loaded, no script runs."""
    content = re.sub(
        r'<div class="arithmatex">\\\[(.*?)\\\]</div>', lambda m: _mathml(m[1], "block"), content, flags=re.DOTALL
    )
    return re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: _mathml(m[1], "inline"), content, flags=re.DOTALL
    )


def site_uri(path: str) -> str:
    """Return where a file of the repository is on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    suffix = Path(path).suffix
    return f"repository/{path}.md" if suffix in _CODE else f"repository/{path}"


def _targets(path: str) -> list[str]:
    text = "".join(part for part in _FENCED.split((REPOSITORY / path).read_text(encoding="utf-8")) if part[:3] != "```")
    found = (_resolved(path, match[2]) for match in _LINK.finditer(text))
    return [target for target in found if target is not None]


def _resolved(path: str, target: str) -> str | None:
    """Return the file of the repository that a link on a page leads to; None for another kind of link."""
    resolved = os.path.normpath(os.path.join(os.path.dirname(path), target))
    return resolved if (REPOSITORY / resolved).is_file() else None


def _mathml(formula: str, display: str) -> str:
    return convert(html.unescape(formula), display=display)
