"""The synthetic world: the same everywhere, well annotated, and its floor is what enumeration says it is."""

import hashlib
import itertools
import math

import numpy as np
import pytest

from pangu_lab.data import world_grammar
from pangu_lab.data.world import NER_TAGS, POS_TAGS, Document, Hidden, World, WorldError
from pangu_lab.data.world_floor import Corrupted, Oracle, corrupt, floor_of, mlm_floor, next_token_floor
from pangu_lab.data.world_grammar import Template


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def oracle(world):
    return Oracle(world)


def test_the_same_seed_gives_these_very_documents_on_every_platform(world):
    text = "\n".join(document.text for document in world.documents(0, 0, 500))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "e980794913f68815"


def test_any_part_of_the_stream_is_the_same(world):
    whole = list(world.documents(3, 0, 150))
    assert list(world.documents(3, 60, 20)) == whole[60:80]
    assert next(world.documents(4)) != whole[0]
    streamed = [row["text"] for row in world.dataset(3, 128)]
    assert streamed == [document.text for document in whole[:128]]
    with pytest.raises(WorldError, match="at least 0"):
        next(world.documents(0, -1))


def test_shards_of_the_stream_split_it(world):
    stream = world.dataset(3, 256)
    parts = [[row["text"] for row in stream.shard(2, i)] for i in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(d.text for d in world.documents(3, 0, 256)) and all(parts)


def test_documents_are_annotated(world):
    for document in world.documents(1, 0, 300):
        assert len(document.tokens) == len(document.pos) == len(document.ner)
        assert set(document.pos) <= set(POS_TAGS) and set(document.ner) <= set(NER_TAGS)
        assert all(sentence[-1] == "." for sentence in document.sentences())
        stages = [world.templates[i].stage for i in document.templates]
        assert stages == sorted(stages) and {0, 1, 2, 3} == set(stages)
        hero = world.words[f"hero:{document.hidden.hero}"][0][0]
        assert hero in document.tokens and ("she" in document.tokens) <= (document.hidden.hero < world.women)


def test_questions_have_one_answer_in_the_text(world):
    asked = 0
    for document in world.documents(2, 0, 300):
        for question in world.questions(document):
            asked += 1
            assert 0 <= question.answer < len(document.tokens) and question.text.endswith("?")
            assert document.pos[question.answer] in ("PROPN", "NOUN", "ADJ", "NUM")
    assert asked > 600


def test_translations_hold_the_same_slots(world):
    for document in world.documents(5, 0, 100):
        pairs = world.translate(document)
        assert [english for english, _ in pairs] == [" ".join(s) for s in document.sentences()]
        assert all("{" not in chinese and chinese.endswith("。") for _, chinese in pairs)
    english, chinese = world.translate(next(world.documents(0)))[0]
    assert english == "paul worked for alpina in the valley ." and chinese == "保罗 在 山谷 为 高山公司 工作 。"


def test_synonyms_stand_in_the_same_slots_with_the_same_weight(world):
    for first, second in world_grammar.SYNONYMS:
        for entries in world.words.values():
            weights = {word: weight for word, _, weight in entries}
            assert weights.get(first) == weights.get(second)


def test_the_tokenizer_knows_every_word_and_saves(world, tmp_path):
    tokenizer = world.tokenizer()
    document = next(world.documents(0))
    ids = tokenizer(document.text)["input_ids"]
    assert tokenizer.unk_token_id not in ids and len(ids) == len(document.tokens) + 2
    pair = tokenizer("anna met .", "她 她")
    assert pair["token_type_ids"] == [0] * 5 + [1] * 3 and tokenizer.unk_token_id not in pair["input_ids"]
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again(document.text)["input_ids"] == ids and again.mask_token == "[MASK]"
    assert len(tokenizer) == len(world.vocabulary)


# --- the floor -----------------------------------------------------------------------------------------------

SMALL = World(
    words={
        "hero:0": (("ann", "安", 1),),
        "hero:1": (("bob", "鲍", 1),),
        "pronoun:0": (("she", "她", 1),),
        "pronoun:1": (("he", "他", 1),),
        "thing:0": (("boat", "船", 1),),
        "thing:1": (("net", "网", 1),),
        "quality:0": (("bad", "坏", 3), ("good", "好", 1)),
        "quality:1": (("bad", "坏", 1), ("good", "好", 3)),
    },
    templates=(
        Template(0, 1, "{hero} met .", ""),
        Template(0, 2, "{hero} bought the {thing} .", ""),
        Template(1, 3, "{pronoun} met .", ""),
        Template(1, 1, "the {thing} was {quality} .", ""),
    ),
    next_stage={0: (2, 0, 0, 1), 1: (1, 0, 0, 2)},
    heroes=2,
    women=1,
    topics=1,
    things=2,
)


def every_document(world, length):
    """All documents of a length with their probabilities, by brute force: no forward sums, no shortcuts."""
    found: dict[tuple[str, ...], float] = {}

    def go_on(tokens, stage, probability, hidden):
        members = [(i, t) for i, t in enumerate(world.templates) if t.stage == stage]
        for number, template in members:
            share = probability * template.weight / sum(t.weight for _, t in members)
            options = [
                [(w, x) for w, _, x in world.words[world.key(slot.category, hidden)]]
                if slot.category
                else [(slot.word, 1)]
                for slot in world.slots[number]
            ]
            total = math.prod(sum(x for _, x in option) for option in options)
            for choice in itertools.product(*options):
                words = (*tokens, *(w for w, _ in choice))
                p = share * math.prod(x for _, x in choice) / total
                weights = world.next_stage[stage]
                if len(words) == length:
                    found[words] = found.get(words, 0.0) + p * weights[3] / sum(weights)
                elif len(words) < length:
                    for index, weight in enumerate(weights[:3]):
                        if weight:
                            go_on(words, index + 1, p * weight / sum(weights), hidden)

    for hidden in world.all_hidden():
        go_on((), 0, 1 / len(world.all_hidden()), hidden)
    return found


@pytest.fixture(scope="module")
def small():
    return Oracle(SMALL, replacements=("ann", "bob", "boat", "good", "."), rate=0.3)


def made(tokens):
    return Document(tuple(tokens), (), (), (0,), (), Hidden(0, 0, 0, 0))


@pytest.mark.parametrize("length", [3, 6, 8, 11])
def test_documents_have_the_probability_that_counting_gives(small, length):
    documents = every_document(SMALL, length)
    assert documents
    for tokens, probability in documents.items():
        assert small.next_token_losses(made(tokens)).sum() == pytest.approx(-math.log(probability), rel=1e-4)


def test_masked_tokens_have_the_probability_that_counting_gives(small):
    """Bayes by brute force: every document of that length, every way it could have been corrupted."""
    rng = np.random.default_rng(0)
    documents = every_document(SMALL, 11)
    tokens = sorted(documents)
    for _ in range(60):
        corrupted = corrupt(small, made(tokens[rng.integers(len(tokens))]), rng)
        for place, loss in zip(corrupted.selected, small.masked_losses(corrupted), strict=True):
            weights: dict[str, float] = {}
            for other, probability in documents.items():
                likelihood = probability
                for i, (word, seen) in enumerate(zip(other, corrupted.seen, strict=True)):
                    random = 0.1 / 5 * (seen in small.replacements)
                    if i == place:
                        likelihood *= 0.8 if seen is None else 0.1 * (seen == word) + random
                    elif seen is None:
                        likelihood *= 0.3 * 0.8
                    else:
                        likelihood *= (0.7 + 0.3 * 0.1) * (seen == word) + 0.3 * random
                weights[other[place]] = weights.get(other[place], 0.0) + likelihood
            truth = weights[corrupted.document.tokens[place]] / sum(weights.values())
            assert loss == pytest.approx(-math.log(truth), rel=2e-4, abs=1e-5)


def test_no_guesser_gets_below_the_floor(world, oracle, small):
    """Other predictors that know the grammar, but not all of it, lose on average (Gibbs' inequality)."""
    documents = list(world.documents(7, 0, 12))
    floor = floor_of(map(oracle.next_token_losses, documents))
    careless = World(next_stage=world.next_stage | {1: (2, 8, 0, 0)})  # believes that stories are short
    other = floor_of(map(Oracle(careless).next_token_losses, documents))
    assert floor.low < floor.value < other.value
    rng = np.random.default_rng(0)
    masked = [corrupt(small, document, rng) for document in SMALL.documents(0, 0, 400)]
    naive = Oracle(SMALL, replacements=sorted(small.replacements), rate=0.02)  # hardly expects a replaced token
    assert floor_of(map(small.masked_losses, masked)).value < floor_of(map(naive.masked_losses, masked)).value


def test_the_floor_counts_tokens_and_documents(world, oracle):
    documents = list(world.documents(9, 0, 6))
    tokens = sum(len(document.tokens) for document in documents)
    floor = next_token_floor(oracle, documents)
    assert floor.tokens == tokens + 6 and floor.documents == 6 and 0.3 < floor.value < 1.5
    masked = mlm_floor(oracle, documents)
    assert 0.1 * tokens < masked.tokens < 0.2 * tokens and masked.low < masked.value < masked.high


def test_masking_follows_80_10_10(world, oracle):
    rng = np.random.default_rng(0)
    kinds = {"masked": 0, "other": 0}
    for document in world.documents(0, 0, 400):
        corrupted = corrupt(oracle, document, rng)
        assert isinstance(corrupted, Corrupted)
        kinds["masked"] += sum(corrupted.seen[i] is None for i in corrupted.selected)
        kinds["other"] += sum(corrupted.seen[i] is not None for i in corrupted.selected)
        untouched = set(range(len(document.tokens))) - set(corrupted.selected)
        assert all(corrupted.seen[i] == document.tokens[i] for i in untouched)
    assert kinds["masked"] / sum(kinds.values()) == pytest.approx(0.8, abs=0.03)
