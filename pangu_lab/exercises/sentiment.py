"""Exercises of lab 07: fair averages, an interval by resampling, class weights, augmentation, calibration.

References come from an independent truth: scikit-learn's metrics and weights, scipy's softmax. What draws
at random (the bootstrap, the two augmentations) is judged by what must hold of it, since many draws are right.
"""

import random
from collections import Counter
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.metrics import precision_recall_fscore_support
from sklearn.utils.class_weight import compute_class_weight

from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake
from pangu_lab.exercises.sentiment_mistakes import (
    best_accuracy,
    binning,
    boot,
    by_support,
    by_value,
    deletion,
    drop,
    f1_of_means,
    fixed_number,
    infinite_weights,
    integer_division,
    inverse,
    joined,
    likelihood,
    mean_of_classes,
    micro,
    multiplying,
    neighbors,
    not_applied,
    of_the_mean,
    on_probabilities,
    on_test,
    outer_classes,
    overwrite,
    plain_softmax,
    present_classes,
    present_weights,
    python_deletion,
    raising_weights,
    recalls_resampled,
    restored_deletion,
    rows_gold,
    seeded_globally,
    shared,
    shared_numpy,
    shuffled,
    sorted_ranks,
    summed,
    swapping,
    validation_loss,
    weights,
    worst,
)

# --- macro averages ---------------------------------------------------------------------------------


def macro_scores(table: np.ndarray) -> tuple[float, float, float]:
    """Macro precision, recall and F1: the table unfolded into rows, then scikit-learn."""
    classes = len(table)
    gold, predicted = np.divmod(np.repeat(np.arange(classes**2), table.ravel()), classes)
    scores = precision_recall_fscore_support(gold, predicted, labels=range(classes), average="macro", zero_division=0)
    return float(scores[0]), float(scores[1]), float(scores[2])


def _table(rng: np.random.Generator, classes: int) -> np.ndarray:
    """Counts in which classes differ in size, and gold totals from predicted ones."""
    while True:
        table = rng.integers(1, 9, (classes, classes)) + np.diag(rng.permutation(classes) * 12 + 5)
        table[0] *= 3
        sums = [*table.sum(axis=0).tolist(), *table.sum(axis=1).tolist()]
        if len(set(sums)) == 2 * classes:
            return table


def _macro_cases(rng: np.random.Generator) -> list[Case]:
    never_said, never_there = _table(rng, 3), _table(rng, 4)
    never_said[:, 1] = 0
    never_there[2] = 0
    return [
        Case((_table(rng, 3),), note="three classes of different sizes"),
        Case((never_said,), note="the model never says class 1"),
        Case((never_there,), note="no row is of class 2"),
        Case((np.array([[7, 0, 2], [0, 0, 0], [1, 0, 9]]),), note="class 1 neither there nor said"),
    ]


MACRO = Exercise(
    id="sentiment.macro_scores",
    points=2,
    title="Macro averages",
    cases=_macro_cases,
    reference=macro_scores,
    also_right=(mean_of_classes(),),
    mistakes=(
        Mistake("micro", "This is the micro average: hits of all classes over all rows, three times the accuracy. "
                "Macro means each class by itself first, then the plain mean.", micro),
        Mistake("swapped", "Precision and recall are swapped: precision divides by the column's sum (what the model "
                "said), recall by the row's (what is there).", mean_of_classes(order=(1, 0, 2))),
        Mistake("nan", "An empty class gives 0/0, which is nan here, and one nan spoils the mean; count it as 0.",
                mean_of_classes(np.nan)),
        Mistake("raises", "A class that nobody said or that is not there makes you divide by zero; its score is 0.",
                mean_of_classes(None)),
        Mistake("by-support", "You weight the classes by their rows; then a rare class hardly counts, and that is what "
                "the macro average is against. Take the plain mean.", by_support),
        Mistake("present", "A class without a row is left out of your mean; it counts with 0, like every class.",
                present_classes),
        Mistake("f1-of-means", "Your F1 is made of the two means; macro F1 is the mean of the classes' F1.",
                f1_of_means),
        Mistake("outer", "You average the first and the last class only; all of them count.", outer_classes),
    ),
    hints=(
        "Score each class as if it were the only one that matters, then take three plain means.",
        "np.diag(table) are the hits, table.sum(axis=0) what was said, table.sum(axis=1) what is there.",
        "np.divide(hits, said, out=np.zeros(len(table)), where=said > 0) divides without an accident;\n"
        "F1 of a class is 2 * hits / (said + there).",
    ),
)  # fmt: skip


# --- the bootstrap ----------------------------------------------------------------------------------


def bootstrap_interval(
    gold: np.ndarray, predicted: np.ndarray, resamples: int, seed: int
) -> tuple[float, float, np.ndarray]:
    """The percentile interval of macro recall over resampled rows, and the score of each resample."""
    rows = np.random.default_rng(seed).integers(0, len(gold), (resamples, len(gold)))
    cells = (3 * gold + predicted)[rows] + 9 * np.arange(resamples)[:, None]
    tables = np.bincount(cells.ravel(), minlength=9 * resamples).reshape(resamples, 3, 3)
    scores = (tables.diagonal(axis1=1, axis2=2) / np.maximum(tables.sum(axis=2), 1)).mean(axis=1)
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high), scores


def what_the_bootstrap_does(student: Any, case: Case) -> dict[str, Any]:
    """Drive: where the ends stand among the scores, and whether the scores spread as those of resampled rows do."""
    gold, predicted, resamples, seed, other = case.args
    shares = np.bincount(3 * gold + predicted, minlength=9) / len(gold)
    tables = np.random.default_rng(7).multinomial(len(gold), shares, size=300).reshape(300, 3, 3)
    expected = (tables.diagonal(axis1=1, axis2=2) / np.maximum(tables.sum(axis=2), 1)).mean(axis=1)

    def place(value: float, scores: np.ndarray) -> str:
        below = 160 * float((scores < value - 1e-12).mean())
        for name, border in (
            ("the very first ones", 2.2), ("2.5 %", 6.0), ("5 %", 12.0), ("before the middle", 48.0),
            ("the middle", 112.0), ("after the middle", 148.0), ("95 %", 153.8), ("97.5 %", 158.2),
        ):  # fmt: skip
            if below < border:
                return name
        return "the very last ones"

    def compared(value: float, borders: tuple[float, float], names: tuple[str, str, str]) -> str:
        return names[int(value > borders[0]) + int(value > borders[1])]

    state = np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()
    low, high, scores = student(gold, predicted, resamples, seed)
    untouched = (np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()) == state
    again, seeded = student(gold, predicted, 20, seed), student(gold, predicted, 20, other)
    scores = np.asarray(scores, dtype=float)
    spread, off = scores.std() / expected.std(), (scores.mean() - expected.mean()) / expected.std()
    return {
        "scores": len(scores),
        "scores lie": compared(off, (-1.0, 1.0), ("too low", "around the data's own", "too high")),
        "scores differ": "not at all" if spread < 0.05
        else compared(spread, (0.7, 1.4), ("too little", "as resampled rows do", "too much")),
        "different scores": "a handful" if len(set(scores.round(9).tolist())) <= 12 else "many",
        "low stands at": place(low, scores),
        "high stands at": place(high, scores),
        "low is below high": bool(low < high),
        "same seed, same interval": tuple(again[:2]) == tuple(student(gold, predicted, 20, seed)[:2]),
        "another seed, another interval": tuple(again[:2]) != tuple(seeded[:2]),
        "the global generators are untouched": untouched,
    }  # fmt: skip


def _bootstrap_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for count, note in ((60, "60 rows"), (90, "90 rows"), (75, "75 rows")):
        # Many distinct scores, and classes that are not equally easy.
        sizes = (count // 4, count // 3, count - count // 4 - count // 3)
        gold = rng.permutation(np.repeat([0, 1, 2], sizes))
        hit = rng.random(count) < np.array([0.9, 0.55, 0.3])[gold]
        predicted = np.where(hit, gold, (gold + rng.integers(1, 3, count)) % 3)
        seed, other = rng.choice(2**31, size=2, replace=False).tolist()
        cases.append(Case((gold, predicted, 160, seed, other), note=note))
    return cases


BOOTSTRAP = Exercise(
    id="sentiment.bootstrap_interval",
    points=3,
    title="An interval by resampling rows",
    cases=_bootstrap_cases,
    reference=bootstrap_interval,
    drive=what_the_bootstrap_does,
    also_right=(boot(), sorted_ranks),
    mistakes=(
        Mistake("classes", "You draw classes, not rows: three classes can come in ten combinations, and that says "
                "nothing about the luck of the tweets. Draw row numbers.", recalls_resampled),
        Mistake("no-replacement", "You draw without replacement: every resample is the same rows in another order, and "
                "its score the same. A row may come twice, another not at all.",
                boot(lambda own, count, n: own.permuted(np.tile(np.arange(n), (count, 1)), axis=1))),
        Mistake("small", "Your resamples are much smaller than the data, and a smaller set spreads more. Draw as many "
                "rows as there are.", boot(lambda own, count, n: own.integers(0, n, (count, n // 4)))),
        Mistake("pulled-apart", "You draw rows for gold and other rows for predicted; then a model is scored on answers "
                "to other tweets. Draw once, use the same rows for both.", boot(apart=True)),
        Mistake("ninety", "5 and 95 leave a tenth outside: this is a 90 % interval. 95 % needs 2.5 and 97.5.",
                boot(ends=(0.05, 0.95))),
        Mistake("fractions", "np.percentile wants percent, 2.5 and 97.5; with 0.025 and 0.975 both ends are at the very "
                "bottom. np.quantile wants 0.025 and 0.975.", boot(ends=(0.00025, 0.00975))),
        Mistake("sides", "The ends are on the wrong sides: low first.", boot(ends=(0.975, 0.025))),
        Mistake("range", "You take the smallest and the largest score of all; one odd resample decides then. Cut off "
                "2.5 % on each side.", boot(ends=(0.0, 1.0))),
        Mistake("of-the-mean", "You divide the spread by the root of the number of resamples: this interval shrinks to "
                "nothing the longer you compute. The spread of the scores itself is what you want.", of_the_mean),
        Mistake("fixed-seed", "Every seed gives the same interval; pass seed to the generator.",
                boot(seeded=lambda seed: np.random.default_rng(0))),
        Mistake("no-seed", "You never use the seed: each call gives another interval.",
                boot(seeded=lambda seed: np.random.default_rng())),
        Mistake("global", "You seed the generator that everyone shares; make your own: np.random.default_rng(seed).",
                boot(seeded=shared_numpy)),
    ),
    hints=(
        "A resample is a list of row numbers. How many, from where to where, and may one come twice?",
        "rows = generator.integers(0, n, n) draws with replacement; gold[rows] and predicted[rows] belong together.",
        "scores = []\nfor _ in range(resamples):\n    rows = ...\n    scores.append(macro_recall(gold[rows], ...))\n"
        "low, high = np.quantile(scores, [...])",
    ),
)  # fmt: skip


# --- class weights ----------------------------------------------------------------------------------


def class_weights(labels: list[int], classes: int) -> np.ndarray:
    """rows / (classes * count), by scikit-learn; it knows only classes that occur."""
    present = np.unique(labels)
    weights = np.zeros(classes)
    # Scikit-learn divides by the number of classes that it sees.
    weights[present] = compute_class_weight("balanced", classes=present, y=labels) * len(present) / classes
    return weights


def _weight_cases(rng: np.random.Generator) -> list[Case]:
    def case(sizes: list[int], note: str) -> Case:
        labels = np.repeat(np.arange(len(sizes)), sizes)
        return Case((rng.permutation(labels).tolist(), len(sizes)), note=note)

    small = int(rng.integers(3, 7))
    return [
        case([small, int(rng.integers(25, 40)), int(rng.integers(12, 20))], "three classes, the first is rare"),
        case([int(rng.integers(14, 22)), small, int(rng.integers(8, 13)), int(rng.integers(30, 40))], "four classes"),
        case([int(rng.integers(11, 19)), 0, int(rng.integers(4, 9))], "no row of class 1"),
    ]


WEIGHTS = Exercise(
    id="sentiment.class_weights",
    points=2,
    title="Weights for rare classes",
    cases=_weight_cases,
    reference=class_weights,
    mistakes=(
        Mistake("proportional", "Your weights grow with the class: the frequent one counts even more. Divide by the "
                "count.", weights(lambda n, counts, classes: classes * counts / n)),
        Mistake("not-normalized", "1 / count has the right proportions, but the weights are tiny, and with them the "
                "loss and the learning rate's effect. Multiply by rows / classes, so that a row weighs 1 on average.",
                weights(lambda n, counts, classes: inverse(1, counts, 1))),
        Mistake("no-classes", "The division by the number of classes is missing: a row weighs more than 1 on average.",
                weights(lambda n, counts, classes: inverse(n, counts, 1))),
        Mistake("sum-one", "Your weights add up to 1; what must be 1 is the mean weight of a row.",
                weights(lambda n, counts, classes: inverse(1, counts, 1) / inverse(1, counts, 1).sum())),
        Mistake("mean-one", "The mean over the classes is 1, but the mean over the rows is not: divide rows / classes "
                "by the count.",
                weights(lambda n, counts, classes: inverse(1, counts, 1) / inverse(1, counts, 1).mean())),
        Mistake("one-minus", "1 - share hardly differs between classes; a class with a tenth of the rows needs ten "
                "times the weight.", weights(lambda n, counts, classes: 1 - counts / n)),
        Mistake("root", "You take a square root; then a rare class still counts less in total. That is a choice some "
                "make, but balanced weights are asked for.",
                weights(lambda n, counts, classes: np.sqrt(inverse(n, counts, classes)))),
        Mistake("largest", "You divide by the largest class; then its rows weigh 1 and the loss as a whole grows.",
                weights(lambda n, counts, classes: inverse(float(counts.max()), counts, 1))),
        Mistake("whole", "// cuts the weights down to whole numbers; divide with /.", integer_division),
        Mistake("infinite", "A class without a row gets an infinite weight; give it 0.",
                infinite_weights),
        Mistake("raises", "A class without a row makes you divide by zero; its weight is 0.", raising_weights),
        Mistake("present", "There is one weight a class, also for a class without a row; np.bincount with minlength "
                "counts it as 0.", present_weights),
    ),
    hints=(
        "Half the rows of an average class: what weight makes it count as much as an average one?",
        "np.bincount(labels, minlength=classes) counts; the weight is rows / (classes * count).",
        "weights = np.zeros(classes)\nweights[counts > 0] = len(labels) / (classes * ...)",
    ),
)  # fmt: skip


# --- augmentation -----------------------------------------------------------------------------------


def random_deletion(words: list[str], probability: float, seed: int) -> list[str]:
    """Each word goes on its own draw; one stays in any case."""
    own = np.random.default_rng(seed)
    kept = [word for word, chance in zip(words, own.random(len(words)), strict=True) if chance >= probability]
    return kept or [words[int(own.integers(len(words)))]]


def what_deletion_does(student: Any, case: Case) -> dict[str, Any]:
    """Drive: what holds of many draws."""
    words, probability, seed = case.args
    places = {word: i for i, word in enumerate(words)}
    state = np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()
    first, again = student(list(words), probability, seed), student(list(words), probability, seed)
    untouched = (np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()) == state
    drawn = [student(list(words), probability, seed + i) for i in range(1, 13)]
    share = 1 - sum(map(len, drawn)) / (12 * len(words))
    copies = [len(student(["very"] * 40, 0.5, seed + i)) for i in range(4)]
    short = [student(["never", "ever", "again", "not"], 1.0, seed + i) for i in range(12)]
    order = [[places.get(word, -1) for word in kept] for kept in drawn if not isinstance(kept, str)]
    return {
        "kind": type(first).__name__,
        "words are the text's own": all(place >= 0 for row in order for place in row),
        "order is kept": all(row == sorted(row) for row in order),
        "share deleted": "the probability" if abs(share - probability) < 0.12 else
        "one minus it" if abs(share - 1 + probability) < 0.12 else "nothing" if share <= 0 else "another one",
        "number deleted": ("always the same", "all or hardly any", "varies")[min(2, len(set(map(len, drawn))) - 1)],
        "equal words go one by one": any(0 < count < 40 and count != 1 for count in copies),
        "of four words, all deleted, are left": sorted({min(len(kept), 2) for kept in short}),
        "the word that stays": "now one, now the other" if len({tuple(k) for k in short if len(k) == 1}) > 1
        else "always the same",
        "same seed, same text": first == again,
        "seeds differ": len({tuple(kept) for kept in drawn}) > 1,
        "the global generators are untouched": untouched,
    }  # fmt: skip


_WORDS = """
i waited two whole hours for that bus and of course it drove straight past me in pouring rain so thank you dear
city transport never felt more loved honestly maybe tomorrow they will send smoke instead
"""


def _text(rng: np.random.Generator, count: int) -> list[str]:
    words = _WORDS.split()
    return [words[i] for i in rng.permutation(len(words))[:count]]


def _deletion_cases(rng: np.random.Generator) -> list[Case]:
    return [
        Case((_text(rng, 24), 0.2, int(rng.integers(1, 2**20))), note="one word in five goes"),
        Case((_text(rng, 30), 0.35, int(rng.integers(1, 2**20))), note="one in three"),
        Case((_text(rng, 20), 0.8, int(rng.integers(1, 2**20))), note="four in five"),
    ]


DELETION = Exercise(
    id="sentiment.random_deletion",
    points=2,
    title="Augmentation: random deletion",
    cases=_deletion_cases,
    reference=random_deletion,
    drive=what_deletion_does,
    also_right=(deletion(), python_deletion, restored_deletion),
    mistakes=(
        Mistake("empty", "Nothing may be left of a short text; a row without words teaches nothing. If all words go, "
                "keep one.", deletion(last=lambda words, own: [])),
        Mistake("whole-text", "If all words go you return the whole text; keep one word, drawn at random.",
                deletion(last=lambda words, own: list(words))),
        Mistake("first-word", "If all words go you always keep the same one; draw it.",
                deletion(last=lambda words, own: words[:1])),
        Mistake("inverted", "You keep a word with this probability; it is the probability of deletion.",
                deletion(lambda words, chances, p: [w for w, c in zip(words, chances, strict=True) if c < p])),
        Mistake("by-value", "Equal words go together: you delete by the word, not by its place. Draw for each place.",
                deletion(by_value)),
        Mistake("fixed-number", "You always delete the same number of words; each word is drawn for itself, so the "
                "number varies.", deletion(fixed_number)),
        Mistake("one-draw", "One draw decides for all words; draw once for each word.",
                deletion(lambda words, chances, p: list(words) if chances[0] >= p else [])),
        Mistake("order", "The words are out of order; a set forgets it. Go through the words from left to right.",
                deletion(lambda words, chances, p: sorted(
                    w for w, c in zip(words, chances, strict=True) if c >= p))),
        Mistake("joined", "The result is a list of words, not one string.", joined),
        Mistake("fixed-seed", "Every seed deletes the same words; pass seed to the generator.",
                deletion(generator=lambda seed: np.random.default_rng(0))),
        Mistake("no-seed", "You never use the seed: each call deletes other words.",
                deletion(generator=lambda seed: np.random.default_rng())),
        Mistake("global", "You seed the generator that everyone shares; make your own: np.random.default_rng(seed).",
                deletion(generator=seeded_globally)),
    ),
    hints=(
        "One draw a word. What is left when all draws say delete?",
        "generator.random(len(words)) gives a number from 0 to 1 for each word; it stays if that is >= probability.",
        "kept = [word for word, draw in zip(words, generator.random(len(words))) if ...]\n"
        "return kept or [words[generator.integers(...)]]",
    ),
)  # fmt: skip


def random_swap(words: list[str], swaps: int, seed: int) -> list[str]:
    """Two different places exchange their words, ``swaps`` times."""
    own, places = np.random.default_rng(seed), list(range(len(words)))
    for _ in range(swaps if len(words) > 1 else 0):
        i, j = own.choice(len(words), 2, replace=False)
        places[i], places[j] = places[j], places[i]
    return [words[place] for place in places]


def what_swapping_does(student: Any, case: Case) -> dict[str, Any]:
    """Drive: what holds of many draws."""
    words, swaps, seed = case.args
    state = np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()
    first, again = student(list(words), swaps, seed), student(list(words), swaps, seed)
    untouched = (np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()) == state
    counted = Counter(words)
    drawn = [student(list(words), swaps, seed + i) for i in range(1, 9)]
    single = [student(list("abcd"), 1, seed + i) for i in range(24)]
    moved = [tuple(i for i in range(4) if row[i : i + 1] != ["abcd"[i]]) for row in single]
    pairs = {places for places in moved if len(places) == 2}
    try:
        alone = student(["alone"], 2, seed)
    except (ValueError, IndexError) as error:
        alone = type(error).__name__
    return {
        "kind": type(first).__name__,
        "each word once, as before": all(Counter(row) == counted for row in drawn),
        "places changed by one swap": sorted({len(places) for places in moved}),
        "swaps beyond one count": any(sum(a != b for a, b in zip(row, words, strict=False)) > 2 for row in drawn),
        "pairs of places": "all"
        if len(pairs) > 3
        else "never the last"
        if all(3 not in pair for pair in pairs)
        else "neighbors"
        if all(j - i == 1 for i, j in pairs)
        else "few",
        "a text of one word": alone,
        "same seed, same text": first == again,
        "seeds differ": len({tuple(row) for row in drawn}) > 1,
        "the global generators are untouched": untouched,
    }


def _swap_cases(rng: np.random.Generator) -> list[Case]:
    return [
        Case((_text(rng, 12), 3, int(rng.integers(1, 2**20))), note="three swaps"),
        Case((_text(rng, 20), 5, int(rng.integers(1, 2**20))), note="five swaps"),
        Case((_text(rng, 8), 2, int(rng.integers(1, 2**20))), note="two swaps"),
    ]


SWAP = Exercise(
    id="sentiment.random_swap",
    points=2,
    title="Augmentation: random swap",
    cases=_swap_cases,
    reference=random_swap,
    drive=what_swapping_does,
    also_right=(swapping(),),
    mistakes=(
        Mistake("overwrites", "A word is doubled and another one lost: words[i] = words[j] forgets what stood at i. "
                "Exchange both at once: words[i], words[j] = words[j], words[i].", swapping(exchange=overwrite)),
        Mistake("drops", "Words get lost; a swap moves them and deletes none.", swapping(exchange=drop)),
        Mistake("same-place", "Sometimes you draw the same place twice, and nothing moves; draw two different places.",
                swapping(lambda own, n: (own.randrange(n), own.randrange(n)))),
        Mistake("neighbors", "You only exchange neighbors; any two places may be drawn.", swapping(neighbors)),
        Mistake("last-place", "The last word never moves: the border of randrange or integers is not included.",
                swapping(lambda own, n: own.sample(range(max(2, n - 1)), 2))),
        Mistake("once", "You swap once; swaps says how many times.", swapping(times=lambda swaps: 1)),
        Mistake("shuffled", "You shuffle the whole text; only as many pairs as swaps says change places.", shuffled),
        Mistake("one-word", "A text of one word has no two places to draw; give it back as it is.",
                swapping(guard=False)),
        Mistake("joined", "The result is a list of words, not one string.",
                lambda words, swaps, seed: " ".join(swapping()(words, swaps, seed))),
        Mistake("fixed-seed", "Every seed swaps the same places; pass seed to the generator.",
                swapping(seeded=lambda seed: random.Random(0))),
        Mistake("no-seed", "You never use the seed: each call swaps other places.",
                swapping(seeded=lambda seed: random.Random())),
        Mistake("global", "You seed the generator that everyone shares; make your own.", swapping(seeded=shared)),
    ),
    hints=(
        "Two places, different ones, exchange what stands there. What about a text with a single word?",
        "generator.choice(len(words), 2, replace=False) draws two different places.",
        "words = list(words)\nfor _ in range(swaps):\n    i, j = ...\n    words[i], words[j] = ...",
    ),
)  # fmt: skip


# --- temperature ------------------------------------------------------------------------------------


def with_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(z / T), by scipy."""
    return softmax(logits / temperature, axis=-1)


def _temperature_cases(rng: np.random.Generator) -> list[Case]:
    return [
        Case((rng.normal(0, 2, (4, 3)), 2.0), note="T above 1: less sure"),
        Case((rng.normal(0, 1, (3, 4)), 0.5), note="T below 1: surer"),
        Case((rng.normal(0, 2, (3, 5)), float(rng.uniform(1.3, 3))), note="five classes"),
        Case((rng.normal(0, 2, (3, 3)) + 9000, 1.25), note="logits near 9000: e to the 709 is the last number"),
    ]


TEMPERATURE = Exercise(
    id="sentiment.with_temperature",
    points=2,
    title="Probabilities under a temperature",
    cases=_temperature_cases,
    reference=with_temperature,
    mistakes=(
        Mistake("multiplied", "You multiply by the temperature: a T above 1 then makes the model surer. Divide.",
                lambda z, t: softmax(z * t, axis=-1)),
        Mistake("on-probabilities", "You divide the probabilities by T and take the softmax again, which is nearly "
                "uniform. The temperature divides the logits, before the one softmax.",
                lambda z, t: softmax(softmax(z, axis=-1) / t, axis=-1)),
        Mistake("rescaled", "You divide the probabilities by T and bring the sum back to 1: nothing has changed. The "
                "temperature divides the logits.", lambda z, t: softmax(z, axis=-1)),
        Mistake("sum", "The result is divided by T after the softmax, so rows do not add up to 1.",
                lambda z, t: softmax(z, axis=-1) / t),
        Mistake("overflow", "e to the 7200 is infinite; subtract each row's maximum before np.exp.",
                lambda z, t: plain_softmax(z / t)),
        Mistake("columns", "The sum runs over the wrong axis: each row adds up to 1.",
                lambda z, t: softmax(z / t, axis=0)),
        Mistake("whole-table", "You normalize the whole table at once; each row adds up to 1.",
                lambda z, t: softmax(z / t)),
        Mistake("logs", "These are log-probabilities; take their exponential.",
                lambda z, t: log_softmax(z / t, axis=-1)),
    ),
    hints=(
        "Only one thing is new beside the softmax: what is divided by T, and when?",
        "z = logits / temperature, then the softmax of each row, with its maximum subtracted first.",
        "z = logits / temperature\nz = np.exp(z - z.max(axis=-1, keepdims=True))\nreturn z / ...",
    ),
)  # fmt: skip


def calibrate(
    validation: np.ndarray, validation_gold: list[int], test: np.ndarray, test_gold: list[int], grid: list[float]
) -> tuple[float, float]:
    """The grid's temperature of the lowest validation loss, and the test loss under it."""
    temperature = min(grid, key=lambda t: _nll(validation / t, validation_gold))
    return float(temperature), _nll(test / temperature, test_gold)


def _nll(logits: np.ndarray, gold: list[int]) -> float:
    return float(-log_softmax(logits, axis=-1)[np.arange(len(gold)), gold].mean())


def _calibrate_cases(rng: np.random.Generator) -> list[Case]:
    grid = [0.9, 0.4, 0.6, 1.3, 2.0, 3.0, 4.5]

    def rows(count: int, scale: float) -> tuple[np.ndarray, list[int]]:
        honest = rng.normal(0, 1.6, (count, 3))
        gold = (honest + rng.gumbel(size=honest.shape)).argmax(axis=1)  # a draw from the softmax
        return scale * honest, gold.tolist()

    cases = []
    for first, second, note in (
        (3.2, 1.0, "far too sure on validation, less so on test"),
        (0.6, 1.5, "not sure enough on validation"),
        (2.0, 4.4, "too sure"),
    ):
        while True:
            case = (*rows(40, first), *rows(30, second), grid)
            right = calibrate(*case)
            if all(other(*case)[0] != right[0] for other in (on_test, multiplying, on_probabilities,
                                                             best_accuracy, worst)):  # fmt: skip
                break
        cases.append(Case(case, note=note))
    return cases


CALIBRATE = Exercise(
    id="sentiment.calibrate",
    points=2,
    title="Fitting the temperature",
    cases=_calibrate_cases,
    reference=calibrate,
    mistakes=(
        Mistake("on-test", "You choose the temperature on the test rows: the test loss is then no measurement any more, "
                "but the best of seven tries. Choose on validation.", on_test),
        Mistake("multiplied", "You multiply by the temperature; divide the logits.", multiplying),
        Mistake("on-probabilities", "You divide probabilities by the temperature and take a second softmax; divide the "
                "logits.", on_probabilities),
        Mistake("accuracy", "You choose by accuracy, but no temperature changes which label is highest, so all are "
                "equal and the first one wins. Choose by the loss.", best_accuracy),
        Mistake("worst", "This is the temperature with the highest loss; the lowest is wanted.", worst),
        Mistake("not-applied", "The temperature is right, but the test loss is measured without it.", not_applied),
        Mistake("validation-loss", "The second number is the loss on validation, on which you chose; report the test's.",
                validation_loss),
        Mistake("sum", "The loss is the mean over the rows, not the sum.", summed),
        Mistake("sign", "The loss is minus the mean log-probability, a positive number.", likelihood),
    ),
    hints=(
        "Which rows may choose, and which only measure?",
        "Write a small function for the loss: the mean of -log p of the gold label, under a temperature.",
        "def loss(logits, gold, t):\n    p = with_temperature(logits, t)\n"
        "    return -np.log(p[np.arange(len(gold)), gold]).mean()\nbest = min(grid, key=lambda t: ...)",
    ),
)  # fmt: skip


# --- reliability ------------------------------------------------------------------------------------


def reliability_bins(probabilities: np.ndarray, gold: list[int], bins: int) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, rows) of each bin that has rows, by numpy's histogram."""
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == np.asarray(gold)).astype(float)
    edges = np.linspace(0, 1, bins + 1)  # numpy's last bin includes its right edge
    counts = np.histogram(confidence, edges)[0]
    sure = np.histogram(confidence, edges, weights=confidence)[0]
    hits = np.histogram(confidence, edges, weights=right)[0]
    return [(float(s / n), float(h / n), int(n)) for s, h, n in zip(sure, hits, counts, strict=True) if n]


def _reliability_cases(rng: np.random.Generator) -> list[Case]:
    def case(rows: int, classes: int, bins: int, sharp: float, note: str) -> Case:
        while True:
            probabilities = softmax(rng.normal(0, sharp, (rows, classes)), axis=1)
            edge = np.abs(probabilities * bins - np.round(probabilities * bins)).min()
            places = {int(value * bins) for value in probabilities.max(axis=1)}
            # No value near an edge, several bins filled, and one below the highest left empty: which side is a
            # matter of taste, and an empty bin must be met.
            if edge > 1e-6 and len(places) >= 3 and min(places) > 0:
                break
        gold = [int(row.argmax()) if rng.random() < 0.6 else int(rng.integers(classes)) for row in probabilities]
        return Case((probabilities, gold, bins), note=note)

    certain = case(14, 3, 5, 2.0, "one row with probability 1: it belongs to the last bin")
    certain.args[0][4] = np.eye(3)[2]
    return [
        case(24, 3, 5, 1.5, "three classes, five bins, the lowest of them empty"),
        certain,
        case(30, 4, 10, 1.5, "four classes, ten bins"),
    ]


RELIABILITY = Exercise(
    id="sentiment.reliability_bins",
    points=3,
    title="The bins of a reliability diagram",
    cases=_reliability_cases,
    reference=reliability_bins,
    compare=Compare(rtol=1e-5, atol=1e-7),
    mistakes=(
        Mistake("one-class", "You bin by the probability of the last class; confidence is the highest of a row's "
                "probabilities, whichever class has it.", binning(lambda p, gold: p[:, -1])),
        Mistake("of-gold", "You bin by the probability of the gold label; the model does not know it. Confidence is the "
                "highest probability of the row.", binning(rows_gold)),
        Mistake("swapped", "Confidence and accuracy are swapped: confidence first, the mean highest probability.",
                binning(order=(1, 0, 2))),
        Mistake("mixed", "Your accuracy is the mean probability of the gold label; it is the share of rows whose "
                "highest class is the gold one.", binning(hit=rows_gold)),
        Mistake("gold-is-last", "Your accuracy is the share of rows of the last class; a row is right when its highest "
                "class is its gold label.", binning(hit=lambda p, gold: gold == p.shape[1] - 1)),
        Mistake("middle", "You take the middle of the bin for the confidence; take the mean of the rows in it.",
                binning(middle=True)),
        Mistake("raises", "A probability of exactly 1 falls beyond the last bin; it belongs into the last one.",
                binning(last="raises")),
        Mistake("lost", "A probability of exactly 1 gets lost; it belongs into the last bin.", binning(last="out")),
        Mistake("nan", "An empty bin gives nan; leave bins without rows out.", binning(empty="nan")),
        Mistake("zeros", "Leave bins without rows out; zeros would be drawn as a measurement.",
                binning(empty="zeros")),
        Mistake("equal-counts", "Your bins hold equally many rows; here they have equal widths, 1 / bins each.",
                binning(equal=True)),
        Mistake("shares", "The third value is the number of rows, not their share.", binning(share=True)),
    ),
    hints=(
        "Two numbers a row: how sure (the highest probability), and right or not. Then group the rows.",
        "place = np.minimum((confidence * bins).astype(int), bins - 1); a row with probability 1 stays in.",
        "for number in range(bins):\n    members = place == number\n    if members.any():\n"
        "        found.append((float(confidence[members].mean()), ..., int(members.sum())))",
    ),
)  # fmt: skip

EXERCISES = (MACRO, BOOTSTRAP, WEIGHTS, DELETION, SWAP, TEMPERATURE, CALIBRATE, RELIABILITY)
