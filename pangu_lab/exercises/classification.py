"""Exercises of lab 06: what a classifier's numbers are made of, the head on top of an encoder, and fair choices.

References come from an independent truth: scikit-learn's metrics, scipy's interval, torch's own modules.
The split is judged by what must hold of it, since many splits are right.
"""

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn

from pangu_lab.exercises.calling import preserved_random_state
from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake

# --- the confusion matrix ---------------------------------------------------------------------------


def confusion_matrix(gold: list[int], predicted: list[int], labels: int) -> np.ndarray:
    """Counts ``(gold, predicted)``, by scikit-learn."""
    return sklearn_confusion_matrix(gold, predicted, labels=range(labels))


def _counted(gold: list[int], predicted: list[int], labels: int) -> np.ndarray:
    """The same without scikit-learn's checks of its input: the mistakes below are tried on every wrong answer."""
    return np.bincount(np.asarray(gold) * labels + np.asarray(predicted), minlength=labels**2).reshape(labels, labels)


def _transposed(gold: list[int], predicted: list[int], labels: int) -> np.ndarray:
    return _counted(gold, predicted, labels).T


def _present_only(gold: list[int], predicted: list[int], labels: int) -> np.ndarray:
    return sklearn_confusion_matrix(gold, predicted)


def _row_shares(gold: list[int], predicted: list[int], labels: int) -> np.ndarray:
    table = _counted(gold, predicted, labels)
    return table / np.maximum(table.sum(axis=1, keepdims=True), 1)


def _float_counts(gold: list[int], predicted: list[int], labels: int) -> np.ndarray:
    return _counted(gold, predicted, labels).astype(float)


def _seen(gold: list[int], predicted: list[int], labels: int) -> np.ndarray:
    return np.minimum(_counted(gold, predicted, labels), 1)


def _hits_only(gold: list[int], predicted: list[int], labels: int) -> np.ndarray:
    return np.diag(np.diag(_counted(gold, predicted, labels)))


def _first_row_lost(gold: list[int], predicted: list[int], labels: int) -> np.ndarray:
    return _counted(gold[1:], predicted[1:], labels)


def _label_pairs(rng: np.random.Generator, labels: int, rows: int) -> tuple[list[int], list[int]]:
    """Gold and predicted labels in which class 0 is taken for class 1 more often than the other way round."""
    gold = [*rng.integers(0, labels, rows).tolist(), 1, *range(labels)]
    predicted = [label if rng.random() < 0.6 else int(rng.integers(0, labels)) for label in gold[:rows]] + [
        0,
        *range(labels),
    ]
    pairs = [*zip(gold, predicted, strict=True)]
    pairs += [(0, 1)] * (pairs.count((1, 0)) - pairs.count((0, 1)) + 2)
    order = rng.permutation(len(pairs))
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


def _confusion_cases(rng: np.random.Generator) -> list[Case]:
    return [
        Case((*_label_pairs(rng, 2, 8), 2), note="two classes"),
        Case((*_label_pairs(rng, 3, 20), 3), note="three classes"),
        Case((*_label_pairs(rng, 3, 9), 4), note="a fourth class that no row has and no model predicts"),
        Case(([0, 1, 0, 1, 1], [0] * 5, 2), note="a model that always says 0"),
    ]


CONFUSION = Exercise(
    id="classification.confusion_matrix",
    points=2,
    title="The confusion matrix",
    cases=_confusion_cases,
    reference=confusion_matrix,
    mistakes=(
        Mistake("transposed", "Rows and columns are swapped: the row is the gold label, the column what the model "
                "said.", _transposed),
        Mistake("present-only", "A class that does not occur has a row and a column of zeros; the table is "
                "(labels, labels).", _present_only),
        Mistake("shares", "These are shares of each row; the table holds counts.", _row_shares),
        Mistake("float", "Counts are whole numbers; give np.zeros dtype=int.", _float_counts),
        Mistake("assigned", "A cell is 1 at most: you set it instead of adding to it. With table[gold, predicted] "
                "+= 1 on arrays, repeated pairs count once, too; np.add.at counts them all.", _seen),
        Mistake("hits-only", "Only the diagonal is filled; a wrong prediction counts in the cell of its pair.",
                _hits_only),
        Mistake("first-row", "The first row is not counted.", _first_row_lost),
    ),
    hints=(
        "Each row of the data adds one to exactly one cell. Which one?",
        "Walk through gold and predicted together with zip.",
        "for g, p in zip(gold, predicted):\n    table[...] += 1",
    ),
)  # fmt: skip


# --- precision, recall, F1 --------------------------------------------------------------------------


def precision_recall_f1(table: np.ndarray, label: int) -> tuple[float, float, float]:
    """Precision, recall and F1 of one class: the table unfolded into rows, then scikit-learn."""
    pairs = [(g, p) for (g, p), count in np.ndenumerate(table) for _ in range(int(count))]
    gold, predicted = [g for (g, _) in pairs], [p for (_, p) in pairs]
    precision, recall, f1, _ = precision_recall_fscore_support(gold, predicted, labels=[label], zero_division=0)
    return float(precision[0]), float(recall[0]), float(f1[0])


def _from_counts(
    mean: Callable[[float, float], float] | None = None, swap: bool = False, empty: float | None = 0.0
) -> Any:
    """Precision, recall and F1 by hand; ``empty`` is what 0/0 gives, None lets it raise."""

    def ratio(a: float, b: float) -> float:
        return float(a) / float(b) if b or empty is None else empty

    def scores(table: np.ndarray, label: int) -> tuple[float, float, float]:
        hits, said, there = table[label, label], table[:, label].sum(), table[label].sum()
        precision, recall = ratio(hits, said), ratio(hits, there)
        if swap:
            precision, recall = recall, precision
        f1 = mean(precision, recall) if mean else ratio(2 * precision * recall, precision + recall)
        return precision, recall, f1

    return scores


_by_hand = _from_counts()


def _accuracy_as_precision(table: np.ndarray, label: int) -> tuple[float, float, float]:
    accuracy, recall = float(np.trace(table) / table.sum()), _by_hand(table, label)[1]
    return accuracy, recall, 2 * accuracy * recall / (accuracy + recall) if accuracy + recall else 0.0


def _averaged(table: np.ndarray, label: int) -> tuple[float, float, float]:
    precision, recall, f1 = np.mean([_by_hand(table, i) for i in range(len(table))], axis=0).tolist()
    return precision, recall, f1


def _last_class(table: np.ndarray, label: int) -> tuple[float, float, float]:
    return _by_hand(table, len(table) - 1)


def _share_of_all(table: np.ndarray, label: int) -> tuple[float, float, float]:
    share = float(table[label, label] / table.sum())
    return share, share, share


def _tables(rng: np.random.Generator, labels: int) -> np.ndarray:
    """A table of which no two classes have the same row sum, column sum or hits."""
    while True:
        table = rng.integers(0, 9, (labels, labels)) + np.diag(rng.integers(5, 40, labels))
        sums = [*table.sum(axis=0), *table.sum(axis=1)]
        if len(set(sums)) == 2 * labels and len(set(np.diag(table))) == labels:
            return table


def _score_cases(rng: np.random.Generator) -> list[Case]:
    never_said, never_there = _tables(rng, 3), _tables(rng, 3)
    never_said[:, 0] = 0
    never_there[1] = 0
    nothing = _tables(rng, 3)
    nothing[:, 1] = 0
    nothing[1] = 0
    return [
        Case((_tables(rng, 2), 1), note="two classes, the positive one"),
        Case((_tables(rng, 2), 0), note="two classes, the negative one"),
        Case((_tables(rng, 4), 2), note="four classes"),
        Case((never_said, 0), note="the model never says this class"),
        Case((never_there, 1), note="no row has this class"),
        Case((nothing, 1), note="no row has this class, and the model never says it"),
    ]


SCORES = Exercise(
    id="classification.precision_recall_f1",
    points=3,
    title="Precision, recall and F1 of a class",
    cases=_score_cases,
    reference=precision_recall_f1,
    also_right=(_by_hand,),
    mistakes=(
        Mistake("swapped", "Precision and recall are swapped: precision asks about the column (all rows the model "
                "called this class), recall about the row (all rows that are of this class).",
                _from_counts(swap=True)),
        Mistake("nan", "0 divided by 0 gives nan here; a class that is never predicted has precision 0, one that "
                "never occurs has recall 0.", _from_counts(empty=math.nan)),
        Mistake("raises", "A class that never occurs or is never predicted makes you divide by zero; the result is "
                "0 then.", _from_counts(empty=None)),
        Mistake("one", "An empty class gets 1 from you; a model that never finds anything earns 0.",
                _from_counts(empty=1.0)),
        Mistake("arithmetic", "F1 is the harmonic mean, 2PR / (P + R), not the plain mean (P + R) / 2.",
                _from_counts(mean=lambda p, r: (p + r) / 2)),
        Mistake("geometric", "F1 is the harmonic mean, 2PR / (P + R), not the root of P times R.",
                _from_counts(mean=lambda p, r: math.sqrt(p * r))),
        Mistake("no-two", "The factor 2 is missing in F1 = 2PR / (P + R).",
                _from_counts(mean=lambda p, r: p * r / (p + r) if p + r else 0.0)),
        Mistake("accuracy", "Your precision is the accuracy: hits of all classes over all rows. Precision looks at "
                "one column only.", _accuracy_as_precision),
        Mistake("macro", "You average over all classes; this asks for one.", _averaged),
        Mistake("last", "You always look at the last class; label says which one is meant.", _last_class),
        Mistake("of-all", "You divide by the number of all rows; precision divides by the column's sum, recall by "
                "the row's.", _share_of_all),
    ),
    hints=(
        "Three numbers are enough: the hits table[label, label], the sum of the row, the sum of the column.",
        "table[label].sum() is how many rows are of this class, table[:, label].sum() how many were called so.",
        "precision = hits / column if column else 0.0\nrecall = ...\nf1 = ... if precision + recall else 0.0",
    ),
)  # fmt: skip


# --- an interval for accuracy -----------------------------------------------------------------------

Z95 = 1.959964


def accuracy_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of Wilson, by scipy."""
    interval = binomtest(right, total).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _wilson(
    z: float = Z95, shift: bool = True, shrink: bool = True, inner: bool = True, flip: bool = False
) -> Callable[[int, int], tuple[float, float]]:
    def interval(right: int, total: int) -> tuple[float, float]:
        p = (total - right if flip else right) / total
        scale = 1 + z * z / total if shrink else 1.0
        center = (p + shift * z * z / (2 * total)) / scale
        half = z * math.sqrt(p * (1 - p) / total + inner * z * z / (4 * total * total)) / scale
        return center - half, center + half

    return interval


def _clipped_normal(right: int, total: int) -> tuple[float, float]:
    p = right / total
    half = Z95 * math.sqrt(p * (1 - p) / total)
    return max(0.0, p - half), min(1.0, p + half)


def _no_root(right: int, total: int) -> tuple[float, float]:
    p, z = right / total, Z95
    center = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * (p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return center - half, center + half


def _interval_cases(rng: np.random.Generator) -> list[Case]:
    few, many = int(rng.integers(12, 40)), int(rng.integers(500, 25_000))
    return [
        Case((int(few * rng.uniform(0.6, 0.8)), few), note="a small test set"),
        Case((int(many * rng.uniform(0.8, 0.95)), many), note="a large test set"),
        Case((few - 1, few), note="one mistake: a plain normal interval ends above 1"),
        Case((few, few), note="no mistake: is the accuracy 100 % for certain?"),
        Case((0, few), note="nothing right"),
    ]


INTERVAL = Exercise(
    id="classification.accuracy_interval",
    points=3,
    title="A 95 % interval for accuracy",
    cases=_interval_cases,
    reference=accuracy_interval,
    also_right=(_wilson(z=1.96),),
    mistakes=(
        Mistake("normal", "This is the normal interval, p ± z·√(p(1−p)/n): near 100 % it reaches beyond 1, and "
                "without a mistake it has no width at all.", _wilson(shift=False, shrink=False, inner=False)),
        Mistake("clipped", "This is the normal interval, cut off at 0 and 1: without a mistake it claims 100 % for "
                "certain.", _clipped_normal),
        Mistake("ninety", "1.645 leaves 5 % on each side, a 90 % interval; 95 % needs z = 1.96.", _wilson(z=1.644854)),
        Mistake("one-error", "You take one standard error on each side, which covers 68 %; 95 % needs 1.96.",
                _wilson(z=1.0)),
        Mistake("no-scale", "The division by 1 + z²/n is missing.", _wilson(shrink=False)),
        Mistake("no-shift", "The center is p + z²/(2n) before the division; the second term is missing.",
                _wilson(shift=False)),
        Mistake("no-inner", "Under the root, z²/(4n²) is missing.", _wilson(inner=False)),
        Mistake("no-root", "The square root is missing.", _no_root),
        Mistake("mistakes", "This is the interval of the share of mistakes; p = right / total.", _wilson(flip=True)),
    ),
    hints=(
        "Give the parts names: p, n, z² and the common divisor 1 + z²/n.",
        "center = (p + z²/(2n)) / divisor. The half width has the same divisor.",
        "half = z * math.sqrt(p * (1 - p) / n + ...) / divisor\nreturn center - half, center + half",
    ),
)  # fmt: skip


# --- the classification head ------------------------------------------------------------------------


def classification_head(hidden: Tensor, dense: Tensor, dense_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logits ``(batch, labels)`` of the first position, through two modules of torch."""
    with torch.no_grad():
        pooler = nn.Linear(dense.shape[1], dense.shape[0])
        classifier = nn.Linear(weight.shape[1], weight.shape[0])
        for module, w, b in ((pooler, dense, dense_bias), (classifier, weight, bias)):
            module.weight.copy_(w)
            module.bias.copy_(b)
        return nn.Sequential(pooler, nn.Tanh(), classifier)(hidden[:, 0])


def _head(
    pool: Callable[[Tensor], Tensor] = lambda hidden: hidden[:, 0],
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    last: Callable[[Tensor], Tensor] = lambda logits: logits,
    transpose: bool = True,
    biases: tuple[float, float] = (1, 1),
) -> Any:
    def head(hidden: Tensor, dense: Tensor, dense_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        matrix = dense.T if transpose else dense
        pooled = activation(pool(hidden) @ matrix + biases[0] * dense_bias)  # (batch, d_model)
        return last(pooled @ weight.T + biases[1] * bias)  # (batch, labels)

    return head


def _without_pooler(hidden: Tensor, dense: Tensor, dense_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return hidden[:, 0] @ weight.T + bias


def _head_cases(rng: np.random.Generator) -> list[Case]:
    def normal(*shape: int) -> Tensor:
        return torch.tensor(rng.normal(size=shape), dtype=torch.float32)

    cases = []
    for batch, labels, note in ((4, 2, "two classes"), (3, 3, "three classes"), (1, 5, "a single text")):
        length, d = int(rng.integers(5, 9)), int(rng.integers(6, 10))
        inputs = normal(batch, length, d), normal(d, d) / d**0.5, normal(d), normal(labels, d), normal(labels)
        cases.append(Case(inputs, note=note))
    return cases


HEAD = Exercise(
    id="classification.classification_head",
    points=2,
    title="The classification head",
    cases=_head_cases,
    reference=classification_head,
    compare=Compare(rtol=1e-4, atol=1e-5),
    mistakes=(
        Mistake("no-tanh", "The tanh between the two linear maps is missing; without it they are one map.",
                _head(activation=lambda x: x)),
        Mistake("relu", "BERT's pooler has a tanh, not a ReLU.", _head(activation=torch.relu)),
        Mistake("softmax", "These are probabilities; return the logits. The loss applies its own softmax, and twice "
                "is wrong.", _head(last=lambda x: x.softmax(dim=-1))),
        Mistake("mean", "You average over all positions, padding included; this head reads [CLS], position 0.",
                _head(pool=lambda hidden: hidden.mean(dim=1))),
        Mistake("last-position", "You read the last position, which is [SEP] or padding; [CLS] is position 0.",
                _head(pool=lambda hidden: hidden[:, -1])),
        Mistake("first-text", "hidden[0] is the first text with all its positions; the first position of all texts "
                "is hidden[:, 0].", _head(pool=lambda hidden: hidden[0])),
        Mistake("not-transposed", "torch stores a linear map as (out, in): multiply by the transposed matrix, "
                "x @ dense.T.", _head(transpose=False)),
        Mistake("no-pooler", "The pooler is missing: a linear map and tanh come before the classifier.",
                _without_pooler),
        Mistake("no-dense-bias", "The pooler's bias is missing.", _head(biases=(0, 1))),
        Mistake("no-bias", "The classifier's bias is missing.", _head(biases=(1, 0))),
        Mistake("late-tanh", "The tanh stands between the two maps, not after the second one.",
                _head(activation=lambda x: x, last=torch.tanh)),
    ),
    hints=(
        "First one vector a text: the one at position 0, (batch, d_model).",
        "x @ dense.T + dense_bias is what nn.Linear computes. Then tanh, then the same with weight and bias.",
        "pooled = torch.tanh(hidden[:, 0] @ ... + dense_bias)\nreturn pooled @ ...",
    ),
)  # fmt: skip


# --- the split that the paper does not name ---------------------------------------------------------


def what_holds_of_the_split(student: Any, case: Case) -> dict[str, bool]:
    """Call the student's function several times; say what holds of its splits."""
    texts, labels, share, seed, other = case.args

    def states() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),
            torch.get_rng_state().tolist(),
        ]

    def split(number: int) -> tuple[list[int], list[int]]:
        train, validation = student(texts, labels, share, number)
        return [int(i) for i in train], [int(i) for i in validation]

    def rows_of(part: list[int]) -> list[list[int]]:
        return [[row for row in part if labels[row] == label] for label in sorted(set(labels))]

    before = states()
    train, validation = split(seed)
    untouched = states() == before
    random.random(), np.random.rand(), torch.rand(1)  # someone else draws
    again, third = split(seed), split(other)
    held, learned = [texts[i] for i in validation], [texts[i] for i in train]
    first = dict(zip(reversed(texts), reversed(labels), strict=True))  # of equal texts the first counts
    wanted = {label: share * count for label, count in Counter(first.values()).items()}
    return {
        "no row is in train and in validation": not set(train) & set(validation),
        "no text is in train and in validation": not set(learned) & set(held),
        "no text is twice in one of them": len(set(learned)) == len(learned) and len(set(held)) == len(held),
        "every text is in train or in validation": set(learned) | set(held) == set(texts),
        "validation has its share of all texts": abs(len(set(held)) - share * len(set(texts))) <= len(wanted),
        "validation has its share of every label": all(
            abs([labels[i] for i in validation].count(label) - count) <= 1 for label, count in wanted.items()
        ),
        "validation is neither the first nor the last rows": any(
            min(v) < max(t) and min(t) < max(v)
            for t, v in zip(rows_of(train), rows_of(validation), strict=True)
            if t and v
        ),
        "the same seed gives the same split": [sorted(part) for part in again] == [sorted(train), sorted(validation)],
        "another seed gives another split": sorted(third[1]) != sorted(validation),
        "the global generators are untouched": untouched,
    }


def stratified_split(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers of train and validation: each text once, each label in its share, from a generator of our own."""
    return _split(texts, labels, share, np.random.default_rng(seed).permutation)


def _split(
    texts: list[str], labels: list[int], share: float, shuffled: Callable[[list[int]], Any], once: bool = True
) -> tuple[list[int], list[int]]:
    seen: set[str] = set()
    groups: dict[int, list[int]] = {}
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not once or text not in seen:
            groups.setdefault(label, []).append(row)
        seen.add(text)
    train: list[int] = []
    validation: list[int] = []
    for label in sorted(groups):
        order = [int(row) for row in shuffled(groups[label])]
        count = round(share * len(order))
        validation += order[:count]
        train += order[count:]
    return train, validation


def _sampled_split(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    generator = random.Random(seed)
    return _split(texts, labels, share, lambda rows: generator.sample(rows, len(rows)))


def _with_duplicates(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    return _split(texts, labels, share, np.random.default_rng(seed).permutation, once=False)


def _unstratified(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    rows = list({text: row for row, text in reversed(list(enumerate(texts)))}.values())
    order = np.random.default_rng(seed).permutation(rows).tolist()
    count = round(share * len(order))
    return order[count:], order[:count]


def _in_order(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    return _split(texts, labels, share, list)


def _global_seed(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    np.random.seed(seed % 2**32)
    return _split(texts, labels, share, np.random.permutation)


def _no_seed(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    return _split(texts, labels, share, np.random.permutation)


def _restored(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    with preserved_random_state():
        return _global_seed(texts, labels, share, seed)


def _fixed_seed(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    return stratified_split(texts, labels, share, 0)


def _overlapping(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    train, validation = stratified_split(texts, labels, share, seed)
    return train + validation, validation


def _swapped_parts(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    train, validation = stratified_split(texts, labels, share, seed)
    return validation, train


def _drops_doubled(texts: list[str], labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    count = Counter(texts)
    train, validation = stratified_split(texts, labels, share, seed)
    return [i for i in train if count[texts[i]] == 1], [i for i in validation if count[texts[i]] == 1]


def _split_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for classes, rows, share, note in (
        (2, 60, 0.1, "two classes, sorted by label"),
        (4, 240, 0.2, "four classes of different sizes"),
        (3, 160, 0.25, "three classes of different sizes"),
    ):
        weights = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
        labels = sorted(rng.choice(classes, rows, p=weights).tolist())
        names = rng.permutation(10 * rows)[:rows]
        texts = [f"text {name}" for name in names]
        for row in rng.permutation(rows - 1)[: rows // 8].tolist():  # doubled: a row and, where it has one, its next
            if labels[row + 1] == labels[row]:
                texts[row + 1] = texts[row]
        seeds = rng.choice(2**31, size=2, replace=False).tolist()
        cases.append(Case((texts, labels, share, *seeds), note=note))
    return cases


SPLIT = Exercise(
    id="classification.stratified_split",
    points=3,
    title="A split with a seed",
    cases=_split_cases,
    reference=stratified_split,
    drive=what_holds_of_the_split,
    also_right=(_sampled_split, _restored),
    mistakes=(
        Mistake("duplicates", "Equal texts are still there, and some stand in both parts: the model is then tested "
                "on what it has learned by heart. Keep the first row of each text.", _with_duplicates),
        Mistake("overlap", "Validation rows are in train, too.", _overlapping),
        Mistake("unstratified", "The labels' shares are left to chance; split the rows of each label on their own.",
                _unstratified),
        Mistake("in-order", "You take the first rows of each label, in the order of the file; shuffle them first.",
                _in_order),
        Mistake("global", "You seed the generator that everyone shares; make your own: np.random.default_rng(seed).",
                _global_seed),
        Mistake("no-seed", "You never use the seed: each call gives another split.", _no_seed),
        Mistake("fixed-seed", "Every seed gives the same split; pass seed to the generator.", _fixed_seed),
        Mistake("swapped", "Train comes first in the result, and validation has the share.", _swapped_parts),
        Mistake("drops", "You drop all rows of a doubled text; the first of them may stay.", _drops_doubled),
    ),
    hints=(
        "First decide which rows count: walk through the texts and keep a row if its text is new.",
        "generator = np.random.default_rng(seed) disturbs nobody. generator.permutation(rows) shuffles a list.",
        "for label in sorted(set(labels)):\n    rows = generator.permutation([row for row in kept if ...])\n"
        "    count = round(share * len(rows))\n    validation += rows[:count].tolist()",
    ),
)  # fmt: skip


# --- head and tail ----------------------------------------------------------------------------------


def head_and_tail(ids: list[int], max_length: int, cls: int, sep: int) -> list[int]:
    """[CLS], the first third and the rest from the end, [SEP]: positions chosen by a mask."""
    room = max_length - 2
    position = np.arange(len(ids))
    head = room // 3
    keep = (position < head) | (position >= len(ids) - (room - head))
    return [cls, *np.asarray(ids, dtype=int)[keep | (len(ids) <= room)].tolist(), sep]


def _truncation(
    special: tuple[bool, bool] = (True, True),
    minus: int = 2,
    part: Callable[[int], int] = lambda room: room // 3,
    always: bool = False,
    keeps: str = "both",
) -> Any:
    def truncate(ids: list[int], max_length: int, cls: int, sep: int) -> list[int]:
        room = max_length - minus
        if always or len(ids) > room:
            head = {"both": part(room), "head": room, "tail": 0}[keeps]
            tail = room - head
            ids = ids[:head] + (ids[-tail:] if tail else [])
        return [cls] * special[0] + ids + [sep] * special[1]

    return truncate


def _middle(ids: list[int], max_length: int, cls: int, sep: int) -> list[int]:
    room = max_length - 2
    start = max(0, (len(ids) - room) // 2)
    return [cls, *ids[start : start + room], sep]


def _cut_last(ids: list[int], max_length: int, cls: int, sep: int) -> list[int]:
    return [cls, *ids, sep][:max_length]


def _truncation_cases(rng: np.random.Generator) -> list[Case]:
    limit = int(rng.integers(14, 24))
    room = limit - 2
    cases = []
    for length, note in (
        (int(rng.integers(3 * room, 5 * room)), "a long text"),
        (room + 1, "one token too long"),
        (room, "it fits exactly"),
        (int(rng.integers(room // 3 + 2, room - 2)), "a short text"),
        (0, "a text without tokens"),
    ):
        ids = rng.choice(np.arange(1000, 30_000), size=length, replace=False).tolist()
        cases.append(Case((ids, limit, 101, 102), note=note))
    return cases


TRUNCATION = Exercise(
    id="classification.head_and_tail",
    points=2,
    title="Head and tail of a long text",
    cases=_truncation_cases,
    reference=head_and_tail,
    mistakes=(
        Mistake("head-only", "Only the head is kept; reviews give their verdict at the end. Keep a third of the room "
                "from the front, the rest from the end.", _truncation(keeps="head")),
        Mistake("tail-only", "Only the tail is kept; a third of the room belongs to the front.",
                _truncation(keeps="tail")),
        Mistake("middle", "You keep the middle of the text; cut the middle out instead.", _middle),
        Mistake("no-room", "The result is two tokens too long: [CLS] and [SEP] count, so max_length - 2 tokens of "
                "the text have room.", _truncation(minus=0)),
        Mistake("one-short", "Room for both special tokens is max_length - 2, not - 3: a token is lost.",
                _truncation(minus=3)),
        Mistake("cut-last", "You cut after adding the special tokens, so a long text loses its [SEP], and its tail.",
                _cut_last),
        Mistake("no-sep", "[SEP] at the end is missing.", _truncation(special=(True, False))),
        Mistake("no-cls", "[CLS] at the front is missing; the head reads its vector.",
                _truncation(special=(False, True))),
        Mistake("overlap", "A text that fits is cut all the same: its head and tail overlap, and tokens come twice.",
                _truncation(always=True)),
        Mistake("halves", "The front gets a third of the room, not half.", _truncation(part=lambda room: room // 2)),
    ),
    hints=(
        "How many tokens of the text have room beside [CLS] and [SEP]? Does the text fit? Then it stays whole.",
        "room = max_length - 2, head = room // 3, and the tail gets room - head.",
        "if len(ids) > room:\n    ids = ids[:head] + ids[len(ids) - (room - head):]\nreturn [cls, ..., sep]",
    ),
)  # fmt: skip


# --- choosing a learning rate -----------------------------------------------------------------------


def pick_learning_rate(results: dict[float, list[float]]) -> float:
    """The rate with the best mean, found by sorting (mean, smaller rate first) a table of numpy."""
    rates = np.array(sorted(results))
    means = np.array([np.mean(results[rate]) for rate in rates])  # nan if any run diverged
    best = np.flatnonzero(means == np.nanmax(means))
    return float(rates[best[0]])


def _picking(
    score: Callable[[list[float]], float], smaller: bool = True
) -> Callable[[dict[float, list[float]]], float]:
    def pick(results: dict[float, list[float]]) -> float:
        scores = {rate: score(values) for rate, values in results.items()}
        good = {rate: value for rate, value in scores.items() if value == value}
        best = [rate for rate, value in good.items() if value == max(good.values())]
        return min(best) if smaller else max(best)

    return pick


def _whole(score: Callable[[np.ndarray], float]) -> Callable[[list[float]], float]:
    """A score of all runs; nan if one of them is."""
    return lambda values: float(score(np.array(values)))


def _nan_wins(results: dict[float, list[float]]) -> float:
    means = {rate: float(np.mean(values)) for rate, values in sorted(results.items())}
    diverged = [rate for rate, mean in means.items() if mean != mean]
    return diverged[0] if diverged else pick_learning_rate(results)


def _first_listed(results: dict[float, list[float]]) -> float:
    best = max(np.nanmax([np.mean(values)]) for values in results.values() if not np.isnan(values).any())
    return next(rate for rate, values in results.items() if np.mean(values) == best)


def _the_accuracy(results: dict[float, list[float]]) -> float:
    return float(np.mean(results[pick_learning_rate(results)]))


def _rate_cases(rng: np.random.Generator) -> list[Case]:
    def search(notes: str, *runs: list[int | None]) -> Case:
        """Accuracies in 64ths, so that equal means are equal to the last bit; listed in a random order."""
        rates = sorted(
            float(f"{rate:.1g}")
            for rate in rng.choice([1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2], len(runs), replace=False)
        )
        results = {
            rate: [math.nan if right is None else (right + base) / 64 for right in runs_of_rate]
            for rate, runs_of_rate in zip(rates, runs, strict=True)
        }
        order = [rates[1], rates[0], *rates[2:]]
        return Case(({rate: results[rate] for rate in order},), note=notes)

    base = int(rng.integers(0, 6))
    return [
        search("one seed each", [40], [52], [47]),
        search("one lucky run does not make a rate", [50, 52, 51], [57, 33, 36], [46, 44, 45]),
        search("one bad run can be outweighed", [49, 48, 49], [57, 46, 56], [40, 42, 41]),
        search("a tie: the smaller rate wins", [45, 55], [55, 45], [40, 57]),
        search("a tie of three", [51, 47], [48, 50], [49, 49], [46, 45]),
        search("a run diverged (nan)", [40, 44], [48, 50], [None, 56]),
        search("a run of another rate diverged", [None, 38], [48, 51], [40, 44]),
        search("different numbers of seeds", [50, 52], [42, 44, 43, 41], [46, 45, 47]),
    ]


PICK = Exercise(
    id="classification.pick_learning_rate",
    points=2,
    title="Choosing a learning rate",
    cases=_rate_cases,
    reference=pick_learning_rate,
    compare=Compare(rtol=1e-6, atol=0.0),
    mistakes=(
        Mistake("max", "You take the rate with the best single run: that rewards luck. Compare the means over the "
                "seeds.", _picking(_whole(np.max))),
        Mistake("min", "You compare the worst runs; compare the means over the seeds.", _picking(_whole(np.min))),
        Mistake("worst", "This is the rate with the lowest mean; accuracy is better when it is higher.",
                _picking(lambda values: -float(np.mean(values)))),
        Mistake("sum", "You compare sums: a rate that was tried with more seeds wins. Compare the means.",
                _picking(_whole(np.sum))),
        Mistake("last-seed", "You look at the last seed only.", _picking(lambda values: values[-1])),
        Mistake("nan-skipped", "You leave out the diverged run and keep its rate: a rate at which a run diverges is "
                "out.", _picking(lambda values: float(np.nanmean(values)))),
        Mistake("nan-wins", "nan wins: every comparison with it is False, so max and sort do anything. Leave out the "
                "rates with a diverged run first.", _nan_wins),
        Mistake("tie-larger", "Of two equal means the smaller rate wins.", _picking(_whole(np.mean), smaller=False)),
        Mistake("tie-first", "Of two equal means you take the one listed first; the smaller rate wins.",
                _first_listed),
        Mistake("accuracy", "This is the best mean accuracy; return the rate that reached it.", _the_accuracy),
    ),
    hints=(
        "Three steps: drop the rates with a nan, compute a mean for each, take the best.",
        "math.isnan tells; go through the rates in ascending order, and a tie keeps the earlier one.",
        "means = {rate: sum(a) / len(a) for rate, a in sorted(results.items()) if not any(map(math.isnan, a))}\n"
        "return max(means, key=...)",
    ),
)  # fmt: skip

EXERCISES = (SPLIT, CONFUSION, SCORES, INTERVAL, TRUNCATION, HEAD, PICK)
