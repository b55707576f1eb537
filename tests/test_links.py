"""Broken links inside the rendered book are named; addresses outside are not asked unless one wants it."""

import pytest
from links import main


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Write a page beside another, follow its links, and return the status and what was said."""

    def checked(body):
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "index.html").write_text(f"<p id='here'></p>{body}")
        (tmp_path / "notebooks/a b.html").write_text("<h1 id='there'>A</h1><a href='../index.html#here'>back</a>")
        (tmp_path / "notebooks/crop.tif").write_bytes(b"II*")
        monkeypatch.setattr("sys.argv", ["links.py", str(tmp_path)])
        return main(), capsys.readouterr()

    return checked


def test_good_links(check):
    status, said = check(
        "<a href='#here'></a> <a href='notebooks/a%20b.html#there'></a> <a href='notebooks/crop.tif'></a>"
        "<a href='mailto:a@example.org'></a> <a href='https://example.org/x#y'></a> <img src='data:image/png;base64,'>"
    )
    assert status == 0
    assert said.err.strip() == ""
    assert said.out == "2 pages: 4 links inside, 0 broken; 1 addresses outside.\n"


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ("away.html", "index.html: the link away.html is broken, there is no away.html."),
        ("#away", "index.html: the link #away is broken, index.html has no anchor away."),
        ("notebooks/a%20b.html#here", "is broken, a b.html has no anchor here."),
        ("notebooks", "is broken, there is no notebooks."),
    ],
)
def test_broken_links_are_named(check, link, sentence):
    status, said = check(f"<a href='{link}'></a>")
    assert status == 1
    assert sentence in said.err


def test_a_folder_without_pages_is_no_book(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["links.py", str(tmp_path)])
    assert main() == 2
    assert "holds no pages: run make book first" in capsys.readouterr().err
