"""Hooks of MkDocs: pages from outside docs/, links as the repository has them, and no request to a third party.

A document stands beside what it describes (`configs/README.md`) and links to other files of the repository by relative
path, so that it can be read without the site. Here such files become pages, and their links are turned into links between
pages. A link to a file that is no page (source code, a configuration) becomes its text; a link to a file that does not
exist is an error, and so is the name of a test that does not exist.
"""

import functools
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

# A file of the repository to its page of the site.
PAGES = {
    "README.md": "index.md",
    "configs/README.md": "configuration.md",
    "serving/README.md": "serving.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {page: source for source, page in PAGES.items()}

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_TEST = re.compile(r"`(?:tests/[\w/]*)?(test_\w+)(?:\.py)?`")
_REQUEST = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]*)"')


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages that lie outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Files, **_: Any) -> str:
    """Turns links between files of the repository into links between pages; looks for every test that is named."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if unknown := set(_TEST.findall(markdown)) - tests():
        raise PluginError(f"{source}: there is no test named {', '.join(sorted(unknown))}.")
    pages = {file.src_uri for file in files}

    def link(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return match[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = PAGES.get(wanted, wanted.removeprefix("docs/"))
        if there in pages and (wanted in PAGES or wanted.startswith("docs/")):
            return f"{image}[{text}]({posixpath.relpath(there, posixpath.dirname(page.file.src_uri) or '.')}{mark}{anchor})"
        if not (ROOT / wanted).exists():
            raise PluginError(f"{source}: the link {target!r} leads to {wanted}, which does not exist.")
        return text

    # A block of code keeps what looks like a link.
    pieces, end = [], 0
    for block in _BLOCK.finditer(markdown):
        pieces += [_LINK.sub(link, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*pieces, _LINK.sub(link, markdown[end:])])


@functools.cache
def tests() -> frozenset[str]:
    """The names of all tests and of the files that they are in."""
    names = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        names |= {path.stem, *re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)}
    return frozenset(names)


def on_post_build(*, config: Any) -> None:
    """Refuses a site whose pages would load something from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if requests := _REQUEST.findall(path.read_text(encoding="utf-8")):
            raise PluginError(
                f"{path.name} would load {requests[0]} from a third party; the site may load its own files only."
            )
