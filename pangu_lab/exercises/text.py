"""Exercises of lab 01: from raw text to blocks of tokens.

References come from independent truths where there are any: exact sets, brute force over all pairs, the
``tokenizers`` library's own WordPiece. Read the lab's notebook for the story.
"""

import functools
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

import numpy as np

from pangu_lab.exercises.engine import Case, Exercise, Mistake

WORDS = [
    "harbor",
    "lamp",
    "storm",
    "keeper",
    "island",
    "letter",
    "bridge",
    "winter",
    "garden",
    "market",
    "river",
    "tower",
    "captain",
    "doctor",
    "village",
    "engine",
    "mirror",
    "candle",
    "forest",
    "summer",
    "station",
    "picture",
    "window",
    "coffee",
    "record",
    "island",
    "valley",
    "planet",
    "copper",
    "silver",
    "velvet",
]


def _words(rng: np.random.Generator, count: int) -> list[str]:
    return [str(word) for word in rng.choice(WORDS, count)]


# --- cleaning ---------------------------------------------------------------------------------------

_TAG = r"<[^<>]*>"


def _cleaner(
    tag: str = _TAG,
    gap: str = " ",
    unescape: int = 1,
    first: bool = False,
    form: Any = "NFC",
    space: str = r"\s+",
    control: bool = True,
    strip: bool = True,
    after: Callable[[str], str] = str,
) -> Callable[[str], str]:
    """The right cleaner, and with other settings each known mistake."""

    def clean(text: str) -> str:
        if first:
            text = html.unescape(text)
        text = re.sub(tag, gap, text)
        for _ in range(0 if first else unescape):
            text = html.unescape(text)
        if form:
            text = unicodedata.normalize(form, text)
        if control:
            text = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf"))
        text = re.sub(space, " ", text)
        return after(text.strip() if strip else text)

    return clean


def clean(text: str) -> str:
    """A page as one line of text without its markup."""
    cleaned: str = _cleaner()(text)
    return cleaned


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _clean_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for _ in range(4):
        w = [*_words(rng, 7), "Café", "Zoe\u0308"]
        rng.shuffle(w)
        a, b, c, d, e, f, g, h, i = (word if k % 3 else word.capitalize() for k, word in enumerate(w))
        number = int(rng.integers(2, 99))
        cases.append(
            f"  <p class='x{number}'>{a} &amp; {b}</p><p>{c},<br/>{d}\u200b{e}</p>\r\n\t {f} writes &lt;{g}&gt; "
            f"for &amp;amp; in {number} \u00a0 lines; {h}\x07 {i}e\u0301!  "
        )
    notes = ("entities, tags, accents, invisible characters", "another page", "another page", "another page")
    plain = "  nothing  to\nundo here, but spaces "
    return [
        *(Case((text,), note=note) for text, note in zip(cases, notes, strict=True)),
        Case((plain,), note="no tags"),
    ]


CLEAN = Exercise(
    id="text.clean",
    points=2,
    title="Clean a page",
    cases=_clean_cases,
    reference=clean,
    mistakes=(
        Mistake("glued", "A tag leaves nothing behind, so the words on its two sides grow together; put a space in "
                "its place.", _cleaner(gap="")),
        Mistake("order", "You turn entities into characters before you remove tags: &lt;word&gt; becomes a tag and "
                "is lost. Tags first.", _cleaner(first=True)),
        Mistake("greedy", "Your pattern for tags is greedy: <.*> takes everything from the first < to the last > of "
                "a line.", _cleaner(tag=r"<.*>")),
        Mistake("tags", "The tags are still there.", _cleaner(tag=r"(?!)")),
        Mistake("entities", "The entities are still there: &amp; is an &.", _cleaner(unescape=0)),
        Mistake("twice", "You undo entities twice: a text about &amp;amp; means &amp;, not &.", _cleaner(unescape=2)),
        Mistake("no-form", "An e with a separate accent looks like é and is another string; normalize to NFC.",
                _cleaner(form="")),
        Mistake("decomposed", "NFD takes accents apart; NFC puts them together.", _cleaner(form="NFD")),
        Mistake("control", "Invisible characters (categories Cc and Cf) are still there.", _cleaner(control=False)),
        Mistake("only-blanks", "Only blanks are joined; a tab, a line break or a no-break space is white space, too: "
                "\\s.", _cleaner(space=r" +")),
        Mistake("strip", "White space is left at the ends.", _cleaner(strip=False)),
        Mistake("lower", "You change capitals to small letters; the tokenizer decides about that, not the cleaner.",
                _cleaner(after=str.lower)),
        Mistake("ascii", "Letters outside ASCII lose their accents or vanish; most of the world's text is not ASCII.",
                _cleaner(after=_ascii)),
        Mistake("punctuation", "Punctuation is gone; a language model needs it.",
                _cleaner(after=lambda text: re.sub(r"[^\w\s]", "", text))),
    ),
    hints=(
        "Five steps, one line each. What would happen to &lt;b&gt; if entities came before tags?",
        "re.sub for tags, html.unescape once, unicodedata.normalize, a join over characters by category, re.sub for spaces.",
        'text = re.sub(r"<[^<>]*>", " ", text)\ntext = html.unescape(text)\n...\nreturn re.sub(r"\\s+", " ", text).strip()',
    ),
)  # fmt: skip


# --- shingles and Jaccard ---------------------------------------------------------------------------


def jaccard(a: str, b: str, n: int) -> float:
    """Jaccard similarity of the sets of word n-grams, counted shingle by shingle."""
    sets = []
    for text in (a, b):
        words = text.lower().split()
        sets.append(frozenset(" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))))
    either = set().union(*sets)
    return sum(all(shingle in part for part in sets) for shingle in either) / len(either)


def _similarity(
    pieces: Callable[[str, int], Iterable[Any]] | None = None,
    ratio: Callable[[set, set], float] | None = None,
    lower: bool = True,
) -> Callable[[str, str, int], float]:
    def shingles(text: str, n: int) -> set:
        text = text.lower() if lower else text
        if pieces:
            return set(pieces(text, n))
        words = text.split()
        return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}

    def similarity(a: str, b: str, n: int) -> float:
        x, y = shingles(a, n), shingles(b, n)
        return ratio(x, y) if ratio else len(x & y) / len(x | y)

    return similarity


def _word_list(text: str, n: int) -> list[str]:
    return text.split()


def _one_lost(text: str, n: int) -> list[tuple]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(max(1, len(words) - n))]


def _too_many(text: str, n: int) -> list[tuple]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words))]


def _apart(text: str, n: int) -> list[tuple]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(0, max(1, len(words) - n + 1), n)]


def _counted(a: str, b: str, n: int) -> float:
    """Jaccard of multisets."""
    x, y = (
        Counter(tuple(w[i : i + n]) for i in range(max(1, len(w) - n + 1)))
        for w in (a.lower().split(), b.lower().split())
    )
    return (x & y).total() / (x | y).total()


def _jaccard_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for n in (2, 3, 2):
        start = _words(rng, 12)
        a = [*start, start[-1], *start[:4]]  # shingles that occur twice
        b = list(a)
        b[int(rng.integers(5, 9))] = "lighthouse"
        b = [*b, *_words(rng, 2), "shore"]
        b[0] = b[0].capitalize()
        if n == 3:  # the first text is the longer one here
            a, b = b, a
        cases.append(Case((" ".join(a), " ".join(b), n), note=f"a copy with one word changed, {n}-word shingles"))
    w = _words(rng, 2)
    return [
        *cases,
        Case((" ".join(["tide", *w]), " ".join(["Tide", *w]), 5), note="shorter than n: one shingle, the whole text"),
        Case(("red blue green", "one two three", 2), note="nothing in common"),
    ]


JACCARD = Exercise(
    id="text.jaccard",
    points=2,
    title="Shingles and Jaccard similarity",
    cases=_jaccard_cases,
    reference=jaccard,
    mistakes=(
        Mistake("dice", "2·|A ∩ B| / (|A| + |B|) is the Dice coefficient; Jaccard divides by the union.",
                _similarity(ratio=lambda x, y: 2 * len(x & y) / (len(x) + len(y)))),
        Mistake("smaller", "You divide by the smaller set; that is containment, and a page inside a longer one gets 1.",
                _similarity(ratio=lambda x, y: len(x & y) / min(len(x), len(y)))),
        Mistake("first", "You divide by the size of A; the union is meant, and the order of a and b must not matter.",
                _similarity(ratio=lambda x, y: len(x & y) / len(x))),
        Mistake("distance", "This is the distance, 1 minus the similarity.",
                _similarity(ratio=lambda x, y: 1 - len(x & y) / len(x | y))),
        Mistake("difference", "The union is A | B; A ^ B leaves out what both have.",
                _similarity(ratio=lambda x, y: len(x & y) / max(1, len(x ^ y)))),
        Mistake("words", "You compare sets of single words; a shingle is n words in a row.",
                _similarity(pieces=_word_list)),
        Mistake("characters", "Your shingles are n characters; here they are n words.",
                _similarity(pieces=lambda text, n: [text[i : i + n] for i in range(max(1, len(text) - n + 1))])),
        Mistake("last", "The last shingle is missing: a text of m words has m − n + 1 of them.",
                _similarity(pieces=_one_lost)),
        Mistake("tails", "Your last shingles are shorter than n words; stop at m − n + 1.",
                _similarity(pieces=_too_many)),
        Mistake("apart", "Your shingles do not overlap; each word but the last n − 1 begins one.",
                _similarity(pieces=_apart)),
        Mistake("case", "Capital letters make a difference; lower-case the text first.", _similarity(lower=False)),
        Mistake("multiset", "You count a shingle each time it occurs; sets have it once.", _counted),
    ),
    hints=(
        "Make a set of tuples out of each text, then two set operations are enough.",
        "The shingle that begins at word i is tuple(words[i : i + n]). Slices end by themselves where a text is short.",
        "words = text.lower().split()\nreturn {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}",
    ),
)  # fmt: skip


# --- MinHash ----------------------------------------------------------------------------------------

PRIME = 2**31 - 1


def signature(shingles: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Least hash under each function, by Python's own integers."""
    return np.array([min((int(i) * int(x) + int(j)) % PRIME for x in shingles) for i, j in zip(a, b, strict=True)])


def _hashed(
    least: Callable[[np.ndarray], np.ndarray] = lambda table: table.min(axis=0), shift: bool = True, prime: int = PRIME
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    def made(shingles: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        table = shingles[:, None].astype(np.int64) * a + shift * b  # (shingles, functions)
        return least(table % prime if prime else table)

    return made


def _first_function(shingles: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.full(len(a), ((shingles * a[0] + b[0]) % PRIME).min())


def _hash_of_least(shingles: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (shingles.min() * a + b) % PRIME


def _narrow(shingles: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        table = shingles.astype(np.int32)[:, None] * a.astype(np.int32) + b.astype(np.int32)
    return (table % PRIME).min(axis=0).astype(np.int64)


def _minhash_cases(rng: np.random.Generator) -> list[Case]:
    def family(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(2**20, PRIME, count), rng.integers(2**20, PRIME, count)

    small = rng.integers(0, PRIME, 6)
    return [
        Case((rng.integers(2**16, PRIME, 9), *family(4)), note="nine shingles, four functions"),
        Case((rng.integers(2**16, PRIME, 5), *family(8)), note="five shingles, eight functions"),
        Case((np.concatenate([small, small[:3]]), *family(6)), note="a shingle that occurs twice"),
    ]


MINHASH = Exercise(
    id="text.minhash",
    points=3,
    title="A MinHash signature",
    cases=_minhash_cases,
    reference=signature,
    mistakes=(
        Mistake("max", "You take the largest hash; by symmetry that would work as well, but the signature is the "
                "least.", _hashed(lambda table: table.max(axis=0))),
        Mistake("axis", "You take the least over the functions, one number for each shingle; it is the other axis: "
                "one number for each function.", _hashed(lambda table: table.min(axis=1))),
        Mistake("argmin", "argmin says where the least hash stands, and that depends on the order of the shingles; "
                "take min.", _hashed(lambda table: table.argmin(axis=0))),
        Mistake("mean", "A mean mixes all shingles, so one changed shingle changes everything; take the least.",
                _hashed(lambda table: table.mean(axis=0))),
        Mistake("total", "One number is left; each function has its own least hash.",
                _hashed(lambda table: table.min())),
        Mistake("no-b", "The shift b is missing in (a·x + b) mod p.", _hashed(shift=False)),
        Mistake("no-modulo", "Without mod p the order of a·x + b is the order of x: every function picks the same "
                "shingle.", _hashed(prime=0)),
        Mistake("power", "You divide by 2^31; p is the prime 2^31 − 1.", _hashed(prime=2**31)),
        Mistake("one-function", "Every entry comes from the first function; use a[i] and b[i].", _first_function),
        Mistake("inside", "You look for the least shingle first and hash it; hash all, then look for the least.",
                _hash_of_least),
        Mistake("overflow", "The products do not fit into 32 bits; compute in int64.", _narrow),
    ),
    hints=(
        "A table with a row for each shingle and a column for each function holds all hashes.",
        "shingles[:, None] * a + b broadcasts to (shingles, functions).",
        "hashes = (shingles[:, None] * a + b) % PRIME  # (shingles, functions)\nreturn hashes....",
    ),
)  # fmt: skip


# --- bands ------------------------------------------------------------------------------------------


def candidate_pairs(signatures: np.ndarray, bands: int, rows: int) -> set[tuple[int, int]]:
    """Brute force: every pair, every band."""
    parts = np.asarray(signatures)[:, : bands * rows].reshape(len(signatures), bands, rows)
    pairs = combinations(range(len(parts)), 2)
    return {(i, j) for i, j in pairs if (parts[i] == parts[j]).all(axis=1).any()}


def _paired(how: str) -> Callable[[np.ndarray, int, int], Any]:
    def pairs(signatures: np.ndarray, bands: int, rows: int) -> Any:
        found, n = set(), len(signatures)
        parts = signatures[:, : bands * rows].reshape(n, bands, rows)
        if how == "strided":
            parts = signatures[:, : bands * rows].reshape(n, rows, bands).transpose(0, 2, 1)
        same = parts[:, None] == parts[None]  # (n, n, bands, rows)
        if how == "any-row":
            meets = same.any(axis=3).any(axis=2)
        elif how == "all-bands":
            meets = same.all(axis=3).all(axis=2)
        elif how == "first-band":
            meets = same[:, :, 0].all(axis=2)
        elif how == "windows":
            windows = [signatures[:, k : k + rows] for k in range(bands * rows - rows + 1)]
            meets = np.any([(w[:, None] == w[None]).all(axis=2) for w in windows], axis=0)
        elif how == "one-table":  # the key of a bucket lacks the band
            keys = [{tuple(band) for band in document.tolist()} for document in parts]
            meets = np.array([[bool(x & y) for y in keys] for x in keys])
        elif how == "sums":
            sums = parts.sum(axis=2)
            meets = (sums[:, None] == sums[None]).any(axis=2)
        else:
            meets = same.all(axis=3).any(axis=2)
        for i in range(n):
            for j in range(n):
                if meets[i, j] and (i < j or (how == "both-ways" and i != j) or (how == "self" and i == j)):
                    found.add((i, j))
        if how == "neighbors":  # only the one before in a bucket
            found = set()
            for band in range(bands):
                last: dict[tuple, int] = {}
                for i, key in enumerate(map(tuple, parts[:, band].tolist())):
                    if key in last:
                        found.add((last[key], i))
                    last[key] = i
        return sorted(found) if how == "list" else {i for pair in found for i in pair} if how == "flat" else found

    return pairs


def _band_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for bands, rows in ((3, 2), (2, 3), (4, 2)):
        # Documents that share exactly what tells one mistake from another.
        base = rng.permutation(10_000)[: 10 * bands * rows].reshape(10, bands * rows)
        base[1, :rows] = base[0, :rows]  # the first band
        base[2] = base[0]  # all bands: with 0 and 1 a bucket of three
        base[4, -rows:] = base[3, -rows:]  # the last band only
        base[5, -rows:] = base[3, -rows:]
        base[6, 0] = base[3, 0]  # one row, no band
        base[7, rows : 2 * rows] = base[6, :rows]  # the same numbers in another band
        base[8, 1 : rows + 1] = base[6, 1 : rows + 1]  # a run of rows across two bands
        base[9, :rows] = base[7, :rows][::-1]  # the same sum in the same band
        strided = np.arange(0, bands * rows, bands)[:rows]
        base[8, strided] = base[9, strided]
        order = rng.permutation(10)
        cases.append(Case((base[order], bands, rows), note=f"{bands} bands of {rows} rows"))
    return cases


BANDS = Exercise(
    id="text.bands",
    points=3,
    title="Candidate pairs by bands",
    cases=_band_cases,
    reference=candidate_pairs,
    mistakes=(
        Mistake("any-row", "One equal row is enough for you; all rows of a band must agree.", _paired("any-row")),
        Mistake("all-bands", "You ask for all bands; one band in common makes a candidate.", _paired("all-bands")),
        Mistake("first-band", "You look at the first band only.", _paired("first-band")),
        Mistake("strided", "Your bands are made of every b-th row; band k holds the rows from k·r to k·r + r − 1.",
                _paired("strided")),
        Mistake("windows", "Your bands overlap: k steps by 1, not by r.", _paired("windows")),
        Mistake("one-table", "Numbers of one band meet those of another; the band belongs into the key, or each band "
                "has a table of its own.", _paired("one-table")),
        Mistake("sums", "The sum of a band is not its content: other numbers, or another order, can have the same "
                "sum. Use the tuple.", _paired("sums")),
        Mistake("neighbors", "In a bucket of three you find two pairs; each document pairs with all that came before.",
                _paired("neighbors")),
        Mistake("both-ways", "Each pair is there twice, as (i, j) and (j, i); keep i < j.", _paired("both-ways")),
        Mistake("self", "A document is paired with itself.", _paired("self")),
        Mistake("list", "The pairs are right, but in a list; a set holds a pair once, however many bands it shares.",
                _paired("list")),
        Mistake("flat", "These are documents; wanted are pairs of documents.", _paired("flat")),
    ),
    hints=(
        "For each band, a dictionary from the band's numbers to the documents that have them.",
        "The key is tuple(signature[k * rows : (k + 1) * rows]); start a new dictionary for each k.",
        "for k in range(bands):\n    buckets = defaultdict(list)\n    for i, signature in enumerate(signatures.tolist()):\n"
        "        key = ...\n        pairs.update((j, i) for j in buckets[key])\n        ...",
    ),
)  # fmt: skip


# --- decontamination --------------------------------------------------------------------------------


def leaked(document: str, items: list[str], n: int) -> list[int]:
    """Numbers of the test items that share n words in a row with the document, by searching in strings."""
    plain = [" " + " ".join(re.findall(r"\w+", text.lower())) + " " for text in (document, *items)]
    found = []
    for number, item in enumerate(plain[1:]):
        words = item.split()
        runs = [" " + " ".join(words[i : i + n]) + " " for i in range(len(words) - n + 1)]
        if any(run in plain[0] for run in runs):
            found.append(number)
    return found


def _leak(
    off: int = 0,
    words: Callable[[str], list[str]] = lambda text: re.findall(r"\w+", text.lower()),
    how: str = "",
) -> Callable[[str, list[str], int], Any]:
    def grams(text: str, n: int, step: int = 1) -> set[tuple]:
        w = words(text)
        if how == "bag":
            return {tuple(sorted(w[i : i + n])) for i in range(len(w) - n + 1)}
        return {tuple(w[i : i + n]) for i in range(0, len(w) - n + 1, step)}

    def find(document: str, items: list[str], n: int) -> Any:
        n += off
        known = grams(document, n)
        if how == "all":
            return [i for i, item in enumerate(items) if grams(item, n) and grams(item, n) <= known]
        if how == "first":
            return [i for i, item in enumerate(items) if tuple(words(item)[:n]) in known]
        if how == "step":
            return [i for i, item in enumerate(items) if grams(item, n, step=n) & known]
        if how == "scattered":
            return [i for i, item in enumerate(items) if len(set(words(item)) & set(words(document))) >= n]
        if how == "short":
            return [i for i, item in enumerate(items) if {tuple(words(item)[i : i + n]) for i in
                    range(max(1, len(words(item)) - n + 1))} & {g for k in range(1, n + 1)
                    for g in grams(document, k)}]  # fmt: skip
        found = [i for i, item in enumerate(items) if grams(item, n) & known]
        return {"flag": bool(found), "texts": [items[i] for i in found], "kept": sorted(set(range(len(items))) - set(found)),
                }.get(how, found)  # fmt: skip

    return find


def _leak_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for n in (4, 5, 6):
        filler = iter(rng.permutation([f"{a}{b}" for a in sorted(set(WORDS)) for b in "xyzuvw"]).tolist())

        def some(count: int, filler: Any = filler) -> list[str]:
            return [next(filler) for _ in range(count)]

        inside, start, later, run, short = some(n), some(n), some(n), some(n - 1), some(2)
        mixed, scattered, exact, marked = some(n), some(n), some(n + 1), some(n)
        items = [
            " ".join([*some(1), *inside, *some(2)]),  # leaked in its middle, not at a multiple of n
            " ".join([*start, *some(3)]),  # leaked at its beginning
            " ".join([*some(2), *run, *some(2)]),  # one word too few
            " ".join(some(n + 2)),  # clean
            " ".join([*mixed[::-1], *some(1)]),  # the same words in reverse
            " ".join(word for pair in zip(scattered, some(n), strict=True) for word in pair),  # far apart
            " ".join(exact),  # wholly inside
            " ".join([*some(n), *later, *some(1)]),  # leaked, but not at its beginning
            " ".join(short),  # shorter than n
            " ".join([*marked[:2], marked[2] + "!", *marked[3:]]),
        ]
        order = rng.permutation(len(items)).tolist()
        marked_there = [marked[0] + ",", *marked[1:]]
        parts = [
            inside,
            later,
            [word.capitalize() for word in start],
            run,
            mixed,
            scattered,
            exact,
            short,
            marked_there,
        ]
        text: list[str] = []
        for k in rng.permutation(len(parts)).tolist():
            text += [*parts[k], *some(1)]
        cases.append(Case((" ".join(text), [items[k] for k in order], n), note=f"{n} words in a row"))
    return cases


LEAKED = Exercise(
    id="text.leaked",
    points=3,
    title="Is the test in the training text?",
    cases=_leak_cases,
    reference=leaked,
    mistakes=(
        Mistake("case", "A capital letter hides a leak; compare in lower case.",
                _leak(words=lambda text: re.findall(r"\w+", text))),
        Mistake("punctuation", "A comma hides a leak; compare words without punctuation: re.findall(r\"\\w+\", ...).",
                _leak(words=lambda text: text.lower().split())),
        Mistake("raw", "Capitals and punctuation hide leaks; compare lower-case words without punctuation.",
                _leak(words=str.split)),
        Mistake("n-1", "A run of n − 1 words is enough for you; it takes n.", _leak(off=-1)),
        Mistake("n+1", "You ask for n + 1 words in a row; n are enough.", _leak(off=1)),
        Mistake("all", "You ask that the whole item be in the document; one run of n words is enough.",
                _leak(how="all")),
        Mistake("first", "You look for the beginning of an item only; the run can stand anywhere in it.",
                _leak(how="first")),
        Mistake("step", "Your runs do not overlap; one begins at every word.", _leak(how="step")),
        Mistake("bag", "Your runs forget the order of their words (a set or a sorted list); keep it, as a tuple.",
                _leak(how="bag")),
        Mistake("scattered", "You count words in common anywhere; they must stand in a row in both.",
                _leak(how="scattered")),
        Mistake("short", "An item of fewer than n words is reported; it says too little to call it a leak.",
                _leak(how="short")),
        Mistake("flag", "This says whether anything leaked; wanted are the numbers of the items.", _leak(how="flag")),
        Mistake("texts", "These are the items; wanted are their numbers.", _leak(how="texts")),
        Mistake("kept", "These are the items that did not leak.", _leak(how="kept")),
    ),
    hints=(
        "Reduce both texts to lists of lower-case words first. Then it is the shingles of exercise 2 again.",
        "A set of the document's runs, and for each item: is any of its runs in the set?",
        'words = re.findall(r"\\w+", text.lower())\nruns = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}',
    ),
)  # fmt: skip


# --- WordPiece --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _model(vocabulary: frozenset[str]) -> Any:
    """The library's model; building one takes longer than cutting a thousand words."""
    from tokenizers.models import WordPiece

    return WordPiece({piece: number for number, piece in enumerate(sorted(vocabulary | {"[UNK]"}))}, unk_token="[UNK]")


def wordpiece(word: str, vocabulary: set[str]) -> list[str]:
    """The pieces of a word, by the ``tokenizers`` library."""
    return [piece.value for piece in _model(frozenset(vocabulary)).tokenize(word)]


def _cut(
    longest: bool = True,
    mark: str = "##",
    always: bool = False,
    backwards: bool = False,
    part: str = "",
    limit: int = 99,
) -> Callable[[str, set[str]], Any]:
    def cut(word: str, vocabulary: set[str]) -> Any:
        pieces: list[str] = []
        if backwards:
            stop = len(word)
            while stop:
                start = next((s for s in range(stop) if ("##" if s else "") + word[s:stop] in vocabulary), None)
                if start is None:
                    return ["[UNK]"]
                pieces.insert(0, ("##" if start else "") + word[start:stop])
                stop = start
            return pieces
        start = 0
        while start < len(word):
            ends = range(min(len(word), start + limit), start, -1) if longest else range(start + 1, len(word) + 1)
            lead = "##" if start or always else ""
            end = next((e for e in ends if (lead if mark else "") + word[start:e] in vocabulary), None)
            if end is None:
                if part == "rest":
                    return [*pieces, "[UNK]"]
                if part == "raises":
                    raise KeyError(word[start:])
                if part == "stop":
                    return pieces
                if part == "skip":
                    pieces.append("[UNK]")
                    start += 1
                    continue
                return ["[UNK]"]
            pieces.append(lead + word[start:end])
            start = end
        if part == "bare":
            return [piece.removeprefix("##") for piece in pieces]
        if part == "joined":
            return " ".join(pieces)
        return pieces

    return cut


def _wordpiece_cases(rng: np.random.Generator) -> list[Case]:
    letters = rng.permutation(list("abcdefghijklmnopqrstuvwxyz")).tolist()
    p, q, r, s, t, u, v, x, y, z = letters[:10]
    # The beginnings of words and their continuations differ, and so do the longest and the shortest match.
    vocabulary = {p, p + q, p + q + r, q, r, q + r, s, t + u, r + s, v, s + t + u}
    vocabulary |= {f"##{piece}" for piece in (q, s, t, u, v, q + r, t + u, s + t, u + v, v + t, r + s + t + u + v)}
    words = {
        p + q + r + s + t + u + v: "the longest piece first",
        p + q + s + t + v + t: "pieces inside the word carry the mark",
        p + x + s: "a letter that the vocabulary has nowhere: the whole word is unknown",
        p + q + r + y: "the end does not fit",
        p + q + r: "the word itself is in the vocabulary",
        z + p: "the beginning does not fit",
        p + q + r + s + t + u + v + q + s + t + u + v: "a long word",
    }
    return [Case((word, set(vocabulary)), note=note) for word, note in words.items()]


WORDPIECE = Exercise(
    id="text.wordpiece",
    points=3,
    title="WordPiece by longest match",
    cases=_wordpiece_cases,
    reference=wordpiece,
    also_right=(_cut(),),
    mistakes=(
        Mistake("shortest", "You take the shortest piece that fits; take the longest.", _cut(longest=False)),
        Mistake("no-mark", "You look for inner pieces without their mark; inside a word, the vocabulary has \"##...\".",
                _cut(mark="")),
        Mistake("bare", "The marks are missing in the result; without them nobody knows where a word begins.",
                _cut(part="bare")),
        Mistake("always", "The first piece of a word carries no mark.", _cut(always=True)),
        Mistake("backwards", "You cut from the end; WordPiece starts at the beginning, and the pieces differ.",
                _cut(backwards=True)),
        Mistake("rest", "Where a piece does not fit, the whole word becomes one [UNK]; you keep the pieces before it.",
                _cut(part="rest")),
        Mistake("skip", "You put [UNK] for one letter and go on; one misfit makes the whole word unknown.",
                _cut(part="skip")),
        Mistake("stop", "Where no piece fits you drop the rest without a word; the result is [\"[UNK]\"].",
                _cut(part="stop")),
        Mistake("raises", "A word that cannot be cut is no error: the result is [\"[UNK]\"].", _cut(part="raises")),
        Mistake("two", "Your pieces have two letters at most; start with the whole rest of the word.", _cut(limit=2)),
        Mistake("joined", "This is one string; wanted is a list of pieces.", _cut(part="joined")),
    ),
    hints=(
        "Two nested loops: where a piece begins, and where it ends, from the end of the word downwards.",
        "piece = word[start:end], with \"##\" before it if start > 0. Found: append it and go on at end.",
        "for end in range(len(word), start, -1):\n    piece = ...\n    if piece in vocabulary:\n        break\nelse:\n"
        "    return [\"[UNK]\"]",
    ),
)  # fmt: skip


# --- packing ----------------------------------------------------------------------------------------


def pack(documents: list[list[int]], length: int, end: int) -> list[list[int]]:
    """All tokens in one stream with ``end`` behind each document, reshaped."""
    stream = np.array([token for document in documents for token in (*document, end)])
    full = len(stream) // length
    blocks: list[list[int]] = stream[: full * length].reshape(full, length).tolist()
    return blocks


def _packed(how: str) -> Callable[[list[list[int]], int, int], Any]:
    def packed(documents: list[list[int]], length: int, end: int) -> Any:
        if how == "no-end":
            stream = [t for d in documents for t in d]
        elif how == "between":
            stream = [t for d in documents for t in (*d, end)][:-1]
        elif how == "before":
            stream = [t for d in documents for t in (end, *d)]
        elif how == "sorted":
            stream = [t for d in sorted(documents, key=len) for t in (*d, end)]
        else:
            stream = [t for d in documents for t in (*d, end)]
        blocks = [stream[i : i + length] for i in range(0, len(stream), length)]
        if how == "overlap":
            return [stream[i : i + length] for i in range(0, len(stream) - length + 1, length - 1)]
        if how == "alone":
            return [p for d in documents for i in range(0, len(d) + 1, length)
                    if len(p := [*d, end][i : i + length]) == length]  # fmt: skip
        if how == "cut":
            return [(d + [end] * length)[:length] for d in documents]
        if how == "padded":
            return [block + [end] * (length - len(block)) for block in blocks]
        if how == "lost":
            return blocks[:-1][: max(0, len(stream) // length - 1)]
        if how == "flat":
            return stream[: len(stream) // length * length]
        if how == "rest":
            return blocks
        return [block for block in blocks if len(block) == length]

    return packed


def _pack_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for length, count, short in ((6, 6, 3), (4, 5, 1), (5, 8, 2)):
        documents = [rng.integers(10, 99, rng.integers(2, 12)).tolist() for _ in range(count)]
        documents[0] = rng.integers(10, 99, length + 3).tolist()
        documents[1] = rng.integers(10, 99, 2).tolist()
        tokens = sum(map(len, documents)) + count
        documents[-1] += rng.integers(10, 99, (short - tokens) % length).tolist()
        cases.append(Case((documents, length, 1), note=f"blocks of {length}, {short} tokens left over"))
    exact = [rng.integers(10, 99, size).tolist() for size in (5, 2, 6)]  # with the ends 16 tokens
    return [*cases, Case((exact, 4, 0), note="nothing left over")]


PACK = Exercise(
    id="text.pack",
    points=2,
    title="Pack documents into blocks",
    cases=_pack_cases,
    reference=pack,
    mistakes=(
        Mistake("no-end", "The end token is missing: the model could not tell where a document ends.",
                _packed("no-end")),
        Mistake("between", "The last document has no end token; each has one.", _packed("between")),
        Mistake("before", "The end token stands before each document; it belongs behind it.", _packed("before")),
        Mistake("alone", "Each document begins a block of its own, and what does not fill one is thrown away; let a "
                "block run on into the next document.", _packed("alone")),
        Mistake("cut", "Each document becomes one block, cut or filled up; packing wastes nothing.", _packed("cut")),
        Mistake("padded", "You fill up the last block; the rest is dropped.", _packed("padded")),
        Mistake("rest", "The last block is shorter than the others; drop it.", _packed("rest")),
        Mistake("lost", "The last full block is missing.", _packed("lost")),
        Mistake("overlap", "Your blocks overlap by one token; each token goes into one block.", _packed("overlap")),
        Mistake("sorted", "You change the order of the documents.", _packed("sorted")),
        Mistake("flat", "This is the stream; cut it into lists of length tokens.", _packed("flat")),
    ),
    hints=(
        "First one long list, then slices of it.",
        "How many full blocks are in it? len(stream) // length.",
        "stream = []\nfor document in documents:\n    stream += ...\nfull = len(stream) // length\nreturn [stream[...] for i in range(full)]",
    ),
)  # fmt: skip

EXERCISES = (CLEAN, JACCARD, MINHASH, BANDS, LEAKED, WORDPIECE, PACK)
