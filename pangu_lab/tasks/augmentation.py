"""Easy data augmentation (Wei and Zou 2019): new training texts by small random edits of old ones.

``augment`` first. All four edits work on a list of words and draw from a generator that the caller seeds.
Nothing here looks at meaning: an edit can turn a label around, and lab 07 measures how often.
"""

import random
from collections.abc import Callable, Sequence

from pangu_lab.data.text_tasks import Rows
from pangu_lab.errors import PanguLabError

METHODS = ("deletion", "swap", "insertion", "synonym")

# Everyday words that can mostly stand for one another. A small table of this course; "mostly" is the catch.
SYNONYMS = (
    ("good", "fine", "decent", "nice"),
    ("great", "excellent", "superb", "terrific", "wonderful", "amazing"),
    ("bad", "poor", "lousy"),
    ("terrible", "awful", "dreadful", "horrible"),
    ("happy", "glad", "pleased", "delighted"),
    ("sad", "unhappy", "miserable", "gloomy"),
    ("angry", "furious", "mad", "cross"),
    ("love", "adore", "enjoy"),
    ("hate", "detest", "loathe"),
    ("like", "fancy"),
    ("funny", "amusing", "hilarious"),
    ("boring", "dull", "tedious"),
    ("tired", "weary", "exhausted"),
    ("big", "large", "huge"),
    ("small", "little", "tiny"),
    ("fast", "quick", "rapid"),
    ("slow", "sluggish"),
    ("new", "fresh", "recent"),
    ("old", "ancient", "aged"),
    ("beautiful", "lovely", "gorgeous", "pretty"),
    ("ugly", "hideous"),
    ("easy", "simple"),
    ("hard", "difficult", "tough"),
    ("strange", "odd", "weird"),
    ("important", "major", "key"),
    ("cheap", "inexpensive"),
    ("expensive", "costly", "pricey"),
    ("clever", "smart", "bright"),
    ("stupid", "silly", "foolish"),
    ("free", "available"),
    ("full", "packed"),
    ("late", "overdue"),
    ("ready", "prepared"),
    ("sure", "certain"),
    ("wrong", "mistaken"),
    ("right", "correct"),
    ("really", "truly", "very"),
    ("again", "once more"),
    ("maybe", "perhaps", "possibly"),
    ("always", "forever"),
    ("often", "frequently"),
    ("soon", "shortly"),
    ("now", "currently"),
    ("today", "this day"),
    ("start", "begin", "open"),
    ("stop", "end", "finish", "quit"),
    ("win", "triumph"),
    ("lose", "fail"),
    ("lost", "missed"),
    ("say", "state", "claim"),
    ("says", "states", "claims"),
    ("said", "stated", "claimed"),
    ("see", "watch", "view"),
    ("look", "seem", "appear"),
    ("think", "believe", "reckon"),
    ("want", "wish"),
    ("need", "require"),
    ("help", "assist", "support"),
    ("buy", "purchase"),
    ("get", "receive", "obtain"),
    ("make", "create", "build"),
    ("show", "display", "present"),
    ("wait", "hold on"),
    ("work", "labor", "job"),
    ("talk", "speak", "chat"),
    ("choose", "pick", "select"),
    ("fix", "repair", "mend"),
    ("break", "smash"),
    ("broken", "smashed", "busted"),
    ("people", "folks"),
    ("friend", "mate", "pal"),
    ("kids", "children"),
    ("house", "home"),
    ("car", "vehicle"),
    ("phone", "mobile"),
    ("film", "movie", "picture"),
    ("game", "match"),
    ("song", "track", "tune"),
    ("crowd", "throng"),
    ("trip", "journey"),
    ("money", "cash"),
    ("problem", "issue", "trouble"),
    ("idea", "thought"),
    ("gift", "present"),
    ("story", "tale"),
    ("food", "meal"),
    ("rain", "drizzle"),
)

_OTHERS: dict[str, list[str]] = {}
for _group in SYNONYMS:
    for _word in _group:
        if " " not in _word:
            _OTHERS.setdefault(_word, []).extend(other for other in _group if other != _word)


class AugmentationError(PanguLabError):
    """No such edit, or a strength that is none."""


def synonyms(word: str) -> list[str]:
    """The words of the table that may stand for ``word``, whose case and punctuation do not matter."""
    return list(_OTHERS.get(_core(word)[1].lower(), ()))


def random_deletion(words: Sequence[str], probability: float, generator: random.Random) -> list[str]:
    """Delete each word with a probability of its own draw; if all go, one of them, drawn at random, stays."""
    kept = [word for word in words if generator.random() >= probability]
    return kept or ([generator.choice(words)] if words else [])


def random_swap(words: Sequence[str], swaps: int, generator: random.Random) -> list[str]:
    """Exchange the words at two different positions, ``swaps`` times; fewer than two words stay as they are."""
    swapped = list(words)
    for _ in range(swaps if len(swapped) > 1 else 0):
        i, j = generator.sample(range(len(swapped)), 2)
        swapped[i], swapped[j] = swapped[j], swapped[i]
    return swapped


def random_insertion(words: Sequence[str], insertions: int, generator: random.Random) -> list[str]:
    """Put a synonym of a random word at a random place, ``insertions`` times; words without synonyms do not count."""
    longer = list(words)
    for _ in range(insertions):
        known = [word for word in longer if synonyms(word)]
        if not known:
            break
        longer.insert(generator.randint(0, len(longer)), generator.choice(synonyms(generator.choice(known))))
    return longer


def synonym_replacement(words: Sequence[str], replacements: int, generator: random.Random) -> list[str]:
    """Replace that many words, or all that the table knows if they are fewer; case and punctuation are kept."""
    replaced = list(words)
    known = [i for i, word in enumerate(words) if synonyms(word)]
    for i in generator.sample(known, min(replacements, len(known))):
        before, core, after = _core(words[i])
        other = generator.choice(synonyms(core))
        if core.isupper() and len(core) > 1:
            other = other.upper()
        elif core[0].isupper():
            other = other.capitalize()
        replaced[i] = before + other + after
    return replaced


def augment(text: str, method: str, strength: float = 0.1, seed: int = 0) -> str:
    """``text`` after one of ``METHODS``; the same for the same seed.

    ``strength`` is the paper's alpha: the probability of a deletion, and else the share of words that are
    edited, at least one.

    Raises
    ------
    AugmentationError
        The method is unknown, or the strength is not from 0 to 1.

    Examples
    --------
    >>> augment("not a good day", "synonym", seed=1)
    'not a nice day'
    """
    if method not in METHODS:
        raise AugmentationError(f"{method!r} is not an augmentation; they are {', '.join(METHODS)}")
    if not 0 <= strength <= 1:
        raise AugmentationError(f"the strength is {strength:g}; it must be from 0 to 1")
    generator, words = random.Random(seed), text.split()
    if method == "deletion":
        return " ".join(random_deletion(words, strength, generator))
    edits: dict[str, Callable[[Sequence[str], int, random.Random], list[str]]] = {
        "swap": random_swap,
        "insertion": random_insertion,
        "synonym": synonym_replacement,
    }
    return " ".join(edits[method](words, max(1, round(strength * len(words))), generator))


def augmented(rows: Rows, copies: int, methods: Sequence[str] = METHODS, strength: float = 0.1, seed: int = 0) -> Rows:
    """The rows and ``copies`` edited versions of each, under the label of the original, whatever the edit did to it.

    Methods take turns. A version that equals its original is left out.
    """
    texts, labels = list(rows.texts), list(rows.labels)
    generator = random.Random(seed)
    for copy in range(copies):
        for i, (text, label) in enumerate(zip(rows.texts, rows.labels, strict=True)):
            edited = augment(text, methods[(i + copy) % len(methods)], strength, generator.getrandbits(32))
            if edited != text:
                texts.append(edited)
                labels.append(label)
    return Rows(tuple(texts), tuple(labels))


def _core(word: str) -> tuple[str, str, str]:
    """What stands before the letters of a word, the letters, what stands after."""
    letters = [i for i, character in enumerate(word) if character.isalnum()]
    # A mention or a hashtag is a name, not a word of the language.
    if not letters or word[0] in "@#":
        return word, "", ""
    return word[: letters[0]], word[letters[0] : letters[-1] + 1], word[letters[-1] + 1 :]
