"""From raw text to the pieces a model reads: cleaning, words, WordPiece.

``wordpiece`` is the algorithm in ten lines; a tokenizer that is trained, saved and used for work comes from
the ``tokenizers`` library through ``train_wordpiece``. A test proves that both cut words alike.
"""

import html
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pangu_lab.errors import PanguLabError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100  # characters; a longer word is unknown, as in BERT

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,300}>")
_SPACES = re.compile(r"[^\S\n]+")
# Categories Cc and Cf, private use and what is never a character; tab, line feed, form feed, joiners stay.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff]"
)
_LINES = re.compile(r" ?\n(?: ?\n)+ ?")


class VocabularyError(PanguLabError):
    """A vocabulary cannot be trained or used as asked."""


def clean(text: str) -> str:
    """Undo what the web did to a text and keep its lines.

    Tags become spaces, entities characters (once, so that a text *about* ``&amp;`` stays one), Unicode its
    composed form (NFC). Control characters, direction marks and private characters go; runs of spaces become one, and of empty
    lines one empty line.
    """
    text = html.unescape(_TAG.sub(" ", text))
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _CONTROL.sub("", text)
    return _LINES.sub("\n\n", _SPACES.sub(" ", text)).strip()


def bert_words(text: str, lower: bool = True) -> list[str]:
    """Cut a text into words and punctuation marks as BERT does before WordPiece (Devlin et al. 2019).

    Punctuation and Chinese characters each stand alone; with ``lower``, case and accents are dropped.
    """
    if lower:
        text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn").lower()
    spaced = "".join(f" {c} " if _alone(c) else c for c in text if c in "\t\n\r" or unicodedata.category(c)[0] != "C")
    return spaced.split()


def _alone(c: str) -> bool:
    """ASCII signs count as punctuation, too, though Unicode calls some of them symbols."""
    code = ord(c)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    chinese = 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2CEAF
    return chinese or 0xF900 <= code <= 0xFAFF or 0x2F800 <= code <= 0x2FA1F or unicodedata.category(c)[0] == "P"


def wordpiece(word: str, vocabulary: Mapping[str, int] | set[str], unknown: str = "[UNK]") -> list[str]:
    """Cut one word into the longest pieces that the vocabulary has, from left to right (Wu et al. 2016).

    A piece that does not begin the word carries the mark ``##``. Where no piece fits, the *whole* word is
    unknown, and so is a word of more than 100 characters. At most ``len(word)²`` look-ups.
    """
    if len(word) > LONGEST_WORD:
        return [unknown]
    pieces, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        fitting = (end for end in range(len(word), start, -1) if mark + word[start:end] in vocabulary)
        end = next(fitting, None)
        if end is None:
            return [unknown]
        pieces.append(mark + word[start:end])
        start = end
    return pieces


def train_wordpiece(texts: Iterable[str], size: int, lower: bool = True, least: int = 2) -> Any:
    """Train a WordPiece vocabulary; hand back a ``PreTrainedTokenizerFast`` that saves and loads as any other.

    Parameters
    ----------
    texts
        Held in memory as a list; a few ten megabytes are plenty for a vocabulary.
    size
        Pieces in the vocabulary, the five special ones included. Small data may have fewer to give.
    least
        A pair of pieces is joined only if it occurs that often.

    Raises
    ------
    VocabularyError
        ``size`` leaves no room for pieces, or the texts have no words.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if size < len(SPECIAL) + 10:
        raise VocabularyError(f"size is {size}; a vocabulary needs {len(SPECIAL) + 10} pieces or more")
    texts = list(texts)
    normalizer, words = normalizers.BertNormalizer(lowercase=lower), pre_tokenizers.BertPreTokenizer()
    # Rare characters beyond the limit become unknown: without one, the alphabet of a crawl fills the vocabulary.
    counts = Counter(c for text in texts for c in set(normalizer.normalize_str(text)) if not c.isspace())
    if not counts:
        raise VocabularyError("the texts have no words, so there is nothing to train a vocabulary on")
    alphabet = sorted(sorted(counts, key=lambda c: (-counts[c], c))[: max(10, min(1000, size // 4))])
    # The trainer numbers letters inside words in the order of a hash table that changes from run to run, and breaks
    # ties by number. Named as special tokens they have fixed numbers, and so the same texts give the same pieces.
    inner = [f"##{c}" for c in alphabet if c.isalnum() and not _alone(c)][: max(0, size // 2 - len(SPECIAL))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=least, special_tokens=[*SPECIAL, *inner], show_progress=False,
        initial_alphabet=alphabet, limit_alphabet=len(alphabet), continuing_subword_prefix="##",
    )  # fmt: skip
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, words
    trained.train_from_iterator(texts, trainer)
    ids = trained.get_vocab()
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=inputs, **dict(zip(names, SPECIAL, strict=True))
    )


def token_ids(texts: Iterable[str], tokenizer: Any, batch: int = 256) -> Iterator[list[int]]:
    """Token ids of each text, uncut and without special tokens; a batch at a time, so memory does not grow."""
    rest = iter(texts)
    while waiting := list(itertools.islice(rest, batch)):
        encoded = tokenizer(
            waiting, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        yield from encoded["input_ids"]
