"""Extractive question answering: the answer is a span of the passage.

A long passage is read through overlapping windows. Each window says where an answer would start and end;
where it holds none, both point at [CLS]. ``decode`` takes the best valid span over all windows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pangu_lab.data.batches import collate, sorted_batches
from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write
from pangu_lab.tasks.metrics import Metric
from pangu_lab.tasks.squad_metrics import f1, squad_metrics
from pangu_lab.training import choose_precision

QUESTION_TOKENS = 64  # a longer question is cut, so that the passage keeps its room
EVALUATION_TOKENS = 8192


class QuestionAnsweringError(PanguLabError):
    """A question, a passage or a data set cannot be used."""


@dataclass(frozen=True)
class Question:
    """A question on a passage. ``answers`` are ``(text, start)``, start in characters; none: unanswerable."""

    id: str
    question: str
    passage: str
    answers: tuple[tuple[str, int], ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Window:
    """A question with a part of its passage, as the model reads it.

    ``offsets[i]`` are the first character of token ``i`` in the passage and the one after its last; None for
    tokens of the question and special ones.
    """

    question: int  # place in the list of questions
    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[tuple[int, int] | None]


@dataclass(frozen=True)
class Answer:
    """An answer: ``passage[start:end] == text``. An empty text means that the passage does not say."""

    text: str
    start: int
    end: int
    score: float
    probability: float


# --- data -------------------------------------------------------------------------------------------


def checked_questions(rows: Sequence[Mapping[str, Any]], where: str) -> tuple[list[Question], tuple[str, ...]]:
    """Questions with proven answers, and in words what had to be done.

    An ``answer_start`` that does not point at its text is looked for again: the nearest place of the text in
    the passage is taken. An answer that is nowhere in the passage is dropped; a question that loses all its
    answers is dropped, too.

    Raises
    ------
    QuestionAnsweringError
        A row without a question or passage, answers of another shape, or no usable row at all.
    """
    questions, moved, lost, dropped = [], 0, 0, 0
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise QuestionAnsweringError(f"{where}, row {number}: is no object with context, question and answers")
        passage, question = row.get("context"), row.get("question")
        if not isinstance(passage, str) or not isinstance(question, str) or not passage.strip() or not question.strip():
            raise QuestionAnsweringError(
                f"{where}, row {number}: question and context must be texts with words in them"
            )
        given = _answers_of(row, f"{where}, row {number}")
        answers = []
        for text, start in given:
            if not 0 <= start <= len(passage) or passage[start : start + len(text)] != text or not text:
                places = [i for i in range(len(passage)) if text and passage.startswith(text, i)]
                if not places:
                    lost += 1
                    continue
                moved += 1
                start = min(places, key=lambda place: abs(place - start))
            answers.append((text, start))
        if given and not answers:
            dropped += 1
            continue
        id = str(row.get("id") or number)
        questions.append(Question(id, question, passage, tuple(answers), str(row.get("title") or "")))
    if not questions:
        raise QuestionAnsweringError(f"{where}: has no question with an answer in its passage")
    notes = []
    if moved:
        notes.append(f"{where}: {moved} answers did not stand where they were said to; found again nearby")
    if lost:
        notes.append(f"{where}: {lost} answers are nowhere in their passage and were dropped, with {dropped} questions")
    return questions, tuple(notes)


def _answers_of(row: Mapping[str, Any], where: str) -> list[tuple[str, int]]:
    """A row's answers as ``(text, start)``; none if the row has none."""
    given = row.get("answers") or {"text": [], "answer_start": []}
    try:
        pairs = list(zip(given["text"], given["answer_start"], strict=True))
        if all(isinstance(text, str) for text, _ in pairs):
            return [(text, int(start)) for text, start in pairs]
    except (KeyError, TypeError, ValueError):
        pass
    raise QuestionAnsweringError(
        f'{where}: answers must be {{"text": [texts], "answer_start": [whole numbers]}}, as many of one as of the other'
    )


def read_questions(file: Path) -> tuple[list[Question], tuple[str, ...]]:
    """Questions from a file: SQuAD's own JSON (1.1 or 2.0), or JSON lines with context, question, answers.

    Raises
    ------
    QuestionAnsweringError
        No such file, not JSON, or not of either shape.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix.lower() == ".json":
            rows = [
                {
                    "id": qa["id"],
                    "question": qa["question"],
                    "context": paragraph["context"],
                    "title": article.get("title", ""),
                    "answers": {
                        "text": [answer["text"] for answer in qa.get("answers", [])],
                        "answer_start": [answer["answer_start"] for answer in qa.get("answers", [])],
                    },
                }
                for article in json.loads(text)["data"]
                for paragraph in article["paragraphs"]
                for qa in paragraph["qas"]
            ]
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except FileNotFoundError:
        raise QuestionAnsweringError(f"{file}: there is no such file; check the path") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise QuestionAnsweringError(
            f"{file}: cannot be read as questions ({reason}); give SQuAD's .json, or .jsonl with context, question, answers"
        ) from None
    return checked_questions(rows, str(file))


# --- features ---------------------------------------------------------------------------------------


def windows(questions: Sequence[Question], tokenizer: Any, max_length: int, stride: int) -> list[Window]:
    """Every question with its passage, cut into windows that overlap by ``stride`` tokens.

    Offsets count the characters of the passage as it is, whatever the tokenizer makes of them.

    Raises
    ------
    QuestionAnsweringError
        ``max_length`` leaves no room for a passage beside the question, or ``stride`` is no overlap.
    """
    found = []
    for number, question in enumerate(questions):
        asked = tokenizer(question.question, add_special_tokens=False, verbose=False)["input_ids"][:QUESTION_TOKENS]
        room = max_length - len(asked) - 3  # [CLS] question [SEP] passage [SEP]
        if room < 8 or not 0 <= stride < room:
            raise QuestionAnsweringError(
                f"max_length {max_length} with a question of {len(asked)} tokens leaves {max(room, 0)} for the passage "
                f"and an overlap of {stride}; raise max_length or lower the overlap"
            )
        passage = tokenizer(question.passage, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = passage["input_ids"], passage["offset_mapping"]
        start = 0
        while True:
            part = slice(start, start + room)
            head = [tokenizer.cls_token_id, *asked, tokenizer.sep_token_id]
            tail = [*ids[part], tokenizer.sep_token_id]
            places: list[tuple[int, int] | None] = [None] * len(head)
            places += [(a, b) for a, b in offsets[part]]
            found.append(Window(number, head + tail, [0] * len(head) + [1] * len(tail), [*places, None]))
            if start + room >= len(ids):
                break
            start += room - stride
    return found


def token_span(window: Window, start: int, end: int) -> tuple[int, int]:
    """First and last token of the characters ``start`` to ``end`` of the passage; (0, 0), [CLS], if not inside.

    An answer that a window cuts in two is not inside.
    """
    inside = [(i, place) for i, place in enumerate(window.offsets) if place and place[0] < end and place[1] > start]
    if not inside:
        return 0, 0
    (first_token, (first, _)), (last_token, (_, last)) = inside[0], inside[-1]
    # A token may reach beyond the answer, as a word does whose half is the answer; the window may not end within.
    return (first_token, last_token) if first <= start and last >= end else (0, 0)


def features(questions: Sequence[Question], found: Sequence[Window], token_types: bool = True) -> list[dict[str, Any]]:
    """Model inputs of all windows; ``labels`` are the first and the last token of the first answer."""
    rows = []
    for window in found:
        answers = questions[window.question].answers
        span = token_span(window, answers[0][1], answers[0][1] + len(answers[0][0])) if answers else (0, 0)
        rows.append(_inputs(window, token_types) | {"labels": list(span)})
    return rows


def _inputs(window: Window, token_types: bool) -> dict[str, Any]:
    row = {"input_ids": window.input_ids, "attention_mask": [1] * len(window.input_ids)}
    return row | ({"token_type_ids": window.token_type_ids} if token_types else {})


def span_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of start and of end over the tokens, their mean, summed over windows; and the windows."""
    labels = batch["labels"]  # (batch, 2)
    output = model(**{key: value for key, value in batch.items() if key != "labels"})
    real = batch["attention_mask"] == 1
    total = torch.zeros((), device=labels.device)
    for logits, place in ((output.start_logits, labels[:, 0]), (output.end_logits, labels[:, 1])):
        scores = logits.float().masked_fill(~real, -1e4)  # padding is no place for an answer
        total = total + nn.functional.cross_entropy(scores, place, reduction="sum") / 2
    return total, torch.tensor(len(labels), device=labels.device)


# --- answers ----------------------------------------------------------------------------------------


def span_logits(
    model: nn.Module,
    found: Sequence[Window],
    pad: int,
    token_types: bool = True,
    quiet: bool = True,
    precision: str = "auto",
) -> list[np.ndarray]:
    """Start and end logits ``(2, length)`` of each window."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    precision, _ = choose_precision(precision)
    rows = [_inputs(window, token_types) for window in found]
    lengths = [len(row["input_ids"]) for row in rows]
    logits: list[np.ndarray] = [np.empty(0)] * len(rows)
    model.eval()
    bar = tqdm(total=sum(lengths), unit="tok", unit_scale=True, desc="reading", disable=quiet)
    with bar, torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for indices in sorted_batches(lengths, EVALUATION_TOKENS):
            batch = {key: value.to(device) for key, value in collate([rows[i] for i in indices], pad).items()}
            output = model(**batch)
            both = (
                torch.stack([output.start_logits, output.end_logits], dim=1).float().cpu().numpy()
            )  # (batch, 2, length)
            for row, i in zip(both, indices, strict=True):
                logits[i] = row[:, : lengths[i]]
            bar.update(sum(lengths[i] for i in indices))
    return logits


def decode(
    questions: Sequence[Question],
    found: Sequence[Window],
    logits: Sequence[np.ndarray],
    *,
    n_best: int = 5,
    max_answer_tokens: int = 30,
    no_answer: bool = False,
    threshold: float = 0.0,
) -> list[list[Answer]]:
    """The best spans for each question over all its windows, the best first.

    Parameters
    ----------
    n_best, max_answer_tokens
        How many spans to give; and how long one may be. A span ends at or after its start, inside the passage.
    no_answer, threshold
        SQuAD 2.0: "" competes with its score at [CLS], the lowest over the windows, and wins where it beats the
        best span by more than ``threshold``.

    Notes
    -----
    Probabilities are a softmax over the spans that are given (and "" if it competes), not over all spans.
    """
    spans: list[list[tuple[float, int, int]]] = [[] for _ in questions]
    nothing = [np.inf] * len(questions)
    for window, (start, end) in zip(found, logits, strict=True):
        nothing[window.question] = min(nothing[window.question], float(start[0] + end[0]))
        inside = np.array([i for i, place in enumerate(window.offsets) if place and place[0] < place[1]], dtype=int)
        if not len(inside):
            continue
        # (tokens, tokens): every pair, the impossible ones at minus infinity
        scores = start[inside][:, None] + end[inside][None, :]
        length = inside[None, :] - inside[:, None]
        scores = np.where((length >= 0) & (length < max_answer_tokens), scores, -np.inf)
        for flat in np.argsort(scores, axis=None)[::-1][: 2 * n_best]:
            i, j = divmod(int(flat), len(inside))
            if np.isfinite(scores[i, j]):
                first, last = window.offsets[inside[i]], window.offsets[inside[j]]
                spans[window.question].append((float(scores[i, j]), first[0], last[1]))
    answers = []
    for question, candidates, empty in zip(questions, spans, nothing, strict=True):
        best: dict[tuple[int, int], float] = {}
        for score, start, end in sorted(candidates, reverse=True):
            best.setdefault((start, end), score)  # two windows may find the same span
        ranked = sorted(((score, *span) for span, score in best.items()), key=lambda s: (-s[0], s[1]))[:n_best]
        options = [(question.passage[start:end], start, end, score) for score, start, end in ranked]
        if no_answer or not options:
            wins = not options or empty - options[0][3] > threshold
            options.insert(0 if wins else len(options), ("", 0, 0, empty if np.isfinite(empty) else 0.0))
        scores = np.array([score for *_, score in options])
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        answers.append([Answer(t, a, b, s, float(p)) for (t, a, b, s), p in zip(options, shares, strict=True)])
    return answers


@dataclass
class Reader:
    """A question answering model with its tokenizer."""

    model: Any
    tokenizer: Any
    max_length: int
    stride: int
    no_answer: bool = False
    threshold: float = 0.0

    @property
    def token_types(self) -> bool:
        return "token_type_ids" in self.tokenizer.model_input_names

    def answer(
        self, questions: Sequence[Question], n_best: int = 5, quiet: bool = True, precision: str = "auto"
    ) -> list[list[Answer]]:
        """The best answers to each question."""
        found = windows(questions, self.tokenizer, self.max_length, self.stride)
        logits = span_logits(self.model, found, self.tokenizer.pad_token_id, self.token_types, quiet, precision)
        return decode(questions, found, logits, n_best=n_best, no_answer=self.no_answer, threshold=self.threshold)

    def fit_threshold(self, questions: Sequence[Question], quiet: bool = True, precision: str = "auto") -> float:
        """Let "" win by the margin that gives the best mean F1 on questions that no test has: validation's.

        SQuAD 2.0's official script sweeps the same margins. Ties go to the margin nearest to 0.
        """
        self.no_answer, self.threshold = True, np.inf  # "" stands last everywhere; its margin is still known
        margins, gains = [], []  # how far "" is ahead of the best span, and what answering "" would add to F1
        for question, options in zip(questions, self.answer(questions, 1, quiet, precision), strict=True):
            golds = [text for text, _ in question.answers]
            margins.append(options[-1].score - options[0].score)
            gains.append(f1("", golds) - f1(options[0].text, golds))
        margin, gain = np.array(margins), np.array(gains)
        cuts = np.concatenate([[0.0], np.sort(margin) - 1e-6, np.sort(margin) + 1e-6])
        totals = np.array([gain[margin > cut].sum() for cut in cuts])
        best = cuts[totals >= totals.max() - 1e-9]
        self.threshold = float(best[np.abs(best).argmin()])
        return self.threshold


def ask(reader: Reader, question: str, passage: str, n_best: int = 5) -> list[Answer]:
    """Answers to one question on one passage.

    Raises
    ------
    QuestionAnsweringError
        Question or passage has no words in it.
    """
    for name, text in (("question", question), ("passage", passage)):
        if not isinstance(text, str) or not text.strip():
            raise QuestionAnsweringError(f"the {name} has no words in it; give at least one")
    return reader.answer([Question("0", question, passage)], n_best)[0]


def evaluate(
    reader: Reader, questions: Sequence[Question], quiet: bool = True, precision: str = "auto"
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Exact match and F1 with intervals, and the predictions by question id."""
    answers = reader.answer(questions, quiet=quiet, precision=precision)
    predictions = {question.id: options[0].text for question, options in zip(questions, answers, strict=True)}
    golds = {question.id: [text for text, _ in question.answers] for question in questions}
    groups = {question.id: question.passage for question in questions}
    return squad_metrics(predictions, golds, groups), predictions


def write_predictions(predictions: Mapping[str, str], file: Path) -> Path:
    """SQuAD's official format: one JSON object, question id to text."""
    return atomic_write(file, json.dumps(dict(predictions), ensure_ascii=False, indent=1) + "\n")
