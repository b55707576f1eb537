"""Real data with checksums: `fetch` gives the verified local files of a dataset in `data_manifest.yaml`.

Files live in a cache, `_build/data` or the folder that `$CROPNB_DATA` names, as `<dataset>/<path>`.
Where `$CROPNB_OFFLINE` is set, the network is left alone.
"""

import difflib
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from tqdm import tqdm

with warnings.catch_warnings():  # in a notebook without widgets, pooch's progress bar says so at import
    warnings.filterwarnings("ignore", "IProgress not found")
    import pooch

from cropnb import project

logger = logging.getLogger(__name__)

MANIFEST = "data_manifest.yaml"
INTERCEPTED = "of a proxy that opens what is encrypted, name the own certificate in REQUESTS_CA_BUNDLE"
TIMEOUT = (3, 10)  # seconds to connect, and between two pieces of an answer


class DataUnavailable(RuntimeError):  # noqa: N818, a state of the cache more than an error
    """A file is not in the cache, whole and right, and could not be brought there."""


def _check_address(address: str) -> str:
    parts = urlsplit(address)
    # Plain http is for a server on this very machine, as the tests use it.
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    if not parts.hostname or not (parts.scheme == "https" or local):
        raise ValueError(f"the url {address!r} should start with https://")
    return address


Address = Annotated[str, AfterValidator(_check_address)]
# Parts start with a letter, digit or underscore: no room for "..", roots, drives and hidden files.
_Inside = Annotated[str, Field(pattern="^[A-Za-z0-9_][A-Za-z0-9_.+=-]*(/[A-Za-z0-9_][A-Za-z0-9_.+=-]*)*$")]


class Entry(BaseModel):
    """What a YAML file of the project may say: known keys, and numbers that are some."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


AnyEntry = TypeVar("AnyEntry", bound=Entry)


def read_yaml(kind: type[AnyEntry], path: Path, remedy: str) -> AnyEntry:
    """Read and check a YAML file. Raises FileNotFoundError with the remedy where there is none, else as `checked`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: {remedy}.")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}.") from None
    return checked(kind, content, path)


def checked(kind: type[AnyEntry], content: Any, path: Path) -> AnyEntry:
    """What a file says as an entry of its kind.

    Raises ValueError with a sentence naming the file, the key, what it says and what would be right.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        also = [".".join(str(part) for part in e["loc"]) for e in others if e["type"] == "missing"]
        problem = "missing, add it" + (f", and {', '.join(also)} too" if also else "")
        others = others[len(also) :]
    elif first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), kind.model_fields, n=1)
        problem = f"not known; {f'did you mean {near[0]!r}?' if near else 'known are ' + ', '.join(kind.model_fields)}"
    elif first["type"].startswith("date"):
        problem = f"is {first['input']!r}: write a day as 2018-05-01"
    elif first["loc"] and not isinstance(first["input"], dict):
        problem = f"is {first['input']!r}: {problem}"
    more = f" (and {len(others)} more)" if others else ""
    raise ValueError(f"{path}{f', key {key!r}' if key else ''}: {problem}{more}.")


class DataFile(Entry):
    """A file: `path` below the dataset's folder, `url` where its address does not simply end in `path`."""

    path: _Inside
    url: str = ""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: PositiveInt


class Dataset(Entry):
    """What a dataset is, its licence and citation, its files and the address that theirs start from."""

    what: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    citation: str = Field(min_length=1)
    url: str
    by_hand: str = ""  # how to get files that no address gives
    files: list[DataFile] = Field(min_length=1)

    def address(self, file: DataFile) -> str:
        """Where `file` is downloaded from."""
        return urljoin(self.url, file.url or file.path)

    @model_validator(mode="after")
    def _check(self) -> "Dataset":
        seen = set()
        for file in self.files:
            _check_address(self.address(file))
            if file.path.casefold() in seen:  # names that differ in case are one file on some disks
                raise ValueError(f"the path {file.path!r} is there twice; keep one")
            seen.add(file.path.casefold())
        return self


class Manifest(Entry):
    """The datasets by name."""

    version: Literal[1]
    datasets: dict[Annotated[str, Field(pattern="^[a-z0-9_]+$")], Dataset]


def load_manifest(path: str | Path = MANIFEST) -> Manifest:
    """Read and check a manifest; raises what `read_yaml` does."""
    return read_yaml(Manifest, Path(path), "run from the root of the repository, where the manifest lies")


def cache_dir() -> Path:
    """The folder of the cache: `$CROPNB_DATA`, or `_build/data`."""
    return Path(os.environ.get("CROPNB_DATA") or "_build/data").expanduser()


def fetch(name: str, *, manifest: str | Path = MANIFEST, cache: str | Path | None = None) -> dict[str, Path]:
    """Local files of a dataset, each checked against its SHA-256; what is missing is downloaded.

    Keys are the paths below the dataset's folder, as the manifest writes them. A cache that holds the files
    is only read. A wrong file in the cache is kept as `<name>.wrong-<first 8 digits>` and downloaded again.
    Raises ValueError for an unknown dataset, DataUnavailable where a file cannot be had.
    """
    dataset, cache = _dataset(name, manifest), Path(cache or cache_dir()).resolve()
    return {file.path: _obtain(name, dataset, file, cache) for file in dataset.files}


def is_available(name: str, *, manifest: str | Path = MANIFEST, cache: str | Path | None = None) -> bool:
    """Whether every file of a dataset is in the cache and right; changes nothing, uses no network."""
    dataset, cache = _dataset(name, manifest), Path(cache or cache_dir()).resolve()
    try:
        return all(_sha256(_place(cache, name, file)) == file.sha256 for file in dataset.files)
    except (DataUnavailable, OSError):
        return False


def _dataset(name: str, manifest: str | Path) -> Dataset:
    datasets = load_manifest(manifest).datasets
    if name not in datasets:
        near = "".join(f" (did you mean {n!r}?)" for n in difflib.get_close_matches(name, datasets, n=1))
        raise ValueError(f"There is no dataset {name!r} in {manifest}{near}; known are {', '.join(datasets)}.")
    return datasets[name]


def _place(cache: Path, name: str, file: DataFile) -> Path:
    path = cache / name / file.path
    if not Path(os.path.realpath(path)).is_relative_to(cache):
        raise DataUnavailable(f"{path} leaves the cache by a symbolic link; put the file itself there.")
    if path.exists() and not path.is_file():
        raise DataUnavailable(f"{path} should be a file and is something else; move it away.")
    return path


def _sha256(path: Path) -> str:
    return pooch.file_hash(str(path)) if path.exists() else ""


def put_aside(wrong: Path, path: Path) -> Path:
    """Keep a wrong file beside the place `path` that it should have taken, as `<name>.wrong-<digits of its hash>`."""
    return wrong.replace(path.with_name(f"{path.name}.wrong-{_sha256(wrong)[:8]}"))


def _obtain(name: str, dataset: Dataset, file: DataFile, cache: Path) -> Path:
    label, state = f"{name}/{file.path}", "is not in the cache"
    try:
        path = _place(cache, name, file)
        found = _sha256(path)
        if found == file.sha256:
            return path
        if found:
            state = f"is wrong in the cache (sha256 {file.sha256} expected, {found} found)"
            state += f", is kept as {put_aside(path, path)},"
            logger.warning("%s %s and is downloaded again.", label, state)
        if dataset.by_hand:
            raise DataUnavailable(f"{label} {state}: {dataset.by_hand}.")
        _download(f"{label} {state}", dataset.address(file), file, path)
    except OSError as error:
        raise DataUnavailable(
            f"{label} {state} and {cache} could not be read or written ({error.strerror or 'not writable'}); "
            "put the right file there by hand or set CROPNB_DATA to a folder of your own."
        ) from error
    return path


def _download(state: str, url: str, file: DataFile, path: Path) -> None:
    by_hand = f"download {url} by hand and put it at {path}"
    if is_offline():
        raise DataUnavailable(f"{state} and CROPNB_OFFLINE forbids the network; {by_hand}.")

    def download(url: str, output_file: str, pooch_: pooch.Pooch) -> None:
        with bar(path.name, file.bytes) as shown:
            pooch.HTTPDownloader(progressbar=shown, chunk_size=2**16, timeout=TIMEOUT)(url, output_file, pooch_)
        found = _sha256(Path(output_file))
        if found != file.sha256:  # pooch would delete it
            raise DataUnavailable(
                f"{state} and {url} gave a wrong file, kept as {put_aside(Path(output_file), path)}: "
                f"sha256 {file.sha256} expected, {found} found."
            )

    pooch.get_logger().setLevel("WARNING")  # its notes would become output of a page
    path.parent.mkdir(parents=True, exist_ok=True)
    # pooch writes under a temporary name beside the file and renames what is whole and right.
    files = {"registry": {path.name: file.sha256}, "urls": {path.name: url}}
    try:
        pooch.create(path.parent, "", retry_if_failed=1, **files).fetch(path.name, downloader=download)
    except requests.RequestException as error:
        raise DataUnavailable(f"{state} and could not be downloaded ({reason(error)}); {by_hand}.") from error


def is_offline() -> bool:
    """Whether `$CROPNB_OFFLINE` forbids the network."""
    return os.environ.get("CROPNB_OFFLINE", "0") not in ("", "0")


def bar(name: str, size: int) -> tqdm:
    """A bar of bytes for who watches; it stays on no page."""
    return tqdm(desc=name, total=size, unit="B", unit_scale=True, leave=False, disable=not project.watched())


def reason(error: BaseException | None) -> str:
    """Why a request failed, in words for a person."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    words = {
        requests.Timeout: "no answer in time",
        requests.exceptions.ChunkedEncodingError: "the connection was cut",
        requests.exceptions.SSLError: f"its certificate is not trusted; {INTERCEPTED}",
        requests.exceptions.ProxyError: "the proxy of this machine let nothing through",
        requests.ConnectionError: "no connection",
    }
    return next((text for kind, text in words.items() if isinstance(error, kind)), type(error).__name__)


def main() -> int:
    """Fetch every dataset: a line for each, then a sentence for each that failed; 1 where one did."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    failures: list[Exception] = []
    try:
        for name, dataset in load_manifest().datasets.items():
            try:
                fetch(name)
            except DataUnavailable as error:
                failures += [] if dataset.by_hand else [error]
                logger.info("%s: not available", name)
            else:
                size = sum(file.bytes for file in dataset.files) / 1e6
                logger.info("%s: %d files, %.1f MB, verified", name, len(dataset.files), size)
    except (ValueError, FileNotFoundError) as error:
        failures.append(error)
    for failure in failures:
        logger.error("%s", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    project.command(main)
