"""Pre-training from a corpus to a model: rows, batches that are masked anew in each epoch, losses, the run.

``pretrain`` is the whole way. A corpus is the synthetic world, text files, or any data set of the hub; the model an
encoder (BERT's objectives, Mengzi's SOP, POS and NER) or an encoder–decoder (masked words and spans).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pangu_lab import objectives
from pangu_lab.config import Train
from pangu_lab.data.world import NER_TAGS, POS_TAGS, SENTINELS, SPECIAL, Document, World
from pangu_lab.data.world_floor import Corrupted, Floor, Oracle, corrupt, floor_of
from pangu_lab.data.world_grammar import SYNONYMS
from pangu_lab.errors import PanguLabError
from pangu_lab.model import PanguConfig, PanguForPreTraining
from pangu_lab.model.copying import start_by_copying
from pangu_lab.model.denoising import PanguForDenoising
from pangu_lab.objectives import IGNORED, Draws
from pangu_lab.training import Job, Result, train

OBJECTIVES = ("mlm", "wwm", "nsp", "sop", "pos", "ner", "hard", "soft", "spans")
LIST_PADDING = {"token_type_ids": 0, "pos_labels": IGNORED, "ner_labels": IGNORED, "words": -1}


class PretrainingError(PanguLabError):
    """A model cannot be pre-trained in this way."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The ids that pre-training needs to know: special tokens, sentinels, and what a token may be replaced by."""

    size: int
    pad: int
    cls: int
    sep: int
    mask: int
    sentinels: np.ndarray
    replacements: np.ndarray
    synonyms: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as sentences of ids, their tags where there are any, and the tokens they are made of.

    ``words``, ``pos`` and ``ner`` run in parallel to the sentences' ids put together.
    """

    tokens: Tokens
    documents: Sequence[list[list[int]]]
    pos: Sequence[list[int]] = ()
    ner: Sequence[list[int]] = ()
    words: Sequence[list[int]] = ()
    name: str = ""


def parse_objectives(text: str) -> tuple[str, ...]:
    """``"mlm,sop,pos"`` to its names, in order.

    Raises
    ------
    PretrainingError
        An unknown name, no masking, or two that exclude each other.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in OBJECTIVES]
    if unknown:
        raise PretrainingError(f"{unknown[0]!r} is not an objective; there are {', '.join(OBJECTIVES)}")
    if not {"mlm", "wwm"} & set(names):
        raise PretrainingError("the objectives need mlm (or wwm, whole words): the others are added to it")
    if {"nsp", "sop"} <= set(names):
        raise PretrainingError("nsp and sop share one head; name one of them")
    if "spans" in names and set(names) - {"mlm", "wwm", "spans"}:
        raise PretrainingError("spans, the decoder's objective, goes with mlm or wwm only")
    return names


# --- corpora ----------------------------------------------------------------------------------------


def world_tokens(world: World) -> Tokens:
    """The ids of the world's tokens; only English words replace words, a Chinese one would stand out."""
    ids = {token: i for i, token in enumerate(world.vocabulary)}
    pairs = [(ids[a], ids[b]) for a, b in SYNONYMS if a in ids and b in ids]
    return Tokens(
        size=len(ids),
        pad=ids["[PAD]"],
        cls=ids["[CLS]"],
        sep=ids["[SEP]"],
        mask=ids["[MASK]"],
        sentinels=np.array([ids[token] for token in SENTINELS]),
        replacements=np.array([i for t, i in ids.items() if t.isascii() and t not in (*SPECIAL, *SENTINELS)]),
        synonyms=objectives.synonym_table(pairs, len(ids)),
    )


def world_corpus(world: World, documents: Iterable[Document], name: str = "world") -> Corpus:
    """Documents of the world with their tags."""
    ids = {token: i for i, token in enumerate(world.vocabulary)}
    pos, ner = ({tag: i for i, tag in enumerate(tags)} for tags in (POS_TAGS, NER_TAGS))
    listed = list(documents)
    return Corpus(
        world_tokens(world),
        [[[ids[token] for token in sentence] for sentence in document.sentences()] for document in listed],
        [[pos[tag] for tag in document.pos] for document in listed],
        [[ner[tag] for tag in document.ner] for document in listed],
        name=name,
    )


def text_corpus(texts: Iterable[str], tokenizer: Any, max_length: int, name: str = "texts") -> Corpus:
    """Texts, a line a sentence, in pieces of at most ``max_length`` tokens; texts without a token are left out."""
    documents: list[list[list[int]]] = []
    words: list[list[int]] = []
    room = max_length - 3  # [CLS], and a [SEP] after each of two segments
    for text in texts:
        piece: list[list[int]] = []
        numbers: list[int] = []
        for line in text.splitlines():
            encoded = tokenizer(line, add_special_tokens=False, verbose=False)
            line_ids, line_words = encoded["input_ids"], encoded.word_ids()
            for start in range(0, len(line_ids), room):
                ids, own = line_ids[start : start + room], line_words[start : start + room]
                if len(numbers) + len(ids) > room:
                    documents.append(piece)
                    words.append(numbers)
                    piece, numbers = [], []
                first = max(numbers, default=-1) + 1
                piece.append(ids)
                numbers += [first + word - own[0] for word in own]
        if len(numbers) > 1:
            documents.append(piece)
            words.append(numbers)
    if not documents:
        raise PretrainingError(f"{name}: there is no text in it; give text with at least two words")
    special = set(tokenizer.all_special_ids)
    extra = tokenizer.convert_tokens_to_ids([t for t in SENTINELS if t in tokenizer.get_vocab()])
    tokens = Tokens(
        len(tokenizer),
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.mask_token_id,
        np.array(extra, dtype=int),
        np.array([i for i in range(len(tokenizer)) if i not in special and i not in extra]),
    )
    return Corpus(tokens, documents, words=words, name=name)


def make_rows(corpus: Corpus, names: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """One row a document: its ids in [CLS] and [SEP], its number, and what the objectives need.

    Pairs are drawn once, by ``seed``; masks are drawn in ``Collate``, anew in each epoch.
    """
    for name, tags in (("pos", corpus.pos), ("ner", corpus.ner)):
        if name in names and not tags:
            raise PretrainingError(f"{name} needs tags, and {corpus.name} has none; leave it out")
    paired = "nsp" in names or "sop" in names
    if paired and {"pos", "ner", "wwm"} & set(names) and "nsp" in names:
        raise PretrainingError("nsp mixes two documents; it goes with mlm, hard and soft only")
    tokens, rows = corpus.tokens, []
    rng = np.random.default_rng((seed, 2))
    for number, document in enumerate(corpus.documents):
        flat = [i for sentence in document for i in sentence]
        row: dict[str, Any] = {"number": number}
        if not paired:
            order = [[*range(len(flat))]]
            ids, types = [tokens.cls, *flat, tokens.sep], [0] * (len(flat) + 2)
        elif len(document) < 2:
            continue
        else:
            make = objectives.sop_pair if "sop" in names else None
            pair = make(document, rng) if make else objectives.nsp_pair(corpus.documents, number, rng)
            cut = len(pair.second) if pair.label else len(pair.first)  # where the document was cut, for SOP
            order = [[*range(cut)], [*range(cut, len(flat))]]
            order = order[::-1] if pair.label else order
            ids, types = objectives.pair_input(pair.first, pair.second, tokens.cls, tokens.sep)
            row["next_sentence_label"] = pair.label
        row |= {"input_ids": ids, "token_type_ids": types}
        for key, values, filler in (
            ("pos_labels", corpus.pos if "pos" in names else (), IGNORED),
            ("ner_labels", corpus.ner if "ner" in names else (), IGNORED),
            ("words", corpus.words if "wwm" in names else (), -1),
        ):
            if values:
                parts = [[values[number][i] for i in part] for part in order]
                row[key] = [filler, *(x for part in parts for x in (*part, filler))]
        rows.append(row)
    if not rows:
        raise PretrainingError(f"{corpus.name}: no document has two sentences, and pairs need them; leave pairs out")
    return rows


# --- batches ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Collate:
    """Rows to a batch, masked for an epoch: a pure function of the rows' numbers, the epoch and the seed.

    ``span_share`` of the rows go to the decoder, with spans in place of masks; which ones is drawn in each epoch.
    """

    tokens: Tokens
    seed: int = 0
    rate: float = objectives.RATE
    whole_words: bool = False
    span_share: float = 0.0

    def __call__(self, rows: Sequence[Any], epoch: int = 0) -> dict[str, Tensor]:
        """The batch: inputs and labels (B, T); with spans, as ``PanguForDenoising.denoise`` wants them."""
        numbers = np.array([row["number"] for row in rows])
        decoded = np.zeros(len(rows), dtype=bool)
        if self.span_share:
            decoded = Draws(self.seed, epoch, numbers).uniform(9, 1)[:, 0] < self.span_share
            decoded[np.argmin(decoded)] &= not decoded.all()  # some row is always masked
        masked = [row for row, to in zip(rows, decoded, strict=True) if not to]
        batch = self._masked(masked, Draws(self.seed, epoch, numbers[~decoded]))
        if decoded.any():
            spans = [row["input_ids"] for row, to in zip(rows, decoded, strict=True) if to]
            ids, labels = self._spans(spans, Draws(self.seed, epoch, numbers[decoded]))
            batch["input_ids"] = stacked(batch["input_ids"], ids, self.tokens.pad)
            batch["labels"] = widened(batch["labels"], batch["input_ids"].shape[1], IGNORED)
            batch["span_labels"] = labels
            batch["attention_mask"] = (batch["input_ids"] != self.tokens.pad).astype(np.int64)
        if self.span_share:
            batch.pop("token_type_ids", None)
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    def _masked(self, rows: Sequence[Any], draws: Draws) -> dict[str, np.ndarray]:
        tokens = self.tokens
        ids = padded([row["input_ids"] for row in rows], tokens.pad)
        scores = draws.uniform(objectives.SELECT, ids.shape[1])
        if self.whole_words:
            words = padded([row["words"] for row in rows], -1)
            selected = objectives.select_words(scores, words, self.rate)
        else:
            special = (tokens.pad, tokens.cls, tokens.sep)
            selected = objectives.select(scores, ~np.isin(ids, special), self.rate)
        inputs, labels = objectives.bert_masks(ids, selected, draws, tokens.mask, tokens.replacements)
        batch = {"input_ids": inputs, "attention_mask": (ids != tokens.pad).astype(np.int64), "labels": labels}
        for key, filler in LIST_PADDING.items():
            if key in rows[0] and key != "words":
                batch[key] = padded([row[key] for row in rows], filler)
        if "next_sentence_label" in rows[0]:
            batch["next_sentence_label"] = np.array([row["next_sentence_label"] for row in rows])
        return batch

    def _spans(self, texts: list[list[int]], draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """[CLS], the text with sentinels, [SEP]; and what the sentinels stand for, with [SEP] at its end."""
        inner = padded([ids[1:-1] for ids in texts], self.tokens.pad)
        lengths = np.array([len(ids) - 2 for ids in texts])
        noise = objectives.noise_spans(lengths, draws, self.rate)
        inputs, labels = objectives.span_corruption(inner, noise, self.tokens.sentinels, self.tokens.pad)
        count, said = (inputs != self.tokens.pad).sum(axis=1), (labels != IGNORED).sum(axis=1)
        ids = np.full((len(texts), inputs.shape[1] + 2), self.tokens.pad)
        ids[:, 0], ids[:, 1:-1] = self.tokens.cls, inputs
        ids[np.arange(len(texts)), count + 1] = self.tokens.sep
        labels = widened(labels, labels.shape[1] + 1, IGNORED)
        labels[np.arange(len(texts)), said] = self.tokens.sep
        return ids, labels


def padded(lists: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    """Lists as rows of one array, filled up on the right."""
    out = np.full((len(lists), max(map(len, lists))), filler, dtype=np.int64)
    for row, values in zip(out, lists, strict=True):
        row[: len(values)] = values
    return out


def widened(array: np.ndarray, width: int, filler: int) -> np.ndarray:
    """The array (B, T) with ``width`` columns or more."""
    return np.pad(array, ((0, 0), (0, max(0, width - array.shape[1]))), constant_values=filler)


def stacked(above: np.ndarray, below: np.ndarray, filler: int) -> np.ndarray:
    """Two arrays one over the other, the narrower one filled up on the right."""
    width = max(above.shape[1], below.shape[1])
    return np.concatenate([widened(above, width, filler), widened(below, width, filler)])


# --- model and loss ---------------------------------------------------------------------------------


def make_model(shape: PanguConfig, names: Sequence[str], tokens: Tokens) -> nn.Module:
    """A model with fresh weights and the heads that the objectives need.

    An encoder with relative positions starts by copying (``model.copying``): what stands twice
    in a text is then found in hundreds of steps, not thousands.
    """
    settings = shape.to_dict() | {
        "vocab_size": tokens.size,
        "pad_token_id": tokens.pad,
        "bos_token_id": tokens.cls,
        "eos_token_id": tokens.sep,
        "decoder_start_token_id": tokens.cls,
        "num_pos_tags": len(POS_TAGS) if "pos" in names else 0,
        "num_ner_tags": len(NER_TAGS) if "ner" in names else 0,
        "architecture": "encoder-decoder" if "spans" in names else "encoder",
    }
    config = PanguConfig(**{key: value for key, value in settings.items() if key != "is_encoder_decoder"})
    if "spans" in names:
        model: PanguForDenoising | PanguForPreTraining = PanguForDenoising(config)
        head = model.mlm_head
    else:
        model = PanguForPreTraining(config)
        head = model.lm_head
    if config.relative_positions:
        start_by_copying(model, head)
    return model


@dataclass(frozen=True, eq=False)
class PretrainingLoss:
    """The sum of the objectives' losses, each a mean of its own, with ``correction`` as hard, soft or nothing.

    Called with a model and a batch it gives the sum times the number of selected words, and that number, as the
    training loop wants it. Where a batch is cut into parts, a part's other losses weigh as much as its words do.
    """

    correction: str = ""
    synonyms: Tensor | None = None

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        if "span_labels" in batch or "token_type_ids" not in batch:
            output = unwrapped(model).denoise(**batch)
        else:
            output = model(**batch, predict_at=labels != IGNORED)
        loss, gold = output.loss, labels[labels != IGNORED]
        if self.correction == "hard" and self.synonyms is not None:
            corrected = objectives.hard_correction(output.prediction_logits, gold, self.synonyms.to(gold.device))
            loss = loss - output.losses["words"] + corrected
        elif self.correction == "soft":
            table = unwrapped(model).get_input_embeddings().weight
            loss = loss + objectives.soft_correction(output.prediction_logits, gold, table)
        items = (labels != IGNORED).sum()
        return loss * items, items


def unwrapped(model: nn.Module) -> Any:
    """The model itself, where a wrapper for several devices or for compiling stands around it."""
    inner = getattr(model, "module", model)
    return getattr(inner, "_orig_mod", inner)


def flops_per_token(model: nn.Module, length: float, rate: float = objectives.RATE) -> float:
    """Floating-point operations of a training step for each token (Chowdhery et al. 2022, appendix B).

    6 for each weight of a matrix that the token meets, 12 d T for each layer's attention; the output layer only at
    the selected words. A decoder's tokens are counted as if it read all of the text, so its share is an upper bound.
    """
    config = unwrapped(model).config
    matrices = sum(
        p.numel()
        for n, p in unwrapped(model).named_parameters()
        if p.ndim == 2 and not any(part in n for part in ("embeddings", "decoder.w", "distances"))
    )
    layers = config.num_hidden_layers + (config.decoder_layers or 0)
    return 6 * (matrices + rate * config.vocab_size * config.hidden_size) + 12 * layers * config.hidden_size * length


# --- the floor --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Masked documents that no model trains on, and how well exact inference guesses them.

    The model is asked about the same tokens under the same masks as the oracle, so the two losses are paired.
    """

    inputs: Tensor  # (B, T)
    labels: Tensor  # (B, T)
    floor: Floor
    floor_losses: np.ndarray = field(repr=False)

    @torch.no_grad()
    def losses(self, model: nn.Module) -> np.ndarray:
        """-log probability of each selected token, in the order of rows and places."""
        inner, was = unwrapped(model), model.training
        inner.eval()
        device = next(inner.parameters()).device
        inputs, at = self.inputs.to(device), self.labels.ne(IGNORED).to(device)
        mask = inputs.ne(inner.config.pad_token_id).long()
        if isinstance(inner, PanguForDenoising):
            logits = inner.masked_words(inputs, mask, at)
        else:
            logits = inner(inputs, mask, predict_at=at).prediction_logits
        inner.train(was)
        gold = self.labels.to(device)[at]
        return nn.functional.cross_entropy(logits.float(), gold, reduction="none").cpu().numpy()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The held-out loss, the floor, and their ratio."""
        loss = float(self.losses(model).mean())
        return {"mlm_loss": loss, "floor": self.floor.value, "ratio": loss / self.floor.value}


def held_out(world: World, seed: int, count: int, rate: float = objectives.RATE) -> HeldOut:
    """Documents of the world under a seed of their own, masked, with the exact loss of each masked token."""
    tokens = world_tokens(world)
    oracle = Oracle(world, [world.vocabulary[i] for i in tokens.replacements], rate)
    rng = np.random.default_rng((seed, 1))
    masked: list[Corrupted] = [corrupt(oracle, document, rng) for document in world.documents(seed, 0, count)]
    losses = [oracle.masked_losses(one) for one in masked]
    ids = {token: i for i, token in enumerate(world.vocabulary)} | {None: tokens.mask}
    inputs = padded([[tokens.cls, *(ids[seen] for seen in one.seen), tokens.sep] for one in masked], tokens.pad)
    labels = np.full_like(inputs, IGNORED)
    for row, one in enumerate(masked):
        for place in one.selected:
            labels[row, place + 1] = ids[one.document.tokens[place]]
    return HeldOut(torch.from_numpy(inputs), torch.from_numpy(labels), floor_of(losses), np.concatenate(losses))


# --- the run ----------------------------------------------------------------------------------------


def pretrain(
    corpus: Corpus,
    names: Sequence[str],
    shape: PanguConfig,
    settings: Train,
    folder: Path,
    epochs: int = 1,
    rate: float = objectives.RATE,
    span_share: float = 0.25,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluate_every: int | None = None,
    peak_flops: float | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
) -> tuple[nn.Module, Result]:
    """Pre-train a model from fresh weights; the same call goes on where a stopped one ended, bit for bit.

    Parameters
    ----------
    rate
        Share of tokens that are masked, and that spans take out.
    span_share
        Share of the rows that go to the decoder, where ``spans`` is among the objectives.
    peak_flops
        This machine's matrix products in FLOP/s; with it the log tells which share of them a step reaches.
    """
    tokens = corpus.tokens
    if "spans" in names and len(tokens.sentinels) == 0:
        raise PretrainingError(f"spans need sentinel tokens, and {corpus.name}'s tokenizer has none; leave spans out")
    if "hard" in names and tokens.synonyms is None:
        raise PretrainingError(f"hard correction needs a table of synonyms, and {corpus.name} has none; leave it out")
    rows = make_rows(corpus, names, settings.seed)
    torch.manual_seed(settings.seed)
    model = make_model(shape, names, tokens)
    collate = Collate(tokens, settings.seed, rate, "wwm" in names, span_share if "spans" in names else 0.0)
    correction = next((name for name in ("hard", "soft") if name in names), "")
    length = float(np.mean([len(row["input_ids"]) for row in rows]))
    job = Job(
        rows,
        collate,
        PretrainingLoss(correction, tokens.synonyms),
        epochs,
        settings,
        evaluate,
        name=f"{corpus.name} {','.join(names)} rate={rate:g} {shape.to_json_string(use_diff=True)}",
        epoch_collate=collate,
        evaluate_every=evaluate_every,
        seconds_per_token=flops_per_token(model, length, rate) / peak_flops if peak_flops else None,
    )
    return model, train(model, job, folder, quiet=quiet, tensorboard=tensorboard)


def with_encoder(model: nn.Module, pretrained: nn.Module) -> nn.Module:
    """Give ``model`` the encoder of ``pretrained``, and its pooler, which pairs have trained, where both have one."""
    given, taken = unwrapped(pretrained).model, unwrapped(model).model
    taken.encoder.load_state_dict(given.encoder.state_dict())
    if given.pooler is not None and taken.pooler is not None:
        taken.pooler.load_state_dict(given.pooler.state_dict())
    return model


def encoder_shape(model: nn.Module, **changes: Any) -> PanguConfig:
    """The configuration of the encoder alone, for a task's head."""
    settings = unwrapped(model).config.to_dict() | {"architecture": "encoder", "decoder_layers": None} | changes
    return PanguConfig(**{key: value for key, value in settings.items() if key != "is_encoder_decoder"})
