"""The form of the chapters: short cells, lines that fit the page, one set-up that comes first."""

import ast
import statistics
from pathlib import Path

import jupytext
import pytest

CHAPTERS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.md"))
COLUMN = 76  # characters that a page shows of a line
LONGEST, MEDIAN = 25, 8  # lines of a shown cell


def code_cells(source):
    return [cell for cell in jupytext.read(source, fmt="md:myst").cells if cell.cell_type == "code"]


def lines(source, hidden):
    """Lines of each cell that has none of the `hidden` tags."""
    cells = [cell.source for cell in code_cells(source) if not {*hidden} & {*cell.metadata.get("tags", ())}]
    return [[line for line in text.splitlines() if line.strip()] for text in cells]


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)
def test_cells_are_short_and_fit_the_column(source):
    cells = lines(source, ["remove-cell", "parameters"])
    assert max(map(len, cells)) <= LONGEST
    assert max(len(line) for cell in cells for line in cell) <= COLUMN


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)
def test_parameters_and_imports_come_first_and_are_collapsed(source):
    first, second, *_ = code_cells(source)
    assert {"parameters", "hide-input"} <= set(first.metadata["tags"])
    assert "hide-input" in second.metadata["tags"]
    assert any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(second.source).body)


def test_the_median_cell_is_a_thought():
    hidden = ["remove-cell", "parameters", "hide-input"]
    assert statistics.median(len(cell) for source in CHAPTERS for cell in lines(source, hidden)) <= MEDIAN
