"""Exercises of lab 07: fair averages, an interval by resampling, class weights, augmentation, calibration.

References come from an independent truth: scikit-learn's metrics and weights, scipy's softmax. What draws
at random (the bootstrap, the two augmentations) is judged by what must hold of it, since many draws are right.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.metrics import precision_recall_fscore_support
from sklearn.utils.class_weight import compute_class_weight

from pangu_lab.exercises.calling import preserved_random_state
from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake

# --- macro averages ---------------------------------------------------------------------------------


def macro_scores(table: np.ndarray) -> tuple[float, float, float]:
    """Macro precision, recall and F1: the table unfolded into rows, then scikit-learn."""
    classes = len(table)
    gold, predicted = np.divmod(np.repeat(np.arange(classes**2), table.ravel()), classes)
    scores = precision_recall_fscore_support(gold, predicted, labels=range(classes), average="macro", zero_division=0)
    return float(scores[0]), float(scores[1]), float(scores[2])


def _each_class(table: np.ndarray, empty: float | None = 0.0) -> np.ndarray:
    """Precision, recall and F1 of each class, (3, classes); ``empty`` is what 0/0 gives, None lets it raise."""

    def ratio(a: float, b: float) -> float:
        return float(a) / float(b) if b or empty is None else empty

    scores = []
    for label in range(len(table)):
        hits, said, there = int(table[label, label]), int(table[:, label].sum()), int(table[label].sum())
        scores.append((ratio(hits, said), ratio(hits, there), ratio(2 * hits, said + there)))
    return np.array(scores).T


def _mean_of_classes(empty: float | None = 0.0, order: tuple[int, int, int] = (0, 1, 2)) -> Any:
    def scores(table: np.ndarray) -> tuple[float, ...]:
        means = _each_class(table, empty).mean(axis=1)
        return tuple(float(means[i]) for i in order)

    return scores


_macro_by_hand = _mean_of_classes()


def _micro(table: np.ndarray) -> tuple[float, float, float]:
    accuracy = float(np.trace(table) / table.sum())
    return accuracy, accuracy, accuracy


def _by_support(table: np.ndarray) -> tuple[float, ...]:
    return tuple((_each_class(table) @ (table.sum(axis=1) / table.sum())).tolist())


def _present_classes(table: np.ndarray) -> tuple[float, ...]:
    present = table.sum(axis=1) > 0
    return tuple(_each_class(table)[:, present].mean(axis=1).tolist())


def _f1_of_means(table: np.ndarray) -> tuple[float, float, float]:
    precision, recall, _ = _each_class(table).mean(axis=1).tolist()
    return precision, recall, 2 * precision * recall / (precision + recall)


def _outer_classes(table: np.ndarray) -> tuple[float, ...]:
    return tuple(_each_class(table)[:, [0, -1]].mean(axis=1).tolist())


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
        Case((_table(rng, 5),), note="five classes"),
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
    also_right=(_macro_by_hand,),
    mistakes=(
        Mistake("micro", "This is the micro average: hits of all classes over all rows, three times the accuracy. "
                "Macro means each class by itself first, then the plain mean.", _micro),
        Mistake("swapped", "Precision and recall are swapped: precision divides by the column's sum (what the model "
                "said), recall by the row's (what is there).", _mean_of_classes(order=(1, 0, 2))),
        Mistake("nan", "An empty class gives 0/0, which is nan here, and one nan spoils the mean; count it as 0.",
                _mean_of_classes(np.nan)),
        Mistake("raises", "A class that nobody said or that is not there makes you divide by zero; its score is 0.",
                _mean_of_classes(None)),
        Mistake("by-support", "You weight the classes by their rows; then a rare class hardly counts, and that is what "
                "the macro average is against. Take the plain mean.", _by_support),
        Mistake("present", "A class without a row is left out of your mean; it counts with 0, like every class.",
                _present_classes),
        Mistake("f1-of-means", "Your F1 is made of the two means; macro F1 is the mean of the classes' F1.",
                _f1_of_means),
        Mistake("outer", "You average the first and the last class only; all of them count.", _outer_classes),
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
    gold: np.ndarray, predicted: np.ndarray, score: Callable[[np.ndarray, np.ndarray], float], resamples: int, seed: int
) -> tuple[float, float]:
    """The percentile interval over resampled rows."""
    own, n = np.random.default_rng(seed), len(gold)
    values = []
    for _ in range(resamples):
        rows = own.integers(0, n, n)
        values.append(score(gold[rows], predicted[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def what_the_bootstrap_does(student: Any, case: Case) -> dict[str, Any]:
    """Drive: the student's function gets a score that notes what it is asked, and the result is placed among that."""
    gold, predicted, resamples, seed, other = case.args
    pairs = np.bincount(3 * gold + predicted, minlength=9)
    tie_breaker = np.random.default_rng(5).random(len(gold))
    values, sizes, tables = [], [], []

    def score(g: Any, p: Any) -> float:
        g, p = np.asarray(g), np.asarray(p)
        table = np.bincount(3 * g + p, minlength=9)
        square = table.reshape(3, 3)
        # So small an addition changes no rank but those of equal scores.
        value = (square.diagonal() / np.maximum(square.sum(axis=1), 1)).mean()
        value = float(value + 1e-7 * tie_breaker[: len(p)] @ p[: len(tie_breaker)])
        values.append(value)
        sizes.append(len(g))
        tables.append(table)
        return value

    def place(value: float, smallest_first: list[float]) -> str:
        below = sum(other < value - 1e-12 for other in smallest_first) * 160 / len(smallest_first)
        for name, low, high in (
            ("the very first ones", -1, 2.2), ("2.5 %", 2.2, 6), ("5 %", 6, 12), ("before the middle", 12, 64),
            ("the middle", 64, 96), ("after the middle", 96, 148), ("95 %", 148, 153.7), ("97.5 %", 153.7, 158),
        ):  # fmt: skip
            if low <= below < high:
                return name
        return "the very last ones"

    state = np.random.get_state()[1].tolist(), random.getstate()
    low, high = student(gold, predicted, score, resamples, seed)
    untouched = (np.random.get_state()[1].tolist(), random.getstate()) == state
    # One look at the rows as they are is no resample.
    drawn = [i for i, table in enumerate(tables) if sizes[i] != len(gold) or not (table == pairs).all()]
    if len(values) == resamples + 1 and len(drawn) == resamples:
        values = [values[i] for i in drawn]
    same_rows = not drawn
    ordered = sorted(values)
    few = 25
    first, again = student(gold, predicted, score, few, seed), student(gold, predicted, score, few, seed)
    seeded = student(gold, predicted, score, few, other)
    rows = sizes[: len(values)]
    return {
        "resamples": len(values),
        "rows in a resample": "as many as there are" if set(rows) == {len(gold)} else
        "another number" if len(set(rows)) == 1 else "now more, now fewer",
        "gold and predicted of a row stay together": not any((table[pairs == 0] > 0).any() for table in tables),
        "resamples differ from the data": not same_rows,
        "low stands at": place(low, ordered) if values else "nothing",
        "high stands at": place(high, ordered) if values else "nothing",
        "same seed, same interval": tuple(first) == tuple(again),
        "another seed, another interval": tuple(first) != tuple(seeded),
        "the global generators are untouched": untouched,
    }  # fmt: skip


def _boot(
    draw: Any = None, ends: tuple[float, float] = (0.025, 0.975), seeded: Any = None, count: int | None = None
) -> Any:
    """A bootstrap with other row numbers, other percentiles, another generator or another number of resamples."""
    draw = draw or (lambda own, gold: own.integers(0, len(gold), len(gold)))

    def interval(gold: Any, predicted: Any, score: Any, resamples: int, seed: int) -> tuple[float, float]:
        own = seeded(seed) if seeded else np.random.default_rng(seed)
        values = []
        for _ in range(count or resamples):
            rows = draw(own, gold)
            values.append(score(gold[rows], predicted[rows]))
        low, high = np.quantile(values, ends)
        return float(low), float(high)

    return interval


def _rows_of_classes(own: np.random.Generator, gold: np.ndarray) -> np.ndarray:
    return np.concatenate([np.flatnonzero(gold == label) for label in own.integers(0, 3, 3)])


def _pulled_apart(gold: Any, predicted: Any, score: Any, resamples: int, seed: int) -> tuple[float, float]:
    own, n = np.random.default_rng(seed), len(gold)
    values = [score(gold[own.integers(0, n, n)], predicted[own.integers(0, n, n)]) for _ in range(resamples)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _standard_error_of_mean(gold: Any, predicted: Any, score: Any, resamples: int, seed: int) -> tuple[float, float]:
    own, n = np.random.default_rng(seed), len(gold)
    values = []
    for _ in range(resamples):
        rows = own.integers(0, n, n)
        values.append(score(gold[rows], predicted[rows]))
    half = 1.96 * np.std(values) / np.sqrt(resamples)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _sorted_ranks(gold: Any, predicted: Any, score: Any, resamples: int, seed: int) -> tuple[float, float]:
    own = random.Random(seed)
    values = []
    for _ in range(resamples):
        rows = own.choices(range(len(gold)), k=len(gold))
        values.append(score(gold[rows], predicted[rows]))
    values.sort()
    return values[int(0.025 * resamples)], values[int(0.975 * resamples)]


def _global_generator(seed: int) -> Any:
    np.random.seed(seed % 2**32)
    return _Legacy()


class _Legacy:
    """The shared generator of numpy, under the names of a new one."""

    integers = staticmethod(np.random.randint)


def _bootstrap_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for rows, note in ((70, "70 rows"), (110, "110 rows"), (90, "90 rows")):
        gold = np.concatenate([[0, 1, 2], rng.choice(3, rows - 3, p=[0.3, 0.4, 0.3])])
        # Nobody takes 0 for 2 or 2 for 0: such a pair shows that rows were pulled apart.
        moved = np.where(gold == 1, rng.choice([0, 2], rows), 1)
        predicted = np.where(rng.random(rows) < 0.65, gold, moved)
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
    also_right=(_sorted_ranks,),
    mistakes=(
        Mistake("classes", "You draw classes, not rows: three classes say nothing about the luck of the draw. Draw row "
                "numbers.", _boot(_rows_of_classes)),
        Mistake("no-replacement", "You draw without replacement: every resample is the same rows in another order, and "
                "its score the same. A row may come twice, another not at all.",
                _boot(lambda own, gold: own.permutation(len(gold)))),
        Mistake("half", "Your resamples are smaller than the data; the interval of a smaller set is wider. Draw as many "
                "rows as there are.", _boot(lambda own, gold: own.integers(0, len(gold), len(gold) // 2))),
        Mistake("pulled-apart", "You draw rows for gold and other rows for predicted; then a model is scored on answers "
                "to other tweets. Draw once, use the same rows for both.", _pulled_apart),
        Mistake("ninety", "5 and 95 leave a tenth outside: this is a 90 % interval. 95 % needs 2.5 and 97.5.",
                _boot(ends=(0.05, 0.95))),
        Mistake("fractions", "np.percentile wants percent, 2.5 and 97.5; with 0.025 and 0.975 both ends are at the very "
                "bottom. np.quantile wants 0.025 and 0.975.", _boot(ends=(0.00025, 0.00975))),
        Mistake("sides", "The ends are on the wrong sides: low first.", _boot(ends=(0.975, 0.025))),
        Mistake("range", "You take the smallest and the largest score of all; one odd resample decides then. Cut off "
                "2.5 % on each side.", _boot(ends=(0.0, 1.0))),
        Mistake("of-the-mean", "You divide the spread by the root of the number of resamples: this interval shrinks to "
                "nothing the longer you compute. The spread of the scores itself is what you want.",
                _standard_error_of_mean),
        Mistake("count", "resamples says how many times to draw.", _boot(count=80)),
        Mistake("fixed-seed", "Every seed gives the same interval; pass seed to the generator.",
                _boot(seeded=lambda seed: np.random.default_rng(0))),
        Mistake("no-seed", "You never use the seed: each call gives another interval.",
                _boot(seeded=lambda seed: np.random.default_rng())),
        Mistake("global", "You seed the generator that everyone shares; make your own: np.random.default_rng(seed).",
                _boot(seeded=_global_generator)),
    ),
    hints=(
        "A resample is a list of row numbers. How many, from where to where, and may one come twice?",
        "rows = generator.integers(0, n, n) draws with replacement; gold[rows] and predicted[rows] belong together.",
        "values = []\nfor _ in range(resamples):\n    rows = ...\n    values.append(score(gold[rows], ...))\n"
        "low, high = np.quantile(values, [...])",
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


def _weights(rule: Callable[[int, np.ndarray, int], Any]) -> Callable[[list[int], int], Any]:
    def weights(labels: list[int], classes: int) -> Any:
        return rule(len(labels), np.bincount(labels, minlength=classes), classes)

    return weights


def _inverse(n: float, counts: np.ndarray, classes: float) -> np.ndarray:
    return np.divide(n, classes * counts, out=np.zeros(len(counts)), where=counts > 0)


def _integer_division(labels: list[int], classes: int) -> np.ndarray:
    return np.array([len(labels) // (classes * c) if c else 0 for c in np.bincount(labels, minlength=classes)], float)


def _raising_weights(labels: list[int], classes: int) -> np.ndarray:
    return np.array([len(labels) / (classes * labels.count(label)) for label in range(classes)])


def _present_weights(labels: list[int], classes: int) -> np.ndarray:
    counts = np.unique(labels, return_counts=True)[1]
    return len(labels) / (classes * counts)


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
                "count.", _weights(lambda n, counts, classes: classes * counts / n)),
        Mistake("not-normalized", "1 / count has the right proportions, but the weights are tiny, and with them the "
                "loss and the learning rate's effect. Multiply by rows / classes, so that a row weighs 1 on average.",
                _weights(lambda n, counts, classes: _inverse(1, counts, 1))),
        Mistake("no-classes", "The division by the number of classes is missing: a row weighs more than 1 on average.",
                _weights(lambda n, counts, classes: _inverse(n, counts, 1))),
        Mistake("sum-one", "Your weights add up to 1; what must be 1 is the mean weight of a row.",
                _weights(lambda n, counts, classes: _inverse(1, counts, 1) / _inverse(1, counts, 1).sum())),
        Mistake("mean-one", "The mean over the classes is 1, but the mean over the rows is not: divide rows / classes "
                "by the count.",
                _weights(lambda n, counts, classes: _inverse(1, counts, 1) / _inverse(1, counts, 1).mean())),
        Mistake("one-minus", "1 - share hardly differs between classes; a class with a tenth of the rows needs ten "
                "times the weight.", _weights(lambda n, counts, classes: 1 - counts / n)),
        Mistake("root", "You take a square root; then a rare class still counts less in total. That is a choice some "
                "make, but balanced weights are asked for.",
                _weights(lambda n, counts, classes: np.sqrt(_inverse(n, counts, classes)))),
        Mistake("largest", "You divide by the largest class; then its rows weigh 1 and the loss as a whole grows.",
                _weights(lambda n, counts, classes: _inverse(float(counts.max()), counts, 1))),
        Mistake("whole", "// cuts the weights down to whole numbers; divide with /.", _integer_division),
        Mistake("infinite", "A class without a row gets an infinite weight; give it 0.",
                _weights(lambda n, counts, classes: n / (classes * counts))),
        Mistake("raises", "A class without a row makes you divide by zero; its weight is 0.", _raising_weights),
        Mistake("present", "There is one weight a class, also for a class without a row; np.bincount with minlength "
                "counts it as 0.", _present_weights),
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
    state = np.random.get_state()[1].tolist(), random.getstate()
    first, again = student(list(words), probability, seed), student(list(words), probability, seed)
    untouched = (np.random.get_state()[1].tolist(), random.getstate()) == state
    drawn = [student(list(words), probability, seed + i) for i in range(1, 25)]
    share = 1 - sum(map(len, drawn)) / (24 * len(words))
    copies = [len(student(["very"] * 40, 0.5, seed + i)) for i in range(4)]
    short = [student(["never", "again"], 0.97, seed + i) for i in range(25)]
    order = [[places.get(word, -1) for word in kept] for kept in drawn if not isinstance(kept, str)]
    return {
        "kind": type(first).__name__,
        "words are the text's own": all(place >= 0 for row in order for place in row),
        "order is kept": all(row == sorted(row) for row in order),
        "share deleted": "the probability" if abs(share - probability) < 0.1 else
        "one minus it" if abs(share - 1 + probability) < 0.1 else "nothing" if share <= 0 else "another one",
        "number deleted": "varies" if len({len(kept) for kept in drawn}) > 1 else "always the same",
        "equal words go one by one": any(0 < count < 40 and count != 1 for count in copies),
        "of two words, nearly all deleted, are left": sorted({min(len(kept), 2) for kept in short}),
        "the word that stays": "now one, now the other" if len({tuple(k) for k in short if len(k) == 1}) > 1
        else "always the same",
        "same seed, same text": first == again,
        "seeds differ": len({tuple(kept) for kept in drawn}) > 1,
        "the global generators are untouched": untouched,
    }  # fmt: skip


def _deletion(
    keep: Any = None, last: Any = None, generator: Any = np.random.default_rng
) -> Callable[[list[str], float, int], Any]:
    """Deletion with another rule of what is kept, another way out when all is gone, or another generator."""

    def delete(words: list[str], probability: float, seed: int) -> Any:
        own = generator(seed)
        chances = own.random(len(words))
        if keep:
            kept = keep(words, chances, probability)
        else:
            kept = [word for word, chance in zip(words, chances, strict=True) if chance >= probability]
        if kept or not words:
            return kept
        return last(words, own) if last else [words[int(own.random() * len(words))]]

    return delete


def _python_deletion(words: list[str], probability: float, seed: int) -> list[str]:
    own = random.Random(seed)
    kept = [word for word in words if own.random() > probability]
    return kept if kept else [own.choice(words)]


def _seeded_globally(seed: int) -> Any:
    np.random.seed(seed % 2**32)
    return np.random


def _restored_deletion(words: list[str], probability: float, seed: int) -> Any:
    with preserved_random_state():
        return _deletion(generator=_seeded_globally)(words, probability, seed)


def _by_value(words: list[str], chances: np.ndarray, probability: float) -> list[str]:
    gone = {word for word, chance in zip(words, chances, strict=True) if chance < probability}
    return [word for word in words if word not in gone]


def _fixed_number(words: list[str], chances: np.ndarray, probability: float) -> list[str]:
    gone = set(np.argsort(chances)[: round(probability * len(words))].tolist())
    return [word for i, word in enumerate(words) if i not in gone]


def _joined(words: list[str], probability: float, seed: int) -> str:
    return " ".join(random_deletion(words, probability, seed))


_WORDS = (
    "i waited two whole hours for that bus and of course it drove straight past me in pouring rain so thank you dear "
    "city transport never felt more loved honestly maybe tomorrow they will send smoke instead"
).split()


def _text(rng: np.random.Generator, count: int) -> list[str]:
    return [_WORDS[i] for i in rng.permutation(len(_WORDS))[:count]]


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
    also_right=(_python_deletion, _restored_deletion),
    mistakes=(
        Mistake("empty", "Nothing may be left of a short text; a row without words teaches nothing. If all words go, "
                "keep one.", _deletion(last=lambda words, own: [])),
        Mistake("whole-text", "If all words go you return the whole text; keep one word, drawn at random.",
                _deletion(last=lambda words, own: list(words))),
        Mistake("first-word", "If all words go you always keep the same one; draw it.",
                _deletion(last=lambda words, own: words[:1])),
        Mistake("inverted", "You keep a word with this probability; it is the probability of deletion.",
                _deletion(lambda words, chances, p: [w for w, c in zip(words, chances, strict=True) if c < p])),
        Mistake("by-value", "Equal words go together: you delete by the word, not by its place. Draw for each place.",
                _deletion(_by_value)),
        Mistake("fixed-number", "You always delete the same number of words; each word is drawn for itself, so the "
                "number varies.", _deletion(_fixed_number)),
        Mistake("one-draw", "One draw decides for all words; draw once for each word.",
                _deletion(lambda words, chances, p: list(words) if chances[0] >= p else [])),
        Mistake("order", "The words are out of order; a set forgets it. Go through the words from left to right.",
                _deletion(lambda words, chances, p: sorted(
                    w for w, c in zip(words, chances, strict=True) if c >= p))),
        Mistake("joined", "The result is a list of words, not one string.", _joined),
        Mistake("fixed-seed", "Every seed deletes the same words; pass seed to the generator.",
                _deletion(generator=lambda seed: np.random.default_rng(0))),
        Mistake("no-seed", "You never use the seed: each call deletes other words.",
                _deletion(generator=lambda seed: np.random.default_rng())),
        Mistake("global", "You seed the generator that everyone shares; make your own: np.random.default_rng(seed).",
                _deletion(generator=_seeded_globally)),
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
    state = np.random.get_state()[1].tolist(), random.getstate()
    first, again = student(list(words), swaps, seed), student(list(words), swaps, seed)
    untouched = (np.random.get_state()[1].tolist(), random.getstate()) == state
    counted = Counter(words)
    drawn = [student(list(words), swaps, seed + i) for i in range(1, 15)]
    single = [student(list("abcd"), 1, seed + i) for i in range(40)]
    moved = [tuple(i for i in range(4) if row[i : i + 1] != ["abcd"[i]]) for row in single]
    try:
        alone = student(["alone"], 2, seed)
    except (ValueError, IndexError) as error:
        alone = type(error).__name__
    return {
        "kind": type(first).__name__,
        "each word once, as before": all(Counter(row) == counted for row in drawn),
        "places changed by one swap": sorted({len(places) for places in moved}),
        "swaps beyond one count": any(sum(a != b for a, b in zip(row, words, strict=False)) > 2 for row in drawn),
        "pairs of places, of six": len({places for places in moved if len(places) == 2}) >= 5,
        "a text of one word": alone,
        "same seed, same text": first == again,
        "seeds differ": len({tuple(row) for row in drawn}) > 1,
        "the global generators are untouched": untouched,
    }


def _swapping(
    pick: Any = None, exchange: Any = None, times: Any = None, seeded: Any = random.Random, guard: bool = True
) -> Callable[[list[str], int, int], Any]:
    """Swapping with other places, another exchange, another number of swaps, or another generator."""
    pick = pick or (lambda own, n: own.sample(range(n), 2))

    def swap(words: list[str], swaps: int, seed: int) -> Any:
        own, words = seeded(seed), list(words)
        if guard and len(words) < 2:
            return words
        for _ in range(times(swaps) if times else swaps):
            i, j = pick(own, len(words))
            if exchange:
                exchange(words, i, j)
            else:
                words[i], words[j] = words[j], words[i]
        return words

    return swap


def _overwrite(words: list[str], i: int, j: int) -> None:
    words[i] = words[j]


def _drop(words: list[str], i: int, j: int) -> None:
    if len(words) > 2:
        del words[min(i, len(words) - 1)]


def _neighbors(own: random.Random, n: int) -> tuple[int, int]:
    i = own.randrange(n - 1)
    return i, i + 1


def _shuffled(words: list[str], swaps: int, seed: int) -> list[str]:
    return random.Random(seed).sample(words, len(words))


def _shared(seed: int) -> Any:
    random.seed(seed)
    return random


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
    also_right=(_swapping(),),
    mistakes=(
        Mistake("overwrites", "A word is doubled and another one lost: words[i] = words[j] forgets what stood at i. "
                "Exchange both at once: words[i], words[j] = words[j], words[i].", _swapping(exchange=_overwrite)),
        Mistake("drops", "Words get lost; a swap moves them and deletes none.", _swapping(exchange=_drop)),
        Mistake("same-place", "Sometimes you draw the same place twice, and nothing moves; draw two different places.",
                _swapping(lambda own, n: (own.randrange(n), own.randrange(n)))),
        Mistake("neighbors", "You only exchange neighbors; any two places may be drawn.", _swapping(_neighbors)),
        Mistake("last-place", "The last word never moves: the border of randrange or integers is not included.",
                _swapping(lambda own, n: own.sample(range(max(2, n - 1)), 2))),
        Mistake("once", "You swap once; swaps says how many times.", _swapping(times=lambda swaps: 1)),
        Mistake("shuffled", "You shuffle the whole text; only as many pairs as swaps says change places.", _shuffled),
        Mistake("one-word", "A text of one word has no two places to draw; give it back as it is.",
                _swapping(guard=False)),
        Mistake("joined", "The result is a list of words, not one string.",
                lambda words, swaps, seed: " ".join(random_swap(words, swaps, seed))),
        Mistake("fixed-seed", "Every seed swaps the same places; pass seed to the generator.",
                _swapping(seeded=lambda seed: random.Random(0))),
        Mistake("no-seed", "You never use the seed: each call swaps other places.",
                _swapping(seeded=lambda seed: random.Random())),
        Mistake("global", "You seed the generator that everyone shares; make your own.", _swapping(seeded=_shared)),
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


def _plain_softmax(z: np.ndarray) -> np.ndarray:
    exponents = np.exp(z)
    return exponents / exponents.sum(axis=-1, keepdims=True)


def _temperature_cases(rng: np.random.Generator) -> list[Case]:
    return [
        Case((rng.normal(0, 2, (4, 3)), 2.0), note="T above 1: less sure"),
        Case((rng.normal(0, 1, (3, 4)), 0.5), note="T below 1: surer"),
        Case((rng.normal(0, 2, (3, 5)), float(rng.uniform(1.3, 3))), note="five classes"),
        Case((rng.normal(0, 2, (3, 3)) + 900, 1.25), note="logits near 900: e to the 700 is still a number"),
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
        Mistake("overflow", "e to the 900 is infinite; subtract each row's maximum before np.exp.",
                lambda z, t: _plain_softmax(z / t)),
        Mistake("max-late", "You subtract the maximum of the undivided logits from the divided ones; all exponents may "
                "then be too small to be told from 0. Divide first.",
                lambda z, t: _plain_softmax(z / t - z.max(axis=-1, keepdims=True))),
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


def _accuracy(logits: np.ndarray, gold: list[int]) -> float:
    return float((logits.argmax(axis=-1) == np.asarray(gold)).mean())


def _on_test(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    return calibrate(t, tg, t, tg, grid)


def _on_both(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = min(grid, key=lambda x: _nll(v / x, vg) + 30 * _nll(t / x, tg))
    return best, _nll(t / best, tg)


def _multiplying(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = min(grid, key=lambda x: _nll(v * x, vg))
    return best, _nll(t * best, tg)


def _on_probabilities(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    return calibrate(softmax(v, axis=-1), vg, softmax(t, axis=-1), tg, grid)


def _best_accuracy(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = max(grid, key=lambda x: _accuracy(v / x, vg))
    return best, _nll(t / best, tg)


def _worst(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = max(grid, key=lambda x: _nll(v / x, vg))
    return best, _nll(t / best, tg)


def _not_applied(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    return calibrate(v, vg, t, tg, grid)[0], _nll(t, tg)


def _validation_loss(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = calibrate(v, vg, t, tg, grid)[0]
    return best, _nll(v / best, vg)


def _summed(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best, loss = calibrate(v, vg, t, tg, grid)
    return best, loss * len(tg)


def _likelihood(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best, loss = calibrate(v, vg, t, tg, grid)
    return best, -loss


def _calibrate_cases(rng: np.random.Generator) -> list[Case]:
    grid = [0.4, 0.6, 0.9, 1.3, 2.0, 3.0, 4.5]

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
            case = (*rows(60, first), *rows(50, second), grid)
            right = calibrate(*case)
            if all(other(*case)[0] != right[0] for other in (_on_test, _on_both, _multiplying, _on_probabilities,
                                                             _best_accuracy, _worst)):  # fmt: skip
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
                "but the best of seven tries. Choose on validation.", _on_test),
        Mistake("on-both", "Test rows take part in the choice of the temperature; choose on validation alone.",
                _on_both),
        Mistake("multiplied", "You multiply by the temperature; divide the logits.", _multiplying),
        Mistake("on-probabilities", "You divide probabilities by the temperature and take a second softmax; divide the "
                "logits.", _on_probabilities),
        Mistake("accuracy", "You choose by accuracy, but no temperature changes which label is highest, so all are "
                "equal and the first one wins. Choose by the loss.", _best_accuracy),
        Mistake("worst", "This is the temperature with the highest loss; the lowest is wanted.", _worst),
        Mistake("not-applied", "The temperature is right, but the test loss is measured without it.", _not_applied),
        Mistake("validation-loss", "The second number is the loss on validation, on which you chose; report the test's.",
                _validation_loss),
        Mistake("sum", "The loss is the mean over the rows, not the sum.", _summed),
        Mistake("sign", "The loss is minus the mean log-probability, a positive number.", _likelihood),
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


def _binning(
    of: Any = None,
    hit: Any = None,
    last: str = "in",
    order: tuple[int, int, int] = (0, 1, 2),
    middle: bool = False,
    empty: str = "out",
    equal: bool = False,
    share: bool = False,
) -> Any:
    """The bins by hand, with one thing wrong."""

    def binned(probabilities: np.ndarray, gold: list[int], bins: int) -> Any:
        labels = np.asarray(gold)
        confidence = of(probabilities, labels) if of else probabilities.max(axis=1)
        right = hit(probabilities, labels) if hit else probabilities.argmax(axis=1) == labels
        place = (confidence * bins).astype(int)
        if equal:
            place = np.argsort(np.argsort(confidence)) * bins // len(labels)
        elif last == "in":
            place = np.minimum(place, bins - 1)
        found: list[Any] = [[] for _ in range(bins)]
        for row, number in enumerate(place.tolist()):
            if number < bins or last == "raises":
                found[number].append(row)
        made = []
        for number, rows in enumerate(found):
            if not rows:
                if empty == "out":
                    continue
                value = float("nan") if empty == "nan" else 0.0
                made.append((value, value, 0))
                continue
            sure = (number + 0.5) / bins if middle else float(confidence[rows].mean())
            count = len(rows) / len(labels) if share else len(rows)
            one = (sure, float(right[rows].mean()), count)
            made.append((one[order[0]], one[order[1]], one[order[2]]))
        return made

    return binned


def _rows_gold(probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(gold)), gold]


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
                "probabilities, whichever class has it.", _binning(lambda p, gold: p[:, -1])),
        Mistake("of-gold", "You bin by the probability of the gold label; the model does not know it. Confidence is the "
                "highest probability of the row.", _binning(_rows_gold)),
        Mistake("swapped", "Confidence and accuracy are swapped: confidence first, the mean highest probability.",
                _binning(order=(1, 0, 2))),
        Mistake("mixed", "Your accuracy is the mean probability of the gold label; it is the share of rows whose "
                "highest class is the gold one.", _binning(hit=_rows_gold)),
        Mistake("gold-is-last", "Your accuracy is the share of rows of the last class; a row is right when its highest "
                "class is its gold label.", _binning(hit=lambda p, gold: gold == p.shape[1] - 1)),
        Mistake("middle", "You take the middle of the bin for the confidence; take the mean of the rows in it.",
                _binning(middle=True)),
        Mistake("raises", "A probability of exactly 1 falls beyond the last bin; it belongs into the last one.",
                _binning(last="raises")),
        Mistake("lost", "A probability of exactly 1 gets lost; it belongs into the last bin.", _binning(last="out")),
        Mistake("nan", "An empty bin gives nan; leave bins without rows out.", _binning(empty="nan")),
        Mistake("zeros", "Leave bins without rows out; zeros would be drawn as a measurement.",
                _binning(empty="zeros")),
        Mistake("equal-counts", "Your bins hold equally many rows; here they have equal widths, 1 / bins each.",
                _binning(equal=True)),
        Mistake("shares", "The third value is the number of rows, not their share.", _binning(share=True)),
    ),
    hints=(
        "Two numbers a row: how sure (the highest probability), and right or not. Then group the rows.",
        "place = np.minimum((confidence * bins).astype(int), bins - 1); a row with probability 1 stays in.",
        "for number in range(bins):\n    members = place == number\n    if members.any():\n"
        "        found.append((float(confidence[members].mean()), ..., int(members.sum())))",
    ),
)  # fmt: skip

EXERCISES = (MACRO, BOOTSTRAP, WEIGHTS, DELETION, SWAP, TEMPERATURE, CALIBRATE, RELIABILITY)
