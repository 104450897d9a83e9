"""What the site takes from outside docs/: the README is its first page, and files that pages link to come along."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LINK = re.compile(r"(?<=\]\()([^):#\s]+)")
"""The target of a link or a picture that is a file of the repository."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the README, then every file of the repository that a page links to."""
    root = Path(config.config_file_path).parent
    pages = [_add(files, config, root / "README.md", root), *files.documentation_pages()]
    while pages:
        page = pages.pop()
        for target in LINK.findall(_inside_the_site(page.content_string)):
            path = root / target
            if files.get_file_from_path(target) is None and path.is_file():
                added = _add(files, config, path, root)
                pages += [added] if added.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links as they are inside the site, where docs/ and the root of the repository are one folder."""
    return _inside_the_site(markdown)


def _inside_the_site(markdown: str) -> str:
    return LINK.sub(lambda link: re.sub(r"^(\.\./|docs/)", "", link[1]), markdown)


def _add(files: Files, config: MkDocsConfig, path: Path, root: Path) -> File:
    file = File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path))
    files.append(file)
    return file
