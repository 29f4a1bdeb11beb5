"""Corpus construction: what each step removes and why, near-duplicates against exact similarity, restarts, bad input."""

import json

import datasets
import numpy as np
import pytest
from datasketch import MinHash as DatasketchMinHash

from pangu_lab.data import corpus
from pangu_lab.data.corpus import (
    CorpusError,
    Deduplicate,
    Pipeline,
    Skipped,
    mix,
    mixture,
    pack,
    read_files,
    read_lines,
)
from pangu_lab.data.crawl import LEAST, installed_documents, opening, source_openings
from pangu_lab.data.dedup import (
    MinHash,
    band_keys,
    candidate_pairs,
    collision_probability,
    jaccard,
    near_duplicates,
    shingle_hashes,
    words_of,
)
from pangu_lab.data.filters import (
    Decontaminate,
    Language,
    MaskSecrets,
    Normalize,
    Quality,
    Rules,
    language,
    mask_secrets,
)
from pangu_lab.data.ngram import ByteNgram

SENTENCE = "The quick survey of the harbor was finished by noon, and the crew went home to their families. "


def some_texts(count, seed=0, words=120):
    """Texts of invented words, frequent and rare as in a language, so that no two are alike by chance."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, 5001)
    drawn = rng.choice(5000, (count, words), p=p / p.sum())
    return [" ".join(f"w{i}" for i in row) for row in drawn]


def edited(text, changes, rng):
    words = text.split()
    for place in rng.choice(len(words), changes, replace=False):
        words[place] = f"x{rng.integers(10**6)}"
    return " ".join(words)


# --- near-duplicates --------------------------------------------------------------------------------


def test_a_signature_estimates_the_jaccard_similarity():
    rng = np.random.default_rng(0)
    family, errors = MinHash(256), []
    for text in some_texts(40):
        a, b = (shingle_hashes(words_of(t)) for t in (text, edited(text, int(rng.integers(1, 12)), rng)))
        errors.append(np.mean(family.signature(a) == family.signature(b)) - jaccard(a, b))
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 2.5 * np.sqrt(0.25 / 256)


def test_signatures_agree_as_often_as_another_library_s():
    rng = np.random.default_rng(1)
    ours, theirs = [], []
    for text in some_texts(15):
        pair = [shingle_hashes(words_of(t)) for t in (text, edited(text, 5, rng))]
        a, b = (MinHash(128).signature(s) for s in pair)
        others = [DatasketchMinHash(num_perm=128) for _ in pair]
        for other, shingles in zip(others, pair, strict=True):
            other.update_batch([int(x).to_bytes(8, "little") for x in shingles])
        ours.append(np.mean(a == b))
        theirs.append(others[0].jaccard(others[1]))
    assert abs(np.mean(ours) - np.mean(theirs)) < 0.04


def test_bands_find_95_percent_of_the_pairs_of_similarity_08():
    """Against exact Jaccard similarity, over pairs just above the threshold: the hardest ones."""
    rng = np.random.default_rng(2)
    originals = some_texts(500)
    texts = [t for text in originals for t in (text, edited(text, int(rng.integers(1, 5)), rng))]
    shingles = [shingle_hashes(words_of(text)) for text in texts]
    exact = {(i, i + 1): jaccard(shingles[i], shingles[i + 1]) for i in range(0, len(texts), 2)}
    near = {pair for pair, similarity in exact.items() if 0.8 <= similarity <= 0.9}
    found = candidate_pairs(band_keys(np.stack([MinHash().signature(s) for s in shingles])))
    assert len(near) > 100
    recall = len(near & found) / len(near)
    assert recall >= 0.95, recall
    # The whole decision, too: a later copy goes, nothing else does.
    decided = near_duplicates(texts)
    gone = {(int(decided.first[i]), int(i)) for i in np.flatnonzero(decided.first >= 0)}
    wanted = {pair for pair, similarity in exact.items() if similarity >= 0.8}
    assert gone <= wanted and len(gone) >= 0.95 * len(wanted)
    assert all(exact[pair] == pytest.approx(decided.similarity[pair[1]]) for pair in gone)


def test_the_s_curve_is_the_share_of_pairs_that_meet():
    rng = np.random.default_rng(3)
    assert collision_probability(0.8, 20, 6) > 0.99 and collision_probability(0.3, 20, 6) < 0.02
    similarity, bands, rows = 0.6, 6, 4
    signatures = rng.integers(0, 2**31, (2, 4000, bands * rows)).astype(np.uint32)
    same = rng.random(signatures.shape[1:]) < similarity
    signatures[1][same] = signatures[0][same]
    a, b = (band_keys(s, bands, rows) for s in signatures)
    assert (a == b).any(axis=1).mean() == pytest.approx(collision_probability(similarity, bands, rows), abs=0.03)


def test_the_first_copy_stays_and_empty_texts_are_nobody_s_copies():
    text = some_texts(1)[0]
    found = near_duplicates(["", text, text.upper() + "!", "", "a few words", "A few words."])
    assert found.first.tolist() == [-1, -1, 1, -1, -1, 4]
    assert found.kept.tolist() == [0, 1, 3, 4]


def test_a_bucket_never_grows_without_end():
    index = corpus.Index()
    for number in range(200):  # one band in common, and nothing else
        index.add(number, np.arange(100 * number, 100 * number + 100, dtype=np.uint64), np.array([7, number + 1000]))
    assert len(index._buckets[0, 7]) <= 16


# --- steps on one document --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SENTENCE * 3, ""),
        ("Three words only.", "too short"),
        ("a b c d " * 20, "words of odd length"),
        ("1.0 2.00 33.1 ==== |||| " * 20, "not words"),
        ("Click here to continue reading\n" * 20, "lines repeat"),
        ("\n".join(f"- item number {i} of the list" for i in range(20)), "only bullets"),
        ("这是一篇关于语言模型的文章。" * 10, ""),
    ],
)
def test_each_rule_names_what_it_removes(text, reason):
    assert Rules()(text) == (text, reason)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The house stands at the end of the road, and nobody knows who built it or when that was.", "en"),
        ("Das Haus steht am Ende der Straße, und niemand weiß, wer es gebaut hat und wann das war.", "de"),
        ("La maison se trouve au bout de la rue, et personne ne sait qui l'a construite dans le village.", "fr"),
        ("La casa está al final de la calle y nadie sabe quién la construyó ni cuándo fue para los demás.", "es"),
        ("这座房子在路的尽头,没有人知道是谁建造的。", "zh"),
        ("この家は道の終わりにあり、だれが建てたのかだれも知りません。", "ja"),
        ("Дом стоит в конце дороги, и никто не знает, кто его построил.", "ru"),
        ("xyzzy plugh frobnicate 42 quux", "unknown"),
        ("12345", "unknown"),
    ],
)
def test_the_language_of_a_sentence(text, code):
    assert language(text) == code
    assert Language("en")(text)[1] == ("" if code == "en" else f"language: {code}")


def test_a_document_that_holds_thirteen_words_of_a_test_item_goes():
    item = "Which of the seven keepers lit the lamp on the night of the great storm in March?"
    short, step = "Who lit the lamp?", None
    step = Decontaminate.against([item, short], n=13)
    run = " ".join(item.split()[2:15])
    assert step(f"Some page. {run.upper()} and so on.")[1] == "shares 13 words with a test item"
    assert step(f"Some page. {' '.join(item.split()[2:14])} and so on.")[1] == ""
    assert step("Who lit the lamp? Nobody knows.")[1] == ""  # four words say too little
    eight = Decontaminate.against(["one two three four five six seven eight"])
    assert eight("zero One, two; three four five six seven eight nine")[1] == "shares 8 words with a test item"


def test_the_language_model_sums_to_one_and_prefers_what_it_knows():
    model = ByteNgram.train([SENTENCE * 5, "Bytes: äöü € and more."], order=4)
    text = "The quick s"
    every = sum(model.probabilities(text.encode() + bytes([b]))[-1] for b in range(256))
    assert every == pytest.approx(1.0, abs=1e-9)
    assert model.bits_per_byte("the crew went home") < 3 < model.bits_per_byte("zqx#7 kvJ|w9!!Zp")
    assert model.bits_per_byte("") == 0.0
    untrained = ByteNgram.train([], order=3)
    assert untrained.bits_per_byte("anything") == pytest.approx(8.0)


def test_quality_drops_noise_and_what_only_repeats_itself():
    rng = np.random.default_rng(0)
    words = SENTENCE.split()
    trusted = [" ".join(rng.permutation(words * 3)) for _ in range(60)]
    step = Quality.trusted(trusted)
    assert step(" ".join(rng.permutation(words * 3)))[1] == ""
    noise = "".join(map(chr, rng.integers(33, 127, 300)))
    assert step(noise)[1] == "hard to predict"
    with pytest.raises(corpus.PanguLabError, match="too few"):
        Quality.trusted(["one"])


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+lab@mail.example.org today", "write to <EMAIL> today"),
        ("call +49 89 1234 5678 or (212) 555-0123.", "call <PHONE> or <PHONE>."),
        ("host 192.168.0.254, not 300.1.1.1", "host <IP>, not 300.1.1.1"),
        ("AKIAABCDEFGHIJKLMNOP and ghp_" + "a1" * 18, "<KEY> and <KEY>"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "<KEY>"),
        ("2024-05-17, version 2.13.0, 3.14159, page 123-456", "2024-05-17, version 2.13.0, 3.14159, page 123-456"),
        ("an @ alone, a@b, @handle", "an @ alone, a@b, @handle"),
    ],
)
def test_secrets_are_masked_and_dates_are_not(text, masked):
    found, counts = mask_secrets(text)
    assert found == masked
    assert sum(counts.values()) == masked.count("<")
    assert MaskSecrets()(text) == (masked, "")


# --- reading ----------------------------------------------------------------------------------------


def test_what_is_no_text_is_skipped_with_a_reason(tmp_path):
    files = {
        "good.txt": "Grüße".encode(),
        "bom.txt": b"\xef\xbb\xbfwith a mark",
        "latin.txt": "Grüße".encode("latin-1"),
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "control.bin": bytes(range(1, 32)) * 10,
        "line.txt": b"x" * 1_500_000,
        "large.txt": b"word " * 2_100_000,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    skipped = Skipped()
    names = [*files, "missing.txt"]
    rows = list(read_files([(name, tmp_path / name) for name in names], skipped))
    assert [(row["source"], row["text"]) for row in rows] == [("good.txt", "Grüße"), ("bom.txt", "with a mark")]
    assert skipped.counts == {
        "not UTF-8": 1,
        "binary": 2,
        "a line of more than 1,000,000 bytes": 1,
        "larger than 10,000,000 bytes": 1,
        "cannot be read: No such file or directory": 1,
    }
    assert skipped.examples["binary"] == ["picture.png", "control.bin"]


def test_one_line_of_50_mb_is_read_over_in_little_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "lines.txt"
    with open(path, "wb") as file:
        file.write(b"first\n")
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b"\nlast\n\n\xff\xfe\n")
    skipped = Skipped()
    tracemalloc.start()
    rows = list(read_lines(path, skipped))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row["text"] for row in rows] == ["first", "last"]
    assert skipped.counts == {"a line of more than 1,000,000 bytes": 1, "not UTF-8": 1}
    assert skipped.examples["not UTF-8"] == ["lines.txt:5"]
    assert peak < 10_000_000


def test_the_opening_of_a_source_file_is_its_comment_and_its_docstring():
    source = "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n# Copyright 2020 Someone\n#\n# Free to use.\n\n"
    rest = "import os\n# a later comment\n"
    assert opening(source + rest) == "Copyright 2020 Someone\n\nFree to use."
    assert opening(source + 'r"""Says what\nit does."""\n' + rest) == (
        "Copyright 2020 Someone\n\nFree to use.\n\nSays what\nit does."
    )
    assert opening(f"'''Only words.'''\n{rest}") == "Only words."
    assert opening('"""A docstring that was cut off') == "A docstring that was cut off"
    assert opening(rest) == opening("") == ""


def test_the_crawl_of_installed_packages_is_real_and_repeats_itself():
    """The same texts for the same seed; every tenth opening at least is nearly the same as another."""
    skipped = Skipped()
    files = installed_documents(5, seed=1)
    assert len(files) == 5 and files == installed_documents(5, seed=1) and all(path.is_file() for _, path in files)
    rows = [*source_openings(300, skipped, seed=1)]
    assert len(rows) == 300 and rows[:20] == [*source_openings(20, Skipped(), seed=1)]
    assert all(len(row["text"].split()) >= LEAST and row["source"].endswith(".py") for row in rows)
    assert (near_duplicates(row["text"] for row in rows).first >= 0).sum() > 30


# --- the pipeline -----------------------------------------------------------------------------------


def rows(count=60):
    rng = np.random.default_rng(5)
    texts = [f"{SENTENCE} {text.replace('w', 'word')}" for text in some_texts(count)]
    texts[7] = edited(texts[3], 2, rng)
    texts[11] = texts[4]
    texts[20] = "short"
    texts[21] += " mail me@example.org"
    return [{"text": text, "source": f"doc-{i}"} for i, text in enumerate(texts)]


STEPS = (Normalize(), Rules(), Deduplicate(), MaskSecrets())


def test_each_step_reports_what_it_removed_with_examples(tmp_path):
    result, reports = Pipeline(tmp_path, STEPS).run(rows())
    _, rules, repeats, secrets = reports
    assert (rules.before, rules.after, rules.removed) == (60, 59, {"too short": 1})
    assert rules.examples == {"too short": [["doc-20", "short"]]}
    assert repeats.removed == {"nearly the same": 1, "the same words": 1}
    assert [repeats.examples[reason][0][0] for reason in repeats.removed] == ["doc-7", "doc-11"]
    assert secrets.changed == 1 and secrets.after == secrets.before == len(result) == 57
    assert secrets.characters_after < secrets.characters_before
    assert "<EMAIL>" in next(row["text"] for row in result if row["source"] == "doc-21")
    assert "57 documents" in str(secrets)


def test_a_step_that_is_done_is_not_done_again_and_half_done_work_is_not_used(tmp_path, monkeypatch):
    first, reports = Pipeline(tmp_path, STEPS).run(rows())
    texts, done = first["text"][:], []
    make = Pipeline._make
    monkeypatch.setattr(Pipeline, "_make", lambda self, c, step, t: (done.append(step.name), make(self, c, step, t)))
    second, again = Pipeline(tmp_path, STEPS).run(rows())
    assert done == [] and second["text"][:] == texts and again == reports
    # A step that was killed leaves no report; it alone is made again, and with it nothing before.
    folder = next(tmp_path.glob("03-*"))
    (folder / "report.json").unlink()
    assert Pipeline(tmp_path, STEPS).run(rows())[0]["text"][:] == texts and done == ["near-duplicates"]
    # Another setting, another result; what stands before it is found.
    done.clear()
    Pipeline(tmp_path, (Normalize(), Rules(least_words=3), *STEPS[2:])).run(rows())
    assert done == ["rules", "near-duplicates", "mask secrets"]
    assert not list(tmp_path.glob(".*"))  # no scratch is left


def test_an_interruption_leaves_what_was_finished(tmp_path):
    class Stop:
        name = "stop"

        def __call__(self, text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline(tmp_path, (*STEPS[:2], Stop())).run(rows())
    assert sorted(path.name[:2] for path in tmp_path.iterdir()) == ["00", "01", "02"]


def test_one_process_and_two_give_the_same_and_so_does_a_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PAYS_FROM", 10)
    one, _ = Pipeline(tmp_path / "one", STEPS, processes=1).run(rows())
    two, _ = Pipeline(tmp_path / "two", STEPS, processes=2).run(rows())
    stream = datasets.Dataset.from_list(rows()).to_iterable_dataset()
    three, _ = Pipeline(tmp_path / "three", STEPS).run(stream)
    assert one[:] == two[:] == three[:]


def test_what_cannot_be_a_corpus_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(CorpusError, match="no documents"):
        Pipeline(tmp_path, STEPS).run([])
    with pytest.raises(CorpusError, match="document 0 has no column 'text'"):
        Pipeline(tmp_path, STEPS).run([{"content": "x"}])
    with pytest.raises(CorpusError, match="nothing is left after the step 'rules'"):
        Pipeline(tmp_path, STEPS).run([{"text": "x"}])


def test_the_report_on_disk_is_plain_json(tmp_path):
    Pipeline(tmp_path, STEPS[:2]).run(rows())
    report = json.loads(next(tmp_path.glob("02-*/report.json")).read_text(encoding="utf-8"))
    assert report["step"] == "rules" and report["removed"] == {"too short": 1}


# --- mixing and packing -----------------------------------------------------------------------------


def test_a_mixture_has_the_shares_that_were_asked_for():
    plan = mixture({"web": 8000, "books": 500}, {"web": 3, "books": 1}, total=4000)
    assert plan["web"].epochs == pytest.approx(3000 / 8000) and plan["books"].epochs == pytest.approx(2.0)
    parts = {name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(n)]})
             for name, n in (("web", 80), ("books", 5))}  # fmt: skip
    epochs = {name: share.epochs for name, share in plan.items()}
    mixed = mix(parts, epochs, seed=1)["text"][:]
    assert sum(t.startswith("web") for t in mixed) == 30 and len(set(mixed)) == 35
    assert all(mixed.count(f"books {i}") == 2 for i in range(5))
    assert mixed == mix(parts, epochs, seed=1)["text"][:] != mix(parts, epochs, seed=2)["text"][:]


@pytest.mark.parametrize(
    ("tokens", "weights", "message"),
    [
        ({"a": 1}, {"b": 1}, "'a' is not in both"),
        ({"a": 1}, {"a": -1}, "0 or more"),
        ({"a": 0, "b": 1}, {"a": 1, "b": 1}, "'a' has no tokens"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(tokens, weights, message):
    with pytest.raises(CorpusError, match=message):
        mixture(tokens, weights, 10)


def test_packing_loses_nothing_but_the_end():
    documents = [[1, 2, 3], [], [4], list(range(10, 30))]
    found = list(pack(documents, 4, end=0))
    stream = [token for document in documents for token in (*document, 0)]
    assert [token for block in found for token in block] == stream[: len(stream) // 4 * 4]
    assert all(len(block) == 4 for block in found)
    assert list(pack([[1]], 4, 0)) == []
