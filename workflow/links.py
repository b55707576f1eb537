"""Follow every link of the rendered book: a broken one inside it is a fault, addresses outside are only tried.

`links.py FOLDER` follows the links inside; with ``--external`` it also asks each address outside, and prints those that
do not answer.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from bs4 import BeautifulSoup


@cache
def parsed(page: Path) -> BeautifulSoup:
    """A page."""
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(page: Path) -> set[str]:
    """What a fragment can name on a page."""
    return {found.get(key) for key in ("id", "name") for found in parsed(page).find_all(attrs={key: True})}


def links(page: Path) -> set[str]:
    """Where a page leads to, and what it loads."""
    found = parsed(page)
    return {tag[key] for key in ("href", "src") for tag in found.find_all(attrs={key: True})}


def fault(page: Path, link: str) -> str:
    """What is wrong with a link inside the book; empty if it leads somewhere."""
    parts = urlsplit(link)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return f"there is no {unquote(parts.path)}"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in anchors(target):
        return f"{target.name} has no anchor {unquote(parts.fragment)}"
    return ""


def silent(address: str) -> str:
    """Why an address outside does not answer; empty if it does."""
    try:
        answer = requests.head(address, timeout=10, allow_redirects=True)
        refusals = (403, 405, 429)  # some hosts let only browsers in
        return "" if answer.ok or answer.status_code in refusals else f"answers {answer.status_code}"
    except requests.RequestException as error:
        return type(error).__name__


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the rendered book, such as _build/demo/html")
    parser.add_argument("--external", action="store_true", help="try the addresses outside too")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    pages = sorted(
        page for page in folder.rglob("*.html") if page.parent.name != "_static"
    )  # no templates of the theme
    if not pages:
        print(f"{arguments.folder} holds no pages: run make book first.", file=sys.stderr)
        return 2
    outside, faults, count = set(), [], 0
    for page in pages:
        for link in sorted(links(page)):
            scheme = urlsplit(link).scheme
            if scheme in ("http", "https"):
                outside.add(link.partition("#")[0])
            elif not scheme:
                count += 1
                if wrong := fault(page, link):
                    faults.append(f"{page.relative_to(folder)}: the link {link} is broken, {wrong}.")
    print("\n".join(faults), file=sys.stderr)
    print(f"{len(pages)} pages: {count} links inside, {len(faults)} broken; {len(outside)} addresses outside.")
    if arguments.external:
        with ThreadPoolExecutor(8) as pool:
            for address, reason in zip(sorted(outside), pool.map(silent, sorted(outside)), strict=True):
                if reason:
                    print(f"  {address}: {reason}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
