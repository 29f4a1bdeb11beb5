"""The synthetic world: any amount of small coherent documents whose distribution is known exactly.

Every document comes with what annotators would add to real text: parts of speech, named entities, the
order of sentences, questions with answer spans, the author's opinion, and a Chinese translation. The same
seed gives the same documents on every platform: only whole numbers decide.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from datasets import IterableDataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pangu_lab.data import world_grammar as grammar
from pangu_lab.data.world_grammar import Template
from pangu_lab.errors import PanguLabError

BLOCK = 64  # documents that share one stream of random numbers; any block can be drawn on its own
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(20))
POS_TAGS = ("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "NOUN", "NUM", "PRON", "PROPN", "PUNCT", "VERB")
NER_TAGS = ("O", "PER", "LOC", "ORG")


class WorldError(PanguLabError):
    """The world was asked for what it cannot give."""


class Hidden(NamedTuple):
    """What a document is about; whoever knows it knows the weights of all its words."""

    hero: int
    topic: int
    thing: int  # of all things of all topics
    opinion: int  # 0 negative, 1 positive


@dataclass(frozen=True)
class Document:
    """A document. ``starts`` are the positions of its sentences' first tokens; the lists run in parallel."""

    tokens: tuple[str, ...]
    pos: tuple[str, ...]
    ner: tuple[str, ...]
    starts: tuple[int, ...]
    templates: tuple[int, ...]
    hidden: Hidden

    @property
    def text(self) -> str:
        return " ".join(self.tokens)

    def sentences(self) -> list[tuple[str, ...]]:
        ends = (*self.starts[1:], len(self.tokens))
        return [self.tokens[start:end] for start, end in zip(self.starts, ends, strict=True)]


class Question(NamedTuple):
    """A question on a document: the answer is its token ``answer``, one token long."""

    text: str
    answer: int


class Slot(NamedTuple):
    """One place of a template: a category of words, or (``category`` empty) the word itself."""

    category: str
    word: str
    pos: str
    ner: str


@dataclass(frozen=True)
class World:
    """A world of documents: the course's own by default; tests make smaller ones.

    Parameters
    ----------
    words, templates, next_stage
        As in ``world_grammar``.
    heroes, women, topics, things
        How many values each hidden choice has; ``things`` for each topic.
    """

    words: grammar.Words = field(default_factory=lambda: grammar.WORDS)
    templates: tuple[Template, ...] = grammar.TEMPLATES
    next_stage: Mapping[int, tuple[int, ...]] = field(default_factory=lambda: grammar.NEXT_STAGE)
    heroes: int = len(grammar.HEROES)
    women: int = grammar.WOMEN
    topics: int = len(grammar.TOPICS)
    things: int = len(grammar.THINGS["sea"])

    def value_of(self, category: str, hidden: Hidden) -> int | None:
        """The hidden value that a category's words depend on; None if they depend on nothing."""
        match category:
            case "hero":
                return hidden.hero
            case "pronoun" | "object":
                return int(hidden.hero >= self.women)
            case "place" | "firm" | "item":
                return hidden.topic
            case "thing":
                return hidden.thing
            case "quality" | "opposite" | "felt":
                return hidden.opinion
            case _:
                return None

    def key(self, category: str, hidden: Hidden) -> str:
        """The key of a category's words in ``words``."""
        value = self.value_of(category, hidden)
        return category if value is None else f"{category}:{value}"

    def all_hidden(self) -> list[Hidden]:
        """Every combination of hidden choices; all are equally likely."""
        return [
            Hidden(hero, thing // self.things, thing, opinion)
            for hero in range(self.heroes)
            for thing in range(self.topics * self.things)
            for opinion in range(2)
        ]

    @cached_property
    def slots(self) -> tuple[tuple[Slot, ...], ...]:
        """The places of each template, in order."""
        return tuple(tuple(_slot(part) for part in template.english.split()) for template in self.templates)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Special tokens, sentinels, then all English and all Chinese words, each sorted."""
        english, chinese = {"?"}, {"。", ","}
        for template in self.templates:
            asked = " ".join(question for question, _ in template.questions)
            english |= {word for word in f"{template.english} {asked}".split() if not word.startswith("{")}
            chinese |= {word for word in template.chinese.split() if not word.startswith("{")}
        for entries in self.words.values():
            english |= {word for word, _, _ in entries}
            chinese |= {word for _, word, _ in entries}
        return (*SPECIAL, *SENTINELS, *sorted(english), *sorted(chinese - english))

    @cached_property
    def _tables(self) -> dict[str, tuple[list[int], list[str]]]:
        """For each key the running sums of its weights, and its words."""
        return {
            key: (list(accumulate(weight for *_, weight in entries)), [word for word, *_ in entries])
            for key, entries in self.words.items()
        }

    @cached_property
    def _stages(self) -> dict[int, tuple[list[int], list[int]]]:
        by_stage = {}
        for stage in {template.stage for template in self.templates}:
            members = [i for i, template in enumerate(self.templates) if template.stage == stage]
            by_stage[stage] = list(accumulate(self.templates[i].weight for i in members)), members
        return by_stage

    def documents(self, seed: int, start: int = 0, count: int | None = None) -> Iterator[Document]:
        """Documents number ``start``, ``start + 1``, … of the world of a seed; endless without ``count``."""
        if start < 0 or (count is not None and count < 0):
            raise WorldError(f"documents number {start} to {start}+{count} do not exist; both must be at least 0")
        number = start
        while count is None or number < start + count:
            block, skip = divmod(number, BLOCK)
            for document in self._block(seed, block)[skip:]:
                if count is not None and number >= start + count:
                    return
                yield document
                number += 1

    def _block(self, seed: int, block: int) -> list[Document]:
        bits = np.random.PCG64(np.random.SeedSequence([seed, block]))
        stream: list[int] = []

        def draw(sums: list[int]) -> int:
            """An index by whole-number weights: the high half of 64 bits, scaled; exact on every platform."""
            if not stream:
                # Only the raw bits are the same in every version of numpy; its distributions are not.
                stream.extend(bits.random_raw(4096).tolist())
            return bisect_right(sums, (stream.pop() >> 32) * sums[-1] >> 32)

        return [self._document(draw) for _ in range(BLOCK)]

    def _document(self, draw: Any) -> Document:
        even = self._even_sums
        topic = draw(even[0])
        hidden = Hidden(draw(even[1]), topic, topic * self.things + draw(even[2]), draw(even[3]))
        tables, slots = self._tables, self.slots
        keys = {category: self.key(category, hidden) for category in self._categories}
        tokens: list[str] = []
        tagged: list[Slot] = []
        starts, templates = [], []
        stage = 0
        while stage >= 0:
            sums, members = self._stages[stage]
            template = members[draw(sums)]
            starts.append(len(tokens))
            templates.append(template)
            for slot in slots[template]:
                if slot.category:
                    sums, words = tables[keys[slot.category]]
                    tokens.append(words[draw(sums)] if len(words) > 1 else words[0])
                else:
                    tokens.append(slot.word)
            tagged += slots[template]
            step = draw(self._next_sums[stage])
            stage = step + 1 if step < 3 else -1
        pos, ner = tuple(slot.pos for slot in tagged), tuple(slot.ner for slot in tagged)
        return Document(tuple(tokens), pos, ner, tuple(starts), tuple(templates), hidden)

    @cached_property
    def _even_sums(self) -> tuple[list[int], ...]:
        return tuple(list(range(1, n + 1)) for n in (self.topics, self.heroes, self.things, 2))

    @cached_property
    def _next_sums(self) -> dict[int, list[int]]:
        return {stage: list(accumulate(weights)) for stage, weights in self.next_stage.items()}

    @cached_property
    def _categories(self) -> tuple[str, ...]:
        return tuple(sorted({slot.category for template in self.slots for slot in template if slot.category}))

    def questions(self, document: Document) -> list[Question]:
        """All questions on a document that have one answer; the answer is a token of the document."""
        asked: dict[str, set[int]] = {}
        for start, number in zip(document.starts, document.templates, strict=True):
            places = {slot.category: start + i for i, slot in enumerate(self.slots[number]) if slot.category}
            known = {"hero": self.words[f"hero:{document.hidden.hero}"][0][0]}
            known |= {category: document.tokens[place] for category, place in places.items()}
            for question, answer in self.templates[number].questions:
                asked.setdefault(question.format(**known), set()).add(places[answer])
        return [
            Question(text, min(places))
            for text, places in asked.items()
            if len({document.tokens[place] for place in places}) == 1
        ]

    def translate(self, document: Document) -> list[tuple[str, str]]:
        """The document's sentences, each with its Chinese translation, words separated by spaces."""
        pairs = []
        for number, sentence in zip(document.templates, document.sentences(), strict=True):
            chinese: dict[str, list[str]] = {}
            for slot, word in zip(self.slots[number], sentence, strict=True):
                if slot.category:
                    entries = self.words[self.key(slot.category, document.hidden)]
                    chinese.setdefault(slot.category, []).append(next(c for e, c, _ in entries if e == word))
            words = [chinese[w[1:-1]].pop(0) if w[0] == "{" else w for w in self.templates[number].chinese.split()]
            pairs.append((" ".join(sentence), " ".join(words)))
        return pairs

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer with one token for every word of the world, Chinese included; [CLS] and [SEP] as BERT's."""
        ids = {token: i for i, token in enumerate(self.vocabulary)}
        tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            extra_special_tokens=list(SENTINELS),
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )

    def dataset(self, seed: int, count: int) -> IterableDataset:
        """The same documents as a streaming ``datasets`` object, in shards for workers and devices."""
        blocks = list(range(-(-count // BLOCK)))
        return IterableDataset.from_generator(_rows, gen_kwargs={"world": self, "seed": seed, "blocks": blocks})


def _rows(world: World, seed: int, blocks: Sequence[int]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        for document in world.documents(seed, block * BLOCK, BLOCK):
            yield {
                "text": document.text,
                "tokens": list(document.tokens),
                "pos": list(document.pos),
                "ner": list(document.ner),
                "starts": list(document.starts),
                "opinion": document.hidden.opinion,
                "topic": document.hidden.topic,
            }


def _slot(part: str) -> Slot:
    if part.startswith("{"):
        category = part[1:-1]
        return Slot(category, "", grammar.POS[category], grammar.NER.get(category, "O"))
    return Slot("", part, grammar.FIXED_POS[part], "O")
