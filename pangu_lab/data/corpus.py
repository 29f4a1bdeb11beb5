"""From files to blocks of tokens: read, filter step by step, mix, pack; every step says what it removed.

Read ``Pipeline.run`` first. The steps are in ``filters`` and ``dedup``. Documents lie in Arrow files on disk
(``datasets``), never all in memory; a step that was finished is found again after an interruption.
"""

import hashlib
import json
import shutil
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np

from pangu_lab.data.dedup import BANDS, ROWS, SIMILAR, WORDS, Index, MinHash, band_keys, shingle_hashes, words_of
from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write

LARGEST_FILE = 10_000_000  # bytes
LONGEST_LINE = 1_000_000  # bytes
EXAMPLES = 3
PAYS_FROM = 5000  # documents from which on a second process saves more than it costs


class CorpusError(PanguLabError):
    """A corpus cannot be read, built or mixed as asked."""


# --- reading ----------------------------------------------------------------------------------------


@dataclass
class Skipped:
    """What was not read: how often for which reason, and the first few of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, source: str) -> None:
        self.counts[reason] += 1
        if len(self.examples.setdefault(reason, [])) < EXAMPLES:
            self.examples[reason].append(source)


def decoded(data: bytes) -> tuple[str, str]:
    """Text and "", or "" and the reason why these bytes are no text."""
    if b"\0" in data[:8192]:
        return "", "binary"
    if max((len(line) for line in data.split(b"\n")), default=0) > LONGEST_LINE:
        return "", f"a line of more than {LONGEST_LINE:,} bytes"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "", "not UTF-8"
    sample = text[:8192]
    odd = sum(unicodedata.category(c) == "Cc" and c not in "\n\r\t\f" for c in sample)
    return ("", "binary") if odd > len(sample) // 100 else (text, "")


def read_files(files: Iterable[tuple[str, Path]], skipped: Skipped) -> Iterator[dict[str, str]]:
    """Each file is one document ``{"text", "source"}``; ``files`` gives the name to show and the path.

    Too large, binary or badly encoded files go into ``skipped``, and so does what cannot be opened.
    """
    for source, path in files:
        try:
            if path.stat().st_size > LARGEST_FILE:
                skipped.add(f"larger than {LARGEST_FILE:,} bytes", source)
                continue
            text, reason = decoded(path.read_bytes())
        except OSError as error:
            text, reason = "", f"cannot be read: {error.strerror}"
        if reason:
            skipped.add(reason, source)
        else:
            yield {"text": text, "source": source}


def read_lines(path: Path, skipped: Skipped) -> Iterator[dict[str, str]]:
    """Each line of a file is one document. A line too long is read over in pieces, never held in memory."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            source = f"{path.name}:{number}"
            if len(line) > LONGEST_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE)
                skipped.add(f"a line of more than {LONGEST_LINE:,} bytes", source)
                continue
            text, reason = decoded(line)
            if reason:
                skipped.add(reason, source)
            elif text.strip():
                yield {"text": text.rstrip("\r\n"), "source": source}


# --- the pipeline -----------------------------------------------------------------------------------


class Step(Protocol):
    """Judges one document: the text, changed or not, and why it goes; an empty reason keeps it."""

    @property
    def name(self) -> str: ...

    def __call__(self, text: str, /) -> tuple[str, str]: ...


@dataclass(frozen=True)
class Deduplicate:
    """Drop what repeats an earlier document of the set: the only step that must know the others.

    Signatures are computed in several processes; the decision is made in one, in the order of the documents.
    """

    threshold: float = SIMILAR
    words: int = WORDS
    bands: int = BANDS
    rows: int = ROWS
    seed: int = 0
    name: str = "near-duplicates"

    def keys(self, text: str) -> list[int]:
        """The document's band keys."""
        shingles = shingle_hashes(words_of(text), self.words)
        signature = MinHash(self.bands * self.rows, self.seed).signature(shingles)
        keys: list[int] = band_keys(signature[None], self.bands, self.rows)[0].tolist()
        return keys


@dataclass(frozen=True)
class Report:
    """What one step did. ``removed`` counts by reason; ``examples`` are (source, beginning of the text)."""

    step: str
    before: int
    after: int
    characters_before: int
    characters_after: int
    changed: int
    seconds: float
    removed: dict[str, int]
    examples: dict[str, list[list[str]]]

    def __str__(self) -> str:
        text = f"{self.step}: {self.before:,} → {self.after:,} documents in {self.seconds:.1f} s"
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.removed.items()))
        return text + (f" ({reasons})" if reasons else "")


@dataclass(frozen=True)
class Pipeline:
    """Steps in their order, the folder that keeps what each leaves, and in how many processes they run."""

    folder: Path
    steps: Sequence[Step | Deduplicate]
    processes: int = 1

    def run(
        self, documents: Iterable[Mapping[str, Any]], log: Callable[[str], None] = lambda line: None
    ) -> tuple[Any, list[Report]]:
        """Take the documents through all steps.

        Parameters
        ----------
        documents
            Rows with ``text`` and ``source``: a list, a generator, a ``datasets.Dataset``, streamed or not. Read
            once, from first to last; the same rows under the same steps give the same result, found again.
        log
            Called with one line for each step.

        Returns
        -------
        (datasets.Dataset, list of Report)
            What is left, and what each step removed.

        Raises
        ------
        CorpusError
            A row has no text, or nothing is left after a step.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        current, key = self._stored(documents)
        reports = []
        for number, step in enumerate(self.steps, start=1):
            key = hashlib.sha256(f"{key} {_fingerprint(step)}".encode()).hexdigest()[:16]
            target = self.folder / f"{number:02}-{step.name.replace(' ', '-')}-{key}"
            if not (target / "report.json").exists():
                self._make(current, step, target)
            current = datasets.load_from_disk(str(target))
            report = Report(**json.loads((target / "report.json").read_text(encoding="utf-8")))
            log(str(report))
            reports.append(report)
        return current, reports

    def _stored(self, documents: Iterable[Mapping[str, Any]]) -> tuple[Any, str]:
        """The documents on disk, named by the hash of their content."""
        content = hashlib.sha256()

        def rows() -> Iterator[dict[str, str]]:
            for number, row in enumerate(documents):
                if not isinstance(row.get("text"), str):
                    raise CorpusError(f"document {number} has no column 'text' with a string; it has {list(row)}")
                text, source = row["text"], str(row.get("source", number))
                content.update(f"{len(text)} {source}\0{text}".encode("utf-8", "surrogatepass"))
                yield {"text": text, "source": source}

        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".reading-") as scratch:
            arrow = Path(scratch) / "rows.arrow"
            features = datasets.Features({"text": datasets.Value("large_string"), "source": datasets.Value("string")})
            with datasets.arrow_writer.ArrowWriter(path=str(arrow), features=features) as writer:
                for row in rows():
                    writer.write(row)
                count, _ = writer.finalize()
            if not count:
                raise CorpusError("there are no documents; look at what was skipped while reading")
            key = content.hexdigest()[:16]
            target = self.folder / f"00-read-{key}"
            if not target.exists():
                _save(datasets.Dataset.from_file(str(arrow)), target)
        return datasets.load_from_disk(str(target)), key

    def _make(self, current: Any, step: Step | Deduplicate, target: Path) -> None:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".step-") as scratch:
            processes = self.processes if len(current) >= PAYS_FROM and self.processes > 1 else None
            judged = current.map(
                _keys if isinstance(step, Deduplicate) else _judge,
                batched=True,
                batch_size=500,
                fn_kwargs={"step": step},
                num_proc=processes,
                cache_file_name=str(Path(scratch) / "map.arrow"),
                new_fingerprint=target.name,  # else every run hashes the step's tables to name a cache we do not use
                load_from_cache_file=False,
            )
            reasons = _repeats(judged, step) if isinstance(step, Deduplicate) else judged["reason"][:]
            kept = np.flatnonzero([not reason for reason in reasons])
            if not len(kept):
                why = ", ".join(f"{reason} {count:,}" for reason, count in Counter(reasons).most_common(5))
                raise CorpusError(
                    f"nothing is left after the step {step.name!r} ({why}); loosen it or look at the input"
                )
            report = _report(step.name, current, judged, reasons, kept, began)
            extra = [name for name in judged.column_names if name not in ("text", "source")]
            _save(judged.remove_columns(extra).select(kept), target, report)


def _judge(batch: dict[str, list], step: Step) -> dict[str, list]:
    pairs = [step(text) for text in batch["text"]]
    changed = [new != old for (new, _), old in zip(pairs, batch["text"], strict=True)]
    return {"text": [text for text, _ in pairs], "reason": [reason for _, reason in pairs], "changed": changed}


def _keys(batch: dict[str, list], step: Deduplicate) -> dict[str, list]:
    return {"keys": [np.array(step.keys(text), dtype=np.uint64) for text in batch["text"]]}


def _repeats(judged: Any, step: Deduplicate) -> list[str]:
    """For each document, why it goes: "nearly the same" from the threshold on, "the same words" with equal shingles."""
    index = Index(step.threshold)
    reasons: list[str] = []
    for batch in judged.select_columns(["text", "keys"]).with_format("numpy", columns=["keys"], output_all_columns=True
                                                                    ).iter(500):  # fmt: skip
        for text, keys in zip(batch["text"], batch["keys"], strict=True):
            found, similarity = index.add(len(reasons), shingle_hashes(words_of(text), step.words), keys)
            reasons.append("" if found < 0 else "the same words" if similarity == 1 else "nearly the same")
    return reasons


def _report(name: str, current: Any, judged: Any, reasons: Sequence[str], kept: np.ndarray, began: float) -> Report:
    examples: dict[str, list[list[str]]] = {}
    for number, reason in enumerate(reasons):
        if reason and len(examples.setdefault(reason, [])) < EXAMPLES:
            row = current[number]
            examples[reason].append([row["source"], " ".join(row["text"][:400].split())[:160]])
    before = [_lengths(batch) for batch in current.iter(500)]
    after = np.concatenate([_lengths(batch) for batch in judged.iter(500)])[kept]
    return Report(
        step=name,
        before=len(current),
        after=len(kept),
        characters_before=int(np.concatenate(before).sum()),
        characters_after=int(after.sum()),
        changed=sum(judged["changed"][:]) if "changed" in judged.column_names else 0,
        seconds=round(time.perf_counter() - began, 3),
        removed=dict(sorted(Counter(filter(None, reasons)).items())),
        examples=examples,
    )


def _lengths(batch: Mapping[str, list]) -> np.ndarray:
    return np.array([len(text) for text in batch["text"]], dtype=np.int64)


def _save(dataset: Any, target: Path, report: Report | None = None) -> None:
    """Into a folder of another name, then renamed: a folder of the right name is always complete."""
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".saving-"))
    try:
        dataset.save_to_disk(str(scratch / "data"))
        if report:
            atomic_write(scratch / "data" / "report.json", json.dumps(asdict(report), ensure_ascii=False, indent=1))
        if target.exists():  # left by a run without a report
            shutil.rmtree(target)
        (scratch / "data").rename(target)
    except OSError as error:
        raise CorpusError(f"{target}: cannot be written ({error.strerror}); free some space") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fingerprint(step: Any) -> str:
    """A step by its class and all its settings, tables included; the same in every process and on every machine."""
    content = hashlib.sha256(type(step).__qualname__.encode())

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray):
            content.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        elif hasattr(value, "__dataclass_fields__"):
            for part in fields(value):
                content.update(part.name.encode())
                add(getattr(value, part.name))
        elif isinstance(value, (list, tuple)):
            content.update(f"[{len(value)}".encode())
            for item in value:
                add(item)
        else:
            content.update(repr(value).encode())

    add(step)
    return content.hexdigest()


# --- mixing and packing -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """One source in a mixture: its share of the tokens, tokens it has, how often it is read."""

    weight: float
    tokens: int
    epochs: float


def mixture(tokens: Mapping[str, int], weights: Mapping[str, float], total: int) -> dict[str, Share]:
    """How often each source is read if ``total`` tokens are to hold the sources in the given shares.

    Epochs below 1 leave a part of a source unread; above 4 the repetition starts to cost (Muennighoff et al. 2023).

    Raises
    ------
    CorpusError
        A source has no weight or no tokens, a weight is negative, or all are 0.
    """
    if set(tokens) != set(weights):
        odd = sorted(set(tokens) ^ set(weights))
        raise CorpusError(f"mixture: {odd[0]!r} is not in both tokens and weights")
    scale = sum(weights.values())
    if any(weight < 0 for weight in weights.values()) or scale <= 0:
        raise CorpusError("mixture: weights must be 0 or more, and one of them above 0")
    empty = [name for name, count in tokens.items() if count <= 0 and weights[name] > 0]
    if empty:
        raise CorpusError(f"mixture: {empty[0]!r} has no tokens, so its weight must be 0")
    return {
        name: Share(weights[name] / scale, count, weights[name] / scale * total / count if count else 0.0)
        for name, count in tokens.items()
    }


def mix(parts: Mapping[str, Any], epochs: Mapping[str, float], seed: int = 0) -> Any:
    """The documents of all sources, each read ``epochs[name]`` times, in one random order.

    A fraction of an epoch is a random part of the source's documents, drawn without repetition.
    """
    chosen = []
    for number, (name, part) in enumerate(parts.items()):
        rng = np.random.Generator(np.random.PCG64([seed, number]))
        whole, fraction = divmod(epochs[name], 1)
        rows = [np.arange(len(part))] * int(whole) + [rng.permutation(len(part))[: round(fraction * len(part))]]
        chosen.append(part.select(np.concatenate(rows)))
    order = np.random.Generator(np.random.PCG64([seed, len(chosen)])).permutation(sum(map(len, chosen)))
    return datasets.concatenate_datasets(chosen).select(order)


def pack(documents: Iterable[list[int]], length: int, end: int) -> Iterator[list[int]]:
    """Token ids of documents, one after the other with ``end`` behind each, cut into blocks of ``length``.

    No block has padding. What is left at the end and does not fill a block is dropped: fewer than ``length`` tokens.
    """
    if length < 1:
        raise CorpusError(f"pack: length is {length}; it must be 1 or more")
    rest: list[int] = []
    for document in documents:
        rest += [*document, end]
        full = len(rest) // length * length
        for start in range(0, full, length):
            yield rest[start : start + length]
        rest = rest[full:]
