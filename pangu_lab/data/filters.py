"""The steps of a corpus pipeline that judge one document at a time: rules, language, test sets, quality, secrets.

Each is a small frozen object that maps a text to ``(text, reason)``; an empty reason keeps the document.
``corpus.Pipeline`` runs them over a data set, in several processes.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pangu_lab.data.dedup import shingle_hashes, words_of
from pangu_lab.data.ngram import ByteNgram
from pangu_lab.errors import PanguLabError
from pangu_lab.text import clean


@dataclass(frozen=True)
class Normalize:
    """Entities, control characters, Unicode forms and runs of spaces; see ``pangu_lab.text.clean``."""

    name: str = "normalize"

    def __call__(self, text: str) -> tuple[str, str]:
        text = clean(text)
        return text, "" if text else "nothing left"


@dataclass(frozen=True)
class Rules:
    """Cheap rules on the shape of a text, after those of Gopher (Rae et al. 2021, appendix A.1.1).

    The defaults are ours, milder where a documentation page would be lost. Languages written without spaces
    are not judged by the length of their words.
    """

    least_words: int = 20
    most_words: int = 100_000
    word_length: tuple[float, float] = (2.5, 12.0)
    alphabetic: float = 0.6
    repeated_lines: float = 0.5
    bullets: float = 0.9
    name: str = "rules"

    def __call__(self, text: str) -> tuple[str, str]:
        return text, self.reason(text)

    def reason(self, text: str) -> str:
        """The first rule that a text breaks."""
        spaced = text.split()
        unspaced = sum("\u3040" <= c <= "\u9fff" for c in text[:2000]) > 0.2 * len(text[:2000])
        words = sum(map(len, spaced)) // 2 if unspaced else len(spaced)
        if words < self.least_words:
            return "too short"
        if words > self.most_words:
            return "too long"
        if not unspaced and not self.word_length[0] <= sum(map(len, spaced)) / len(spaced) <= self.word_length[1]:
            return "words of odd length"
        if sum(any(map(str.isalpha, word)) for word in spaced) < self.alphabetic * len(spaced):
            return "not words"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        repeated = sum(count for count in Counter(lines).values() if count > 1) / len(lines)
        if len(lines) > 4 and repeated > self.repeated_lines:
            return "lines repeat"
        if len(lines) > 4 and sum(line[0] in "-*•" for line in lines) > self.bullets * len(lines):
            return "only bullets"
        return ""


# The commonest function words of each language. Enough for pages, not for a line, and blind to any language
# that is not listed: it then says "unknown".
FUNCTION_WORDS = {
    "en": "the of and to in a is that for it as with be by on this are or from at an not have which you",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden",
    "fr": "de la le et les des en un du une que est pour qui dans par plus pas au sur ne se ce il sont",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o",
    "it": "di e il la che in un a per è una sono con non le si da i dei del alla nel gli come",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er om ook als bij door maar naar",
}
_SETS = {code: frozenset(words.split()) for code, words in FUNCTION_WORDS.items()}
# "de" is a word of five of these languages: it counts a fifth for each.
_EVIDENCE = {
    code: {word: 1 / sum(word in other for other in _SETS.values()) for word in sorted(words)}
    for code, words in _SETS.items()
}
_SCRIPTS = {"ja": ("\u3040", "\u30ff"), "ko": ("\uac00", "\ud7a3"), "zh": ("\u4e00", "\u9fff"), "ru": ("\u0400", "\u04ff"),
            "ar": ("\u0600", "\u06ff"), "el": ("\u0370", "\u03ff")}  # fmt: skip


def language(text: str, least: float = 0.08) -> str:
    """A guess at the language: by script, else by the share of function words; "unknown" below ``least``.

    It reads the first 5,000 characters. Cyrillic always counts as Russian and Arabic script as Arabic: this
    is a filter that keeps one language, not a classifier of many (for that: fastText's lid.176, CLD3).
    """
    text = text[:5000]
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return "unknown"
    for code, (low, high) in () if text.isascii() else _SCRIPTS.items():
        if sum(low <= c <= high for c in letters) > (0.05 if code == "ja" else 0.3) * len(letters):
            return code
    words = words_of(text)
    counts = {code: sum(known.get(word, 0.0) for word in words) for code, known in _EVIDENCE.items()}
    best = max(counts, key=lambda code: counts[code])
    return best if counts[best] >= least * len(words) else "unknown"


@dataclass(frozen=True)
class Language:
    """Keep the documents of one language, by ``language``."""

    wanted: str = "en"
    least: float = 0.08
    name: str = "language"

    def __call__(self, text: str) -> tuple[str, str]:
        found = language(text, self.least)
        return text, "" if found == self.wanted else f"language: {found}"


@dataclass(frozen=True)
class Decontaminate:
    """Drop a document that shares a run of ``n`` words with a test item (Brown et al. 2020, appendix C: 13).

    Words are lower-case and without punctuation. A test item of fewer than ``n`` words, but at least
    ``least``, must occur whole; shorter ones say too little and are not looked for. Build one with ``against``.
    """

    grams: tuple[tuple[int, np.ndarray], ...] = field(repr=False)
    n: int = 13
    least: int = 8
    name: str = "decontaminate"

    @classmethod
    def against(cls, items: Iterable[str], n: int = 13, least: int = 8) -> "Decontaminate":
        """Look for the words of ``items``: the questions, passages or reviews of every test set you will report."""
        found: dict[int, set[int]] = {}
        for item in items:
            words = words_of(item)
            if len(words) >= least:
                size = min(n, len(words))
                found.setdefault(size, set()).update(shingle_hashes(words, size, bits=64).tolist())
        grams = {size: np.array(sorted(hashes), dtype=np.uint64) for size, hashes in found.items()}
        return cls(tuple(sorted(grams.items())), n, least)

    def __call__(self, text: str) -> tuple[str, str]:
        words = words_of(text)
        for size, known in self.grams:
            if len(words) < size:
                continue
            if len(np.intersect1d(shingle_hashes(words, size, bits=64), known, assume_unique=True)):
                return text, f"shares {size} words with a test item"
        return text, ""


@dataclass(frozen=True)
class Quality:
    """Drop what a small language model, trained on text you trust, finds hard to predict (after Wenzek et al. 2020).

    ``limit`` is in bits per byte. Low is not the same as good: text that repeats itself has the lowest. So
    there is a lower limit, too. Build one with ``trusted``.
    """

    model: ByteNgram = field(repr=False)
    limit: float
    lowest: float = 0.5
    name: str = "quality"

    @classmethod
    def trusted(cls, texts: Iterable[str], order: int = 5, quantile: float = 0.995) -> "Quality":
        """Train on nine tenths of ``texts``; the limit is where that share of the last tenth stays.

        Raises
        ------
        PanguLabError
            Fewer than 20 texts: no limit can be read from them.
        """
        texts = list(texts)
        if len(texts) < 20:
            raise PanguLabError(f"quality: {len(texts)} trusted texts are too few to set a limit; give 20 or more")
        held = texts[::10]
        model = ByteNgram.train((text for i, text in enumerate(texts) if i % 10), order)
        return cls(model, float(np.quantile([model.bits_per_byte(text) for text in held], quantile)))

    def __call__(self, text: str) -> tuple[str, str]:
        bits = self.model.bits_per_byte(text[:5000])
        if bits > self.limit:
            return text, "hard to predict"
        return text, "too easy to predict" if bits < self.lowest else ""


_PRIVATE_KEY = r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----"
_KEY = (
    r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|xox[abp]-[A-Za-z0-9-]{10,}|(?:sk|pk|hf)[-_][A-Za-z0-9_-]{20,})"
)
_PATTERNS = (
    ("KEY", re.compile(_PRIVATE_KEY, re.DOTALL)),
    ("KEY", re.compile(_KEY)),
    ("EMAIL", re.compile(r"\b[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")),
    ("IP", re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.]\w)(?!\d)")),
    ("IP", re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}(?![\w:])")),
    ("PHONE", re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)|\d{1,4})(?:[ .-]?\d{2,4}){2,4}"
                         r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])")),
)  # fmt: skip


def mask_secrets(text: str) -> tuple[str, Counter[str]]:
    """Put ``<EMAIL>``, ``<PHONE>``, ``<IP>`` and ``<KEY>`` in place of what looks like one, and count them.

    Patterns find form, not meaning: names and postal addresses stay, and a version 1.2.3.4 looks like an
    address of a machine. Telephone numbers are found with a country code or in the North American form.
    """
    counts: Counter[str] = Counter()
    for kind, pattern in _PATTERNS:
        text, found = pattern.subn(f"<{kind}>", text)
        counts[kind] += found
    return text, +counts


@dataclass(frozen=True)
class MaskSecrets:
    """``mask_secrets`` on every document; none is dropped."""

    name: str = "mask secrets"

    def __call__(self, text: str) -> tuple[str, str]:
        return mask_secrets(text)[0], ""
