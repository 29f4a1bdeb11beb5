"""The corpus pipeline and its near-duplicate step alone: seconds per document from small sets to large ones.

Documents of about 1 kB, a third of them edited copies. It also measures recall: the share of the copies with an exact
Jaccard similarity of 0.8 or more to their original that the step removes. Usage:
`python benchmarks/corpus.py --sizes 1000 10000 100000 --out benchmarks/results/corpus.json`
"""

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

WORDS, VOCABULARY = 170, 30_000


def documents(count, seed=0):
    """Texts, and for each the number of the original that it is an edited copy of, or -1."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, 2 + i % 8)) + str(i % 7) for i in range(VOCABULARY)])
    p = 1 / np.arange(10, VOCABULARY + 10)
    cumulative = np.cumsum(p / p.sum())
    numbers, originals = [], []
    for i in range(count):
        if i and rng.random() < 1 / 3:
            original = int(rng.integers(i))
            row = numbers[original].copy()
            row[rng.integers(0, WORDS, rng.integers(0, 8))] = rng.integers(0, VOCABULARY)
        else:
            original = -1
            row = np.searchsorted(cumulative, rng.random(WORDS)).clip(max=VOCABULARY - 1)
        numbers.append(row)
        originals.append(original)
    return [" ".join(words[row]) for row in numbers], originals


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1000, 5000, 20_000])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    import datasets

    from pangu_lab.data.corpus import Deduplicate, Pipeline
    from pangu_lab.data.dedup import jaccard, near_duplicates, shingle_hashes, words_of
    from pangu_lab.data.filters import Decontaminate, Language, MaskSecrets, Normalize, Rules
    from pangu_lab.files import atomic_write
    from pangu_lab.results import hardware, versions

    datasets.disable_progress_bars()
    summary = {}
    for size in options.sizes:
        texts, originals = documents(size)
        began = time.perf_counter()
        found = near_duplicates(texts)
        alone = time.perf_counter() - began
        kept = set(found.kept.tolist())
        sample = [i for i in range(size) if originals[i] >= 0][:2000]
        sets = {i: shingle_hashes(words_of(texts[i])) for i in {*sample, *(originals[i] for i in sample)}}
        near = [i for i in sample if originals[i] in kept and jaccard(sets[i], sets[originals[i]]) >= 0.8]
        recall = sum(i not in kept for i in near) / len(near)
        items = [text for text, original in zip(texts, originals, strict=True) if original < 0][:100]
        steps = (Normalize(), Rules(), Language("unknown"), Deduplicate(), Decontaminate.against(items), MaskSecrets())
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            rows = ({"text": text, "source": str(i)} for i, text in enumerate(texts))
            _, reports = Pipeline(Path(folder), steps, options.processes).run(rows)
            whole = time.perf_counter() - began
        summary[str(size)] = {
            "megabytes": round(sum(map(len, texts)) / 1e6, 1),
            "near_duplicates_seconds": round(alone, 2),
            "near_duplicates_ms_per_document": round(1000 * alone / size, 3),
            "removed": size - len(kept),
            "recall_at_0.8": round(recall, 4),
            "pairs_for_recall": len(near),
            "pipeline_seconds": round(whole, 2),
            "pipeline_ms_per_document": round(1000 * whole / size, 3),
            "steps_seconds": {report.step: report.seconds for report in reports},
        }
        print(size, summary[str(size)], flush=True)
        if options.out:
            record = {
                "what": "corpus pipeline on invented documents of about 1 kB, a third of them edited copies",
                "processes": options.processes,
                "summary": summary,
                "versions": versions(),
                "hardware": hardware(),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            atomic_write(options.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
