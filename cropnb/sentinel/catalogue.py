"""Sentinel-1 IW SLC and Sentinel-2 L2A of a region: search, a lock file that a person reads first, then download.

`search` lists whole products of the Copernicus Data Space (one zip each), `elevation` the tiles of its GLO-30 model.
`write_lock` is the dry run: what would be fetched, how large, for how long. `download` fetches what a lock lists and
goes on where it stopped, `unpack` opens a product.

Searching and the elevation model need no account. Products need the free one, from the environment
(`CDSE_USERNAME`, `CDSE_PASSWORD`) or from `~/.netrc` (machine identity.dataspace.copernicus.eu); nothing here
writes either down. An account with a second factor cannot log in this way.

Addresses, collections, properties, the `Product` asset and the form of the log-in follow the service's documentation
and public clients of it. The tests play the same protocol on the loopback: the service itself was never asked, so
that it answers ranges, and that `file:size` and `file:checksum` describe the zip it sends, is what it documents.
"""

import itertools
import logging
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pooch
import requests
import shapely
import yaml
from pydantic import Field, PositiveInt
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from requests.adapters import HTTPAdapter
from requests.utils import get_netrc_auth
from tqdm import tqdm
from urllib3.util import Retry

from cropnb import data, files
from cropnb.data import DataUnavailable
from cropnb.sentinel.choice import choose, row

log = logging.getLogger(__name__)

CATALOGUE = "https://stac.dataspace.copernicus.eu/v1"
IDENTITY = "https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token"
ELEVATION = "https://copernicus-dem-30m.s3.amazonaws.com"
COLLECTIONS = {"sar": "sentinel-1-slc", "optical": "sentinel-2-l2a"}
SPEED = 50e6 / 8  # bytes a second of an ordinary line; the service gives at most 20 MB/s a connection
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
LARGEST = 40e9  # bytes of an unpacked product; a slice of SLC has about 8
PAUSES = (1, 4, 16, 60)  # seconds before a download that got nothing is taken up again
HOW_TO_LOG_IN = (
    "set CDSE_USERNAME and CDSE_PASSWORD, or a line of ~/.netrc for the machine identity.dataspace.copernicus.eu "
    "(accounts are free at dataspace.copernicus.eu)"
)


class Product(data.Entry):
    """A product, or a tile of the elevation model, as tables and lock files list it."""

    time: datetime | None  # UTC, of its first line
    sensor: Literal["sar", "optical", "dem"]
    product: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    track: str  # relative orbit
    cloud_cover: float | None  # 0 to 1
    covered: float  # fraction of the region that it covers by itself
    bytes: PositiveInt
    checksum: Annotated[str, Field(pattern="^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})?$")]
    url: data.Address

    @property
    def file(self) -> str:
        """Its name on disk."""
        return f"{self.product}{'.tif' if self.sensor == 'dem' else '.zip'}"


class Lock(data.Entry):
    """A lock file: what would be fetched, how large, and for how many days at a speed."""

    version: Literal[1]
    total_bytes: int = 0
    megabits_per_second: float = 0
    days: float = 0
    products: list[Product]


# Search


def search(
    bounds: Sequence[float],
    start: str | date,
    end: str | date,
    *,
    sensors: Sequence[str] = ("sar", "optical"),
    max_cloud: float = 0.08,
    orbits: Sequence[int] = (),
    dates: Mapping[str, int] | None = None,
    min_covered: float = 0.99,
    address: str = CATALOGUE,
) -> pd.DataFrame:
    """Products over a region that can be used, a row each with the fields of `Product`, by sensor and time.

    Products of one sensor, track and day are one acquisition: it is used where they cover the region together.

    Parameters
    ----------
    bounds
        West, south, east, north of the region, degrees.
    start, end
        First and last day, UTC.
    max_cloud
        Largest cloud cover of an optical product, 0 to 1.
    orbits
        Relative orbits (tracks) of the radar; all where empty.
    dates
        Number of acquisitions by sensor, spread evenly over those found; all where absent or 0.
    min_covered
        Smallest fraction of the region that an acquisition covers.

    Raises
    ------
    ValueError
        For bounds that are none, and where a sensor has no acquisition that can be used, with the reasons.
    DataUnavailable
        Where the catalogue does not answer.
    """
    region, season, rows = _region(bounds), (pd.Timestamp(start), pd.Timestamp(end)), []
    for sensor in sensors:
        name = COLLECTIONS[sensor]
        found = [_row(item, sensor, region) for item in _items(name, bounds, season, address)]
        what, wanted = f"{name} has no acquisition to use over {list(bounds)}", (dates or {}).get(sensor, 0)
        passes = choose(found, region, what, season, orbits, max_cloud, wanted, min_covered)
        for why, count in Counter(each["why"] for each in found if each["why"]).items():
            log.info("%d products of %s left out: %s", count, name, why)
        rows += [each for one in passes for each in one]
    return _table(rows)


def elevation(bounds: Sequence[float], *, margin: float = 0.1, address: str = ELEVATION) -> pd.DataFrame:
    """Tiles of the Copernicus elevation model GLO-30 over a region and `margin` degrees around it, as `search` does.

    A tile that is not there is open sea, or not released, and is left out.
    """
    region, rows, session = _region(bounds), [], _Session()
    west, south, east, north = np.floor(region.buffer(margin).bounds).astype(int).tolist()
    for x, y in itertools.product(range(west, east + 1), range(south, north + 1)):
        name = f"Copernicus_DSM_COG_10_{'NS'[y < 0]}{abs(y):02d}_00_{'EW'[x < 0]}{abs(x):03d}_00_DEM"
        url = f"{address}/{name}/{name}.tif"
        try:
            answer = session.head(url, timeout=TIMEOUT)
            if answer.status_code == 404:
                log.warning("%s is not in the elevation model: open sea, or not released (no height there).", name)
                continue
            answer.raise_for_status()
        except requests.RequestException as error:
            raise DataUnavailable(f"{url} could not be asked for ({data.reason(error)}): try again later.") from None
        covered = round(shapely.box(x, y, x + 1, y + 1).intersection(region).area / region.area, 4)
        etag = answer.headers.get("ETag", "").strip('"')  # the MD5, of a file that came in one piece
        about = {"url": url, "bytes": int(answer.headers["Content-Length"]), "checksum": _checksum(etag)}
        rows.append({"sensor": "dem", "product": name, "track": "", "covered": covered} | about)
    return _table(rows)


def _region(bounds: Sequence[float]) -> shapely.Polygon:
    west, south, east, north = bounds
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise ValueError(f"bounds {list(bounds)} should be west, south, east, north in degrees, in this order.")
    return shapely.box(*bounds)


def _items(collection: str, bounds: Sequence[float], season: Sequence[pd.Timestamp], address: str) -> list[dict]:
    """STAC items of all pages, as dictionaries. Rules are applied here: a season over a region is a few hundred."""
    _check_online(address)
    io = StacApiIO(timeout=TIMEOUT, max_retries=None)
    io.session, window = _Session(), f"{season[0]:%Y-%m-%d}T00:00:00Z/{season[1]:%Y-%m-%d}T23:59:59Z"
    try:
        client = Client.open(address, stac_io=io)
        found = client.search(collections=[collection], bbox=list(bounds), datetime=window, limit=100)
        return list(found.items_as_dicts())
    except APIError as error:
        status = getattr(error, "status_code", None)
        reason = f"answered {status}" if status else data.reason(error.__context__)
    except (ValueError, KeyError, TypeError):
        reason = "the answer is not STAC"
    raise DataUnavailable(f"The catalogue {address} could not be searched ({reason}): try again later.")


def _row(item: Mapping, sensor: str, region: shapely.Polygon) -> dict:
    """An item as `choice.choose` takes it; one that cannot be used says why, and stops no search."""
    name = str(item.get("id")).removesuffix(".SAFE")
    try:
        properties, asset = item["properties"], item["assets"]["Product"]
        made = (str(properties.get("processing:datetime")), name.split("_")[-1])
        cloud = properties.get("eo:cloud_cover")
        found = row(
            name,
            sensor,
            time=pd.to_datetime(properties.get("start_datetime") or properties["datetime"], utc=True).tz_localize(None),
            track=str(properties.get("sat:relative_orbit") or ""),
            cloud_cover=None if cloud is None else round(cloud / 100, 4),
            footprint=shapely.geometry.shape(item["geometry"]),
            version=name.split("_")[3] if sensor == "optical" else made,
            bytes=asset.get("file:size"),
            checksum=_checksum(asset.get("file:checksum") or ""),
            url=asset.get("href"),
        )
        if not (found["url"] and found["bytes"]):
            found["why"] = "without a download"
        elif sensor == "sar" and properties.get("sar:instrument_mode") != "IW":
            found["why"] = "in another mode than IW"
        elif sensor == "sar" and not {"VV", "VH"} <= set(properties.get("sar:polarizations") or ()):
            found["why"] = "without both VV and VH"
        else:
            Product.model_validate({key: found[key] for key in Product.model_fields})
        return found
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, shapely.errors.ShapelyError):
        return row(name, sensor, why="with a value that is missing or cannot be")


def _checksum(text: str) -> str:
    """A multihash, or plain digits, as "md5:..." or "sha256:..."; empty for another kind."""
    for name, prefix, digits in (("md5", "d50110", 32), ("sha256", "1220", 64)):
        if match := re.fullmatch(f"(?:{prefix})?([0-9a-f]{{{digits}}})", text.lower()):
            return f"{name}:{match[1]}"
    return ""


def _table(rows: Sequence[Mapping]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(Product.model_fields)).astype({"cloud_cover": float})
    table["time"] = pd.to_datetime(table.time).astype("datetime64[us]")
    return table.sort_values(["sensor", "time", "product"], ignore_index=True)


# The lock file


def write_lock(table: pd.DataFrame, path: str | Path, *, renew: bool = False) -> Path:
    """Write the products of a table into a lock file: the dry run, which fetches nothing.

    The same table gives the same file. Raises ValueError where the file is there and lists other products, unless
    `renew`.
    """
    path, table = Path(path), _table(table.to_dict("records"))
    total = int(table.bytes.sum())
    days = round(total / SPEED / 86400, 3)
    record = {"version": 1, "total_bytes": total, "megabits_per_second": SPEED * 8e-6, "days": days}
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    lock = data.checked(Lock, record | {"products": rows}, path)
    if path.is_file() and not renew and (changed := {each.product for each in {*lock.products} ^ {*read_lock(path)}}):
        raise ValueError(
            f"{path} lists other products: {', '.join(sorted(changed)[:3])} ({len(changed)} in all) come, go or "
            "change; keep the file, or renew it with renew=True."
        )
    text = yaml.safe_dump(lock.model_dump(mode="json"), sort_keys=False)
    path.write_text(f"# What to download for a region: read this before the download.\n{text}", "utf-8")
    log.info("%s: %d products, %.1f GB, %.2f days of download", path, len(rows), total / 1e9, days)
    return path


def read_lock(path: str | Path) -> list[Product]:
    """The products that a lock file lists, in its order.

    Raises FileNotFoundError where there is none, ValueError with a sentence that names the product and the key.
    """
    return data.read_yaml(Lock, Path(path), "write one from a search first").products


# Download


def download(lock: str | Path, folder: str | Path, *, identity: str = IDENTITY) -> list[Path]:
    """Fetch the products of a lock file into a folder, each checked; their paths, in the lock's order.

    What is there and right is not fetched again. What was cut short goes on from its `.part`. A wrong file is
    fetched once more and then refused. Where the catalogue gave no checksum, the size has to do.
    Raises DataUnavailable where a product cannot be had or the disk is too small.
    """
    products, folder = read_lock(lock), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [product for product in products if not _is_right(folder / product.file, product)]
    needed = sum(product.bytes - _size(folder / f"{product.file}.part") for product in missing)
    if needed > (free := shutil.disk_usage(folder).free):
        raise DataUnavailable(
            f"{folder} has {free / 1e9:.1f} GB free and the download needs {needed / 1e9:.1f} GB more "
            "(and as much again to unpack): free space or choose another folder."
        )
    session = _Session(identity)
    for product in missing:
        _obtain(session, product, folder / product.file)
    return [folder / product.file for product in products]


def _obtain(session: "_Session", product: Product, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        data.put_aside(path, path)
        log.warning("%s is wrong, is kept beside its place and is downloaded again.", path)
    for _ in range(2):
        with data.bar(product.product, product.bytes) as bar:
            _fill(session, product, part, bar)
        if _is_right(part, product):
            part.replace(path)
            return
        part.unlink()
    raise DataUnavailable(
        f"{product.url} gave twice what is not {product.product} of the lock file ({product.bytes} bytes, "
        f"{product.checksum or 'no checksum'}): write the lock file again, or fetch the product by hand."
    )


def _fill(session: "_Session", product: Product, part: Path, bar: tqdm) -> None:
    """Bring a part to the product's size, asking for the rest after every cut; gives up after pauses without gain."""
    waits = iter(PAUSES)
    while (have := _size(part)) < product.bytes:
        bar.reset(product.bytes)
        bar.update(have)
        reason, hint = _take(session, product, part, bar), "run it again, it goes on where it stopped"
        if refusal := re.fullmatch(r"the server answered (4(?!29)\d\d)", reason):
            hint = HOW_TO_LOG_IN if refusal[1] in ("401", "403") else "write the lock file again from a new search"
        elif _size(part) > have:
            waits = iter(PAUSES)
            continue
        elif wait := next(waits, 0):
            time.sleep(wait)
            continue
        raise DataUnavailable(f"{product.product} could not be downloaded ({reason}): {hint}.")


def _take(session: "_Session", product: Product, part: Path, bar: tqdm) -> str:
    """Ask once for what a part lacks and append it; why the answer was not whole."""
    have, auth = _size(part), session.show_token if session.is_own(product.url) else None
    rest = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with session.get(product.url, auth=auth, headers=rest, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 401 and session.accepted:  # it has expired
                session.token, session.accepted = "", False
                return _take(session, product, part, bar)
            if answer.status_code not in (200, 206):
                return f"the server answered {answer.status_code}"
            session.accepted = True
            ranged = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            with part.open("r+b" if have else "wb") as file:
                file.seek(min(int(ranged[1]), have) if ranged else 0)  # an answer to a range may be the whole
                file.truncate()
                for piece in answer.iter_content(2**14):
                    bar.update(file.write(piece))
                    if file.tell() > product.bytes:
                        break
    except requests.RequestException as error:
        return data.reason(error)
    return "it sent less than the lock file says"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_right(path: Path, product: Product) -> bool:
    name, _, digits = product.checksum.partition(":")
    return _size(path) == product.bytes and (not digits or pooch.file_hash(str(path), alg=name) == digits)


def _check_online(address: str) -> None:
    if data.is_offline():
        raise DataUnavailable(f"CROPNB_OFFLINE forbids the network, and {urlsplit(address).hostname} needs it.")


class _Session(requests.Session):
    """Asks busy servers again, after the pause they ask for; shows a token to the identity service's domain only."""

    def __init__(self, identity: str = IDENTITY) -> None:
        super().__init__()
        self.identity, self.token, self.accepted = identity, "", False
        self.auth = lambda request: request  # else netrc's default goes to every host
        busy: dict[str, Any] = {"status_forcelist": (429, 502, 503, 504), "raise_on_status": False}
        busy |= {"backoff_factor": 1, "retry_after_max": 300, "allowed_methods": None}
        patience = HTTPAdapter(max_retries=Retry(total=None, connect=0, read=0, status=5, other=0, **busy))
        for prefix in ("https://", "http://"):
            self.mount(prefix, patience)

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        _check_online(str(request.url))
        return super().send(request, **options)

    def is_own(self, url: str) -> bool:
        """Whether a token may go to an address: the same server, or by https another one of the same domain."""
        here, home = urlsplit(url), urlsplit(self.identity)
        _, _, domain = (home.hostname or "").partition(".")
        other = here.scheme == home.scheme == "https" and "." in domain and f".{here.hostname}".endswith(f".{domain}")
        return other or (here.scheme, here.netloc) == (home.scheme, home.netloc)

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        if not self.is_own(str(prepared_request.url)):
            prepared_request.headers.pop("Authorization", None)

    def show_token(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Show a token, fetched where there is none."""
        self.token = self.token or self._log_in()
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def _log_in(self) -> str:
        # What the service answers may repeat what it was sent, so nothing of it is passed on but the status.
        try:
            answer = self.post(self.identity, auth=_fill_form, timeout=TIMEOUT, allow_redirects=False)
            reason = f"it answered {answer.status_code}"
            if answer.status_code == 200 and re.fullmatch(r"[\x21-\x7e]+", token := answer.json()["access_token"]):
                return token
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            reason = data.reason(error) if isinstance(error, requests.ConnectionError) else "no token in the answer"
        host = urlsplit(self.identity).hostname
        raise DataUnavailable(f"{host} gave no access ({reason}): {HOW_TO_LOG_IN}.")


def _fill_form(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Fill the form of a log-in. The only place that reads the password; nothing that it touches is ever shown."""
    user, password = os.environ.get("CDSE_USERNAME"), os.environ.get("CDSE_PASSWORD")
    if not (user and password):
        user, password = get_netrc_auth(str(request.url)) or ("", "")
    if not (user and password):
        raise DataUnavailable(f"There are no credentials: {HOW_TO_LOG_IN}.")
    form = {"client_id": "cdse-public", "grant_type": "password", "username": user, "password": password}
    request.prepare_body(form, None)
    return request


# Unpack


def unpack(path: str | Path, folder: str | Path) -> Path:
    """The folder (SAFE) that a product's zip holds, extracted into `folder` once; whole or not at all.

    Raises FileNotFoundError for a missing zip, ValueError for a zip that is cut short or damaged, or has not exactly
    one folder, or has members that are links or leave it.
    """
    path, folder = Path(path), Path(folder)
    if not path.is_file():
        raise FileNotFoundError(f"There is no product {path}: download it first.")
    try:
        with zipfile.ZipFile(path) as archive:
            tops = {_top(path, member) for member in archive.infolist()}
            if len(tops) != 1:
                raise ValueError(f"{path} holds {len(tops)} folders and a product is one: use another file.")
            size = sum(member.file_size for member in archive.infolist())
            if size > min(LARGEST, shutil.disk_usage(folder if folder.exists() else path.parent).free):
                raise ValueError(
                    f"{path} unpacks to {size / 1e9:.0f} GB, more than a product or the free disk: check it."
                )
            place = folder / tops.pop()
            if not place.exists():
                with files.whole(place) as part:
                    archive.extractall(part.parent)
            return place
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}): delete it and download it again.") from None


def _top(path: Path, member: zipfile.ZipInfo) -> str:
    """The outermost folder of a member. Raises ValueError for a member that is a link or could lie elsewhere."""
    # zipfile drops roots and ".." in silence; a product with them was not made by the service.
    parts = member.orig_filename.removesuffix("/").replace("\\", "/").split("/")
    if stat.S_ISLNK(member.external_attr >> 16) or {"", ".", ".."} & set(parts) or ":" in parts[0]:
        raise ValueError(f"{path} has the member {member.orig_filename!r}, a link or out of its folder: do not use it.")
    return parts[0]
