"""What a language model must beat: majority, naive Bayes, linear SVM, random forest, boosting.

All through scikit-learn, on TF-IDF of words and word pairs, with fixed settings that suit text.
"""

import time
from dataclasses import dataclass
from typing import Any

from scipy.sparse import csr_matrix
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

from pangu_lab.data.text_tasks import Rows, TextTask
from pangu_lab.tasks.metrics import Metric, classification_metrics

BASELINES = ("majority", "naive Bayes", "linear SVM", "random forest", "boosting")


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline, its test metrics and the seconds that fitting took."""

    name: str
    model: Any
    metrics: dict[str, Metric]
    seconds: float


def make_baseline(name: str, seed: int = 0) -> Any:
    """An unfitted scikit-learn pipeline from texts to labels."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000)
    match name:
        case "majority":
            return DummyClassifier(strategy="most_frequent")
        case "naive Bayes":
            return make_pipeline(words, MultinomialNB(alpha=0.1))
        case "linear SVM":
            return make_pipeline(words, LinearSVC(C=0.5, random_state=seed))
        case "random forest":
            return make_pipeline(words, RandomForestClassifier(200, random_state=seed, n_jobs=-1))
        case "boosting":
            # Histogram trees want a dense table, so only the most frequent words and pairs.
            few = words.set_params(max_features=500)
            dense = FunctionTransformer(csr_matrix.toarray, accept_sparse=True)
            return make_pipeline(few, dense, HistGradientBoostingClassifier(random_state=seed))
    raise ValueError(f"{name!r} is not a baseline; they are {', '.join(BASELINES)}")


def run_baselines(
    train: Rows, test: Rows, task: TextTask, names: tuple[str, ...] = BASELINES, seed: int = 0
) -> list[Baseline]:
    """Fit each baseline on ``train`` and measure it on ``test``."""
    results = []
    for name in names:
        began = time.perf_counter()
        model = make_baseline(name, seed).fit(train.texts, train.labels)
        seconds = time.perf_counter() - began
        predicted = model.predict(test.texts).tolist()
        results.append(
            Baseline(
                name, model, classification_metrics(test.labels, predicted, len(task.labels), task.positive), seconds
            )
        )
    return results
