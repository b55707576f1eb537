"""What a chapter is: its source, what it declares in its front matter, and the parameters it takes."""

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import product
from pathlib import Path

import jupytext
import yaml

from cropnb import schema

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Chapter:
    """One notebook of the book and what its front matter says under ``cropnb``.

    ``datasets`` are names of the data manifest; ``reads`` and ``writes`` are artefacts below ``_build/<profile>``;
    ``gpu`` says that a GPU helps; ``network`` is what the chapter trains, and makes it a cell of the sweep.
    """

    name: str
    source: Path
    datasets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    gpu: bool = False
    network: str = ""


@dataclass(frozen=True)
class Cell:
    """One more execution of a network's chapter, for a cell of the comparison tables."""

    name: str
    chapter: Chapter
    parameters: dict[str, object]

    @property
    def run(self) -> str:
        """Its run, as ``cropnb.runs.directory`` places it."""
        p = self.parameters
        parts = (p["build"], p["folder"], self.chapter.network, p["features"], p["augmentation"], f"seed-{p['seed']}")
        return "/".join(parts)

    def order(self, config: dict, chapters: list[Chapter]) -> dict[str, object]:
        """What its execution is told: name, parameters, where its run goes, and the digest of all that decides it."""
        code = digest(self.chapter, self.parameters, config, chapters, drawing=False)
        return {"name": self.name, "parameters": self.parameters, "run": self.run, "code": code}


class ChapterError(ValueError):
    """A chapter or a profile that cannot be used, said in one sentence."""


# What numbers of these names may be, in every chapter that takes them: least, most.
RANGES: dict[str, list[float]] = yaml.safe_load((ROOT / "params/ranges.yaml").read_text())
PLAN = {"count", "size", "width", "batch_size", "epochs", "patience", "cells"}  # what a profile says of its replicates
ALL = ("train_samples", "validation_samples", "test_samples")  # where 0 takes every sample
SHARED = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)


@cache
def read_notebook(source: Path):
    """The notebook of an md:myst source."""
    return jupytext.read(source, fmt="md:myst")


def is_parameters(cell) -> bool:
    """Whether a cell holds the chapter's parameters."""
    return "parameters" in cell.metadata.get("tags", ())


def notebook_of(source: Path, without: Sequence[str] = ()):
    """A copy of a chapter's notebook, without the cells tagged ``needs-<thing>`` for what `without` names.

    Things are what a region has not, and ``reader`` where nobody will look at the page. Sentences that chapters share
    stand in their place.
    """
    notebook, away = deepcopy(read_notebook(source)), {f"needs-{thing}" for thing in without}
    notebook.cells = [cell for cell in notebook.cells if not away & set(cell.metadata.get("tags", ()))]
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = SHARED.sub(lambda match: (source.parent / match[1]).read_text().strip(), cell.source)
            continue
        # By its meaning, so that outputs find their cell again whatever a reader adds to the executed notebook.
        name = identity(cell.source)
        seen[name] += 1
        cell.id = f"{name}-{seen[name]}"
    return notebook


def identity(code: str) -> str:
    """What a code cell is recognised by: its meaning, digested."""
    return hashlib.sha256(_meaning(code).encode()).hexdigest()[:32]


def recorded(file: Path) -> dict:
    """What a status file or an executed notebook records; empty where a power cut or a full disk has left none."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


def run_of(record: dict) -> dict:
    """What an executed notebook, or the status of a cell, says of its run."""
    return record.get("metadata", {}).get("cropnb", {}).get("run", record)


def load(source: Path) -> Chapter:
    """The chapter of a source file."""
    declared = read_notebook(source).metadata.get("cropnb", {})
    fields = ("datasets", "reads", "writes", "gpu", "network")
    if unknown := set(declared) - set(fields):
        raise ChapterError(
            f"{source}: the front matter key cropnb.{min(unknown)} is not known; known are {', '.join(fields)}."
        )
    lists = {key: tuple(declared.get(key, ())) for key in fields[:3]}
    others = {"gpu": bool(declared.get("gpu", False)), "network": declared.get("network", "")}
    return Chapter(source.stem, source, **lists, **others)


def table_of_contents(toc: Path = ROOT / "_toc.yml") -> list[Path]:
    """Sources of the chapters, in the order of the book."""
    tree = yaml.safe_load(toc.read_text())
    files = [entry["file"] for part in tree["parts"] for entry in part["chapters"]]
    return [ROOT / f"{file}.md" for file in files if file.startswith("notebooks/")]


def all_chapters() -> list[Chapter]:
    """Every chapter of the table of contents."""
    return [load(source) for source in table_of_contents()]


@cache
def _imported(code: str) -> frozenset[str]:
    """Names of the helper module that code imports."""
    names = set()
    for node in ast.walk(ast.parse(_plain(code))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return frozenset(name for name in names if name.split(".")[0] == "cropnb")


def _plain(code: str) -> str:
    """Code without what only IPython understands."""
    return "\n".join(line for line in code.splitlines() if not line.startswith(("%", "!")))


def helper_files(source: Path) -> list[str]:
    """The files of the helper module that a chapter or a script uses: when one changes, it is stale."""
    code = [source.read_text()]
    if source.suffix == ".md":
        code = [cell.source for cell in read_notebook(source).cells if cell.cell_type == "code"]
    waiting = {name for part in code for name in _imported(part)}
    found = set()
    while waiting:
        base = ROOT.joinpath(*waiting.pop().split("."))
        new = {file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()} - found
        found |= new
        waiting |= {name for file in new for name in _imported(file.read_text())}
    return sorted(str(file.relative_to(ROOT)) for file in found)


def batches(cells: list[Cell], size: int = 4) -> dict[str, list[Cell]]:
    """Cells of one network that share a process, since starting one costs as much as a small training."""
    found = {}
    for network in dict.fromkeys(cell.chapter.network for cell in cells):
        own = [cell for cell in cells if cell.chapter.network == network]
        found |= {f"{network}-{i // size}": own[i : i + size] for i in range(0, len(own), size)}
    return found


def _meaning(code: str) -> str:
    """Code without comments, layout and docstrings: what a change of can change a result."""
    tree = ast.parse(_plain(code))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            first.value.value = ""
    return ast.dump(tree)


@cache
def _code_of(source: Path, drawing: bool) -> str:
    files = [ROOT / file for file in helper_files(source) if drawing or not file.endswith("/plotting.py")]
    cells = [cell.source for cell in read_notebook(source).cells if cell.cell_type == "code"]
    return "\n".join(_meaning(code) for code in [*(file.read_text() for file in files), *cells])


def digest(chapter: Chapter, given: dict, profile: dict, chapters: list[Chapter], drawing: bool = True) -> str:
    """Of all that decides what a chapter computes: code, parameters, pinned packages, and the same upstream.

    Words, comments and layout have no part in it: a reworded page is rendered again, not run again.
    """
    parts = [_code_of(chapter.source, drawing), json.dumps([given, profile.get("without")], sort_keys=True)]
    parts.append((ROOT / "requirements.txt").read_text())
    parts += [(ROOT / "data_manifest.yaml").read_text()] * bool(chapter.datasets)
    parts += [_state(Path(given["region"]))] if "region" in given else []
    for other in chapters:
        if set(other.writes) & set(chapter.reads):
            parts.append(digest(other, parameters(other, profile), profile, chapters, drawing=False))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def replicates(profile: dict) -> dict[int, str]:
    """The replicates of a profile: number -> its plan as JSON, with a digest of the code that follows it."""
    plan, script = dict(profile.get("replicates", {})), ROOT / "workflow/replicate.py"
    code = [(ROOT / file).read_text() for file in [script, *helper_files(script), "requirements.txt"]]
    meaning = [*map(_meaning, code[:-1]), code[-1]]
    count, plan["code"] = plan.pop("count", 0), hashlib.sha256("".join(meaning).encode()).hexdigest()
    return dict.fromkeys(range(count), json.dumps(plan, sort_keys=True))


@cache
def _state(region: Path) -> str:
    """The region's file, and what the files it names look like."""
    files = [file for file in schema.read(ROOT / region).sources() if file.exists()]
    return (ROOT / region).read_text() + str([(str(file), file.stat().st_size, file.stat().st_mtime) for file in files])


def left_out(chapters: list[Chapter], lacks: dict[str, str]) -> dict[str, str]:
    """Chapters that need, by whatever way, an artefact that a region lacks, and why."""
    lacks, found = dict(lacks), {}
    for chapter in chapters:  # in the order of their artefacts
        names = (*chapter.reads, *chapter.writes, chapter.network)  # a network that the dates cannot feed, for one
        if reason := next((lacks[name] for name in names if name in lacks), ""):
            found[chapter.name] = reason
            lacks |= dict.fromkeys(chapter.writes, reason)
    return found


def defaults(source: Path) -> dict[str, object]:
    """Parameters of a chapter with their default values, in order.

    Raises
    ------
    ChapterError
        If no cell is tagged ``parameters``, or a line of it is not ``name: type = literal``.
    """
    cells = [cell for cell in read_notebook(source).cells if is_parameters(cell)]
    if len(cells) != 1:
        raise ChapterError(f"{source}: one cell must carry the tag 'parameters', {len(cells)} do.")
    values = {}
    for node in ast.parse(cells[0].source).body:
        try:
            name, kind, value = node.target.id, ast.unparse(node.annotation), ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            raise ChapterError(
                f"{source}: '{ast.unparse(node)}' in the parameters cell is not 'name: type = literal', "
                "which papermill can describe; derived values belong in the next cell."
            ) from None
        if kind.partition("[")[0] != type(value).__name__:
            raise ChapterError(
                f"{source}: parameter {name} says {kind}, but its default {value!r} is of type {type(value).__name__}."
            )
        values[name] = value
    return values


def in_range(name: str, value) -> bool:
    """Whether a number is one that a parameter of that name may be."""
    low, high = RANGES[name]
    return (name in ALL and value == 0) or (low <= value and (high is None or value <= high))


def allowed(name: str) -> str:
    """What a number of that name may be, in words; empty where nothing is said."""
    if name not in RANGES:
        return ""
    low, high = RANGES[name]
    return ("0 (all) or " if name in ALL else "") + (f"{low} or more" if high is None else f"from {low} to {high}")


def check_parameters(source: Path, given: dict[str, object]) -> dict[str, object]:
    """The given parameters, refused if the chapter does not know one or its type differs from the default's.

    Raises
    ------
    ChapterError
        One sentence with the chapter, the parameter, and what would be right.
    """
    known = defaults(source)
    for name, value in given.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(known)}."
            raise ChapterError(f"{source.name} has no parameter '{name}'; {hint}")
        default = known[name]
        if type(default) is int and type(value) is float and value.is_integer():
            given = given | {name: (value := int(value))}  # such as 1e3
        fits = default is None or type(value) is type(default) or (type(default), type(value)) == (float, int)
        if not fits:
            raise ChapterError(
                f"{source.name}: parameter {name} = {value!r} is of type {type(value).__name__}, "
                f"but the chapter takes {type(default).__name__} (default {default!r})."
            )
        if name in RANGES and not in_range(name, value):
            raise ChapterError(f"{source.name}: parameter {name} = {value!r} must be {allowed(name)}.")
    return dict(given)


def parameters(chapter: Chapter, profile: dict) -> dict[str, object]:
    """A chapter's parameters in a profile: the common ones that it takes, and its own, checked.

    Networks also share the ``networks`` of the profile.
    """
    own = profile.get("chapters", {}).get(chapter.name) or {}
    shared = profile.get("networks", {}) if chapter.network else {}
    known = defaults(chapter.source)
    common = {name: value for name, value in profile["parameters"].items() if name in known}
    return check_parameters(chapter.source, common | shared | own)


def cells(profile: dict, chapters: list[Chapter]) -> list[Cell]:
    """The sweep of a profile: the cells that its ``sweep`` lists, beyond what the chapters' pages run themselves,
    and those that `make run` has added to the comparison.

    Each entry names ``networks`` (default: all) and parameters, each a value or a list; lists are multiplied out.
    A region without samples has none.
    """
    away = left_out(chapters, profile.get("lacks", {}))
    by_network = {chapter.network: chapter for chapter in chapters if chapter.network and chapter.name not in away}
    if not by_network:
        return []
    found = {}
    for entry in [*profile.get("sweep", ()), *map(recorded, sorted(asked_folder(profile).glob("*.json")))]:
        networks = entry.get("networks", list(by_network))
        varied = {name: value for name, value in entry.items() if name != "networks"}
        lists = [value if isinstance(value, list) else [value] for value in varied.values()]
        for network, *values in product(networks, *lists):
            needs = set(str(dict(zip(varied, values, strict=True)).get("features", "")).split("+"))
            needs |= {"m-chi"} if "amplitude" in needs else set()  # both are of complex radar
            if network in profile.get("lacks", {}) or needs & set(profile.get("without", ())):
                continue
            if network not in by_network:
                raise ChapterError(f"the sweep names '{network}'; networks are {', '.join(by_network)}.")
            cell = cell_of(by_network[network], dict(zip(varied, values, strict=True)), profile)
            found.setdefault(cell.run, cell)
    own = pages(profile, list(by_network.values()))
    return [cell for run, cell in found.items() if run not in own]


def pages(profile: dict, chapters: list[Chapter]) -> list[str]:
    """The runs that networks' own pages write, of those that are not left out for the region."""
    away = left_out(chapters, profile.get("lacks", {}))
    return [cell_of(each, {}, profile).run for each in chapters if each.network and each.name not in away]


def cell_of(chapter: Chapter, own: dict[str, object], profile: dict) -> Cell:
    """A network's chapter with parameters of its own beside the profile's; the chapter's page without any."""
    own = check_parameters(chapter.source, own)
    given = defaults(chapter.source) | parameters(chapter, profile) | own
    return Cell("_".join([chapter.network, *map(str, own.values())]).replace("/", "-"), chapter, given)


def asked_folder(profile: dict) -> Path:
    """Where `make run` notes the cells it has added to the comparison, in the form of a ``sweep``'s entries."""
    return ROOT / profile["parameters"]["build"] / "asked"


def check_profile(profile: dict, chapters: list[Chapter]) -> None:
    """Refuse a profile that names a chapter the book does not have, or replicates it cannot make."""
    if set(profile.get("replicates") or PLAN) != PLAN:
        raise ChapterError(f"profile {profile['parameters']['profile']}: replicates need {', '.join(sorted(PLAN))}.")
    names = [chapter.name for chapter in chapters]
    for name in profile.get("chapters", {}):
        if name not in names:
            near = get_close_matches(name, names, n=1)
            raise ChapterError(
                f"profile {profile['parameters']['profile']}: there is no chapter '{name}'"
                + (f"; did you mean '{near[0]}'?" if near else ".")
            )
