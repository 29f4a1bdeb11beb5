"""Tasks on the synthetic world, to see what pre-training gives: opinions, questions, a probe, a bag of words.

``few_shot`` fine-tunes (``fine_tune``) from random and from pre-trained weights on the very same examples. All of it
is small and runs on a CPU in seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from pangu_lab.config import Train
from pangu_lab.data.batches import collate
from pangu_lab.data.world import POS_TAGS, SPECIAL, World
from pangu_lab.model import PanguConfig, PanguForQuestionAnswering, PanguModel
from pangu_lab.objectives import Pair, pair_input
from pangu_lab.pretraining import Corpus, encoder_shape, make_model, padded, unwrapped, with_encoder, world_tokens
from pangu_lab.training import Job, cross_entropy_loss, train

TASKS = ("opinion", "question")


# --- a bag of words on pairs ------------------------------------------------------------------------


def halves(corpus: Corpus, objective: str, seed: int) -> list[Pair]:
    """For each document one NSP or SOP pair, cut in its middle, half of them negatives."""
    rng = np.random.default_rng((seed, 3))
    cut = []
    for document in corpus.documents:
        at = len(document) // 2
        cut.append(([i for s in document[:at] for i in s], [i for s in document[at:] for i in s]))
    pairs = []
    for number, (first, second) in enumerate(cut):
        label = int(rng.integers(2))
        if label and objective == "sop":
            first, second = second, first
        elif label:
            second = cut[(number + int(rng.integers(1, len(cut)))) % len(cut)][1]
        pairs.append(Pair(first, second, label))
    return pairs


def bag_of_words_accuracy(corpus: Corpus, objective: str, test: int, seed: int = 0) -> tuple[int, int]:
    """Right answers and questions of a classifier that knows which words each segment has, not which came first.

    Latent semantic analysis of the training pairs gives each word a vector (words of a topic lie together); a
    pair's features are the products of its segments' vectors and the words they share. The last ``test`` documents
    are the test.
    """
    pairs = halves(corpus, objective, seed)
    labels = np.array([pair.label for pair in pairs])
    bags = np.zeros((2, len(pairs), corpus.tokens.size), dtype=np.float32)
    for number, pair in enumerate(pairs):
        bags[0, number, pair.first] = bags[1, number, pair.second] = 1.0
    bags *= np.log(len(pairs) / (1 + bags[:, :-test].sum(axis=(0, 1)) / 2)).clip(0)  # rare words tell more
    texts = bags[:, :-test].reshape(-1, corpus.tokens.size)
    _, vectors = np.linalg.eigh(texts.T @ texts)
    meaning = bags @ vectors[:, -60:]  # (2, pairs, 60)
    features = np.concatenate([meaning[0] * meaning[1], bags[0] * bags[1]], axis=1)
    # Without their means the fit takes a dozen steps; with them it stops at once, at weights of zero.
    features = features.astype(np.float64) - features[:-test].mean(axis=0, dtype=np.float64)
    features /= features[:-test].std(axis=0) + 1e-6
    model = LogisticRegression(C=0.01, max_iter=300).fit(features[:-test], labels[:-test])
    return int((model.predict(features[-test:]) == labels[-test:]).sum()), test


# --- a probe ----------------------------------------------------------------------------------------


def pos_probe(model: nn.Module, corpus: Corpus, train_share: float = 0.5, masked: bool = True) -> float:
    """Accuracy of a linear probe for parts of speech on the encoder's frozen states.

    With ``masked``, one word of each document is hidden and the probe has to tell *its* part of speech: the
    word itself gives nothing away, only what the encoder makes of the words around it.
    """
    tokens, inner = corpus.tokens, unwrapped(model)
    rng = np.random.default_rng(0)
    texts = [[tokens.cls, *(i for s in document for i in s), tokens.sep] for document in corpus.documents]
    ids = padded(texts, tokens.pad)
    places = np.array([1 + int(rng.integers(len(text) - 2)) for text in texts])
    gold = np.array([tags[place - 1] for tags, place in zip(corpus.pos, places, strict=True)])
    if masked:
        ids[np.arange(len(ids)), places] = tokens.mask
    device = next(inner.parameters()).device
    inputs = torch.from_numpy(ids).to(device)
    was = inner.training
    inner.eval()
    with torch.no_grad():
        mask = (inputs != tokens.pad).long()
        states = inner.model.encoder(inputs, mask).last_hidden_state[torch.arange(len(ids)), torch.from_numpy(places)]
    inner.train(was)
    x = states.float().cpu().numpy()
    cut = int(train_share * len(x))
    mean, spread = x[:cut].mean(axis=0), x[:cut].std(axis=0) + 1e-6
    probe = LogisticRegression(max_iter=300).fit((x[:cut] - mean) / spread, gold[:cut])
    return float((probe.predict((x[cut:] - mean) / spread) == gold[cut:]).mean())


def most_frequent_pos(corpus: Corpus) -> float:
    """What a probe gets that always says the most frequent part of speech."""
    counts = np.bincount([tag for tags in corpus.pos for tag in tags], minlength=len(POS_TAGS))
    return float(counts.max() / counts.sum())


# --- fine-tuning from little ------------------------------------------------------------------------


def examples(world: World, task: str, seed: int, start: int, count: int) -> list[dict[str, Any]]:
    """Labeled examples, one a document: its opinion, or where the answer to a question stands.

    A text whose opinion is asked for ends in a prompt, *the boat was [MASK] .*: what pre-training taught about the
    word that fits there is what the task needs (Schick and Schütze 2021).
    """
    tokens = {token: i for i, token in enumerate(world.vocabulary)}
    cls, sep, rows = tokens["[CLS]"], tokens["[SEP]"], []
    rng = np.random.default_rng((seed, start))
    for document in world.documents(seed, start):
        ids = [tokens[token] for token in document.tokens]
        if task == "opinion":
            thing = world.words[f"thing:{document.hidden.thing}"][0][0]
            prompt = [tokens[token] for token in ("the", thing, "was", "[MASK]", ".")]
            row: dict[str, Any] = {"input_ids": [cls, *ids, *prompt, sep], "labels": document.hidden.opinion}
        else:
            asked = world.questions(document)
            if not asked:
                continue
            question = asked[int(rng.integers(len(asked)))]
            words = [tokens[word] for word in question.text.split()]
            both, types = pair_input(words, ids, cls, sep)
            row = {"input_ids": both, "token_type_ids": types, "labels": len(words) + 2 + question.answer}
        rows.append(row | {"attention_mask": [1] * len(row["input_ids"])})
        if len(rows) == count:
            break
    return rows


class _AtMask(nn.Module):
    """A linear classifier on the encoder's state at the text's one [MASK]."""

    MASK = SPECIAL.index("[MASK]")  # special tokens come first in the vocabulary of every world

    def __init__(self, shape: PanguConfig) -> None:
        super().__init__()
        self.model = PanguModel(shape)
        self.classifier = nn.Linear(shape.hidden_size, shape.num_labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        states = self.model(input_ids, attention_mask).last_hidden_state  # (B, T, d)
        return SimpleNamespace(logits=self.classifier(states[input_ids == self.MASK]))  # (B, labels)


class _SpanStart(nn.Module):
    """Question answering as a choice among positions: the start logits are the logits of the answer's place."""

    def __init__(self, model: PanguForQuestionAnswering) -> None:
        super().__init__()
        self.inner = model

    def forward(self, **batch: torch.Tensor) -> Any:
        output = self.inner(**batch)
        output.logits = output.start_logits.masked_fill(batch["attention_mask"] == 0, -1e4)  # (B, T)
        return output


def few_shot(
    pretrained: nn.Module,
    world: World,
    task: str,
    count: int,
    seed: int,
    test: Sequence[Any],
    steps: int = 60,
    rate: float = 2e-3,
) -> dict[str, float]:
    """Test accuracy after fine-tuning on ``count`` examples, ``{"random": …, "pretrained": …}``."""
    rows, shape = few_examples(world, task, count, seed), encoder_shape(pretrained, num_labels=2)
    starts = {"random": fresh_start(shape, world, seed), "pretrained": pretrained}
    return {
        name: accuracy(fine_tune(shape, start, task, rows, seed, steps, rate), test) for name, start in starts.items()
    }


def fresh_start(shape: PanguConfig, world: World, seed: int) -> nn.Module:
    """The weights that pre-training would have begun with: what is left of a gain over them, pre-training gave."""
    torch.manual_seed(seed)
    return make_model(shape, ("mlm",), world_tokens(world))


def few_examples(world: World, task: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The ``count`` training examples that fine-tuning gets under a seed."""
    return examples(world, task, 1000 + seed, 0, count)


def fine_tune(
    shape: PanguConfig,
    start: nn.Module,
    task: str,
    rows: Sequence[Any],
    seed: int,
    steps: int = 60,
    rate: float = 2e-3,
) -> nn.Module:
    """A model of a task after about ``steps`` steps on ``rows``, from the encoder of ``start``."""
    torch.manual_seed(seed)
    if task == "opinion":
        model: nn.Module = with_encoder(_AtMask(shape), start)
    else:
        model = _SpanStart(PanguForQuestionAnswering(shape))
        with_encoder(model.inner, start)
    size = min(16, len(rows))
    epochs = max(1, round(steps * size / len(rows)))
    settings = Train(learning_rate=rate, batch_size=size, precision="fp32", seed=seed, checkpoint_seconds=3600)
    with TemporaryDirectory() as folder:
        job = Job(rows, lambda chosen: collate(chosen, 0), cross_entropy_loss, epochs, settings)
        train(model, job, Path(folder), quiet=True, tensorboard=False)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, rows: Sequence[Any]) -> float:
    """Share of right answers."""
    model.eval()
    right = 0
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    for start in range(0, len(ordered), 64):
        batch = collate(ordered[start : start + 64], 0)
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(dim=-1) == labels).sum())
    return right / len(rows)
