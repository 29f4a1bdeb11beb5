"""Distillation: the losses are what they say, a student is its teacher's layers, and a run learns, resumes and tells."""

import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from types import MethodType

import pytest
import torch
from torch.nn import functional
from training_job import weights_hash
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

from pangu_lab.compression.distillation import (
    Distillation,
    DistillationError,
    Distiller,
    Losses,
    Watch,
    attention_score_loss,
    bundled_texts,
    choose_layers,
    distill,
    distillation_loss,
    hidden_state_loss,
    random_student,
    relation_loss,
    soft_label_loss,
    student_from,
    unlabelled_rows,
)
from pangu_lab.compression.distillation_losses import attention_scores
from pangu_lab.config import Train
from pangu_lab.model import PanguConfig, PanguForSequenceClassification
from pangu_lab.model.attention import split_heads

SHAPE = dict(
    vocab_size=60,
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
    initializer_range=0.25,
)
FP32 = dict(precision="fp32", batch_size=8, learning_rate=3e-3, checkpoint_seconds=60.0)


def bert(layers=4, seed=0, kind=BertForSequenceClassification, **changes):
    torch.manual_seed(seed)
    return kind(BertConfig(**(SHAPE | dict(num_hidden_layers=layers, num_labels=3) | changes))).eval()


def pangu(layers=4, seed=0):
    torch.manual_seed(seed)
    return PanguForSequenceClassification(PanguConfig(**SHAPE, num_hidden_layers=layers, num_labels=3)).eval()


def make_rows(count=40, seed=1):
    """Texts of 4 to 13 tokens under the label of their first token."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        ids = torch.randint(5, 60, (4 + number % 10,), generator=generator).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids[0] % 3})
    return rows


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score_loss(student, teacher, mask):
    """The loss on given scores (B, H, T, T): with the unit matrix as k, q kᵀ / √d is q / √d."""
    units, root = torch.eye(student.size(-1), dtype=student.dtype).expand_as(student), math.sqrt(student.size(-1))
    return attention_score_loss(root * student, units, root * teacher, units[:, : teacher.size(1)], mask)


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])


# --- losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_labels_are_torchs_divergence_times_the_squared_temperature(temperature):
    s, t = draw(6, 5, seed=1), draw(6, 5, seed=2)
    expected = functional.kl_div(
        (s / temperature).log_softmax(-1), (t / temperature).softmax(-1), reduction="batchmean"
    )
    assert float(soft_label_loss(s, t, temperature)) == pytest.approx(float(expected) * temperature**2, rel=1e-5)
    assert float(soft_label_loss(t, t, temperature)) == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_soft_labels_is_the_formulas():
    """T (softmax(s/T) − softmax(t/T)) / B, Hinton et al. 2015, eq. 2; the teacher gets none."""
    s, t = draw(4, 3, seed=1).requires_grad_(), draw(4, 3, seed=2).requires_grad_()
    soft_label_loss(s, t, 3.0).backward()
    expected = 3 * ((s / 3).softmax(-1) - (t / 3).softmax(-1)) / 4
    torch.testing.assert_close(s.grad, expected.detach(), rtol=1e-4, atol=1e-7)
    assert t.grad is None


def test_the_gradient_keeps_its_size_at_high_temperatures():
    def size(temperature):
        s = draw(8, 3, seed=1).requires_grad_()
        soft_label_loss(s, draw(8, 3, seed=2), temperature).backward()
        return float(s.grad.norm())

    assert size(20.0) == pytest.approx(size(5.0), rel=0.1)  # without T² it would be a sixteenth
    # At the limit the gradient is that of matched logits, (s − t) / C per text, both centered (their eq. 4).
    s, t = draw(8, 3, seed=1), draw(8, 3, seed=2)
    limit = (s - s.mean(-1, keepdim=True) - t + t.mean(-1, keepdim=True)) / 3 / 8
    assert size(200.0) == pytest.approx(float(limit.norm()), rel=0.02)


def test_both_terms_are_weighted_and_a_text_without_a_label_counts_softly_only():
    s, t, labels = draw(4, 3, seed=1), draw(4, 3, seed=2), torch.tensor([0, 2, 1, 1])
    soft, hard = soft_label_loss(s, t, 2.0), functional.cross_entropy(s.float(), labels)
    assert float(distillation_loss(s, t, labels, 2.0, 0.3)) == pytest.approx(float(0.3 * soft + 0.7 * hard), rel=1e-5)
    none = torch.full((4,), -100)
    assert float(distillation_loss(s, t, none, 2.0, 0.3)) == pytest.approx(float(0.3 * soft), rel=1e-5)


def test_hidden_states_are_compared_over_real_tokens_only():
    s, t, w = draw(3, 5, 4, seed=1), draw(3, 5, 6, seed=2), draw(4, 6, seed=3)
    by_hand = 0.0
    for b in range(3):
        real = [i for i in range(5) if MASK[b, i]]
        by_hand += sum(float(((s[b, i] @ w - t[b, i]) ** 2).sum()) / 6 for i in real) / len(real) / 3
    assert float(hidden_state_loss(s, t, MASK, w)) == pytest.approx(by_hand, rel=1e-5)
    assert float(hidden_state_loss(t, t, MASK)) == 0
    with pytest.raises(DistillationError, match=r"4 and 6 dimensions .* projection"):
        hidden_state_loss(s, t, MASK)


def test_attention_scores_are_compared_before_the_softmax():
    s, t = draw(3, 2, 5, 5, seed=1), draw(3, 2, 5, 5, seed=2)
    by_hand = 0.0
    for b in range(3):
        n = int(MASK[b].sum())
        by_hand += float(((s[b, :, :n, :n] - t[b, :, :n, :n]) ** 2).mean()) / 3
    assert float(score_loss(s, t, MASK)) == pytest.approx(by_hand, rel=1e-5)
    assert float(score_loss(t, t, MASK)) == 0
    shifted = t + draw(3, 2, 5, 1, seed=3)  # the same after a softmax, not before it
    torch.testing.assert_close(shifted.softmax(-1), t.softmax(-1))
    assert float(score_loss(shifted, t, MASK)) > 0.1
    with pytest.raises(DistillationError, match="2 and 1 heads"):
        score_loss(s, t[:, :1], MASK)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relations_are_those_of_explicit_loops(heads):
    s, t = (draw(3, 5, 4, seed=1), draw(3, 5, 4, seed=2)), (draw(3, 5, 8, seed=3), draw(3, 5, 8, seed=4))
    by_hand = 0.0
    for b in range(3):
        n = int(MASK[b].sum())
        for h in range(heads):
            for i in range(n):
                rows = []
                for x, y in (t, s):
                    d = x.size(-1) // heads
                    part = slice(h * d, (h + 1) * d)
                    scores = torch.stack([x[b, i, part] @ y[b, j, part] / math.sqrt(d) for j in range(n)])
                    rows.append(scores.softmax(-1))
                by_hand += float((rows[0] * (rows[0] / rows[1]).log()).sum()) / heads / n / 3
    assert float(relation_loss(s, t, MASK, heads)) == pytest.approx(by_hand, rel=1e-4)
    assert float(relation_loss(t, t, MASK, heads)) == pytest.approx(0, abs=1e-7)


def test_relations_need_a_width_that_can_be_split():
    with pytest.raises(DistillationError, match="4 dimensions cannot be split into 3"):
        relation_loss((draw(1, 2, 4),) * 2, (draw(1, 2, 6),) * 2, torch.ones(1, 2), 3)


@pytest.mark.parametrize("loss", [hidden_state_loss, score_loss, relation_loss])
def test_padding_never_counts(loss):
    """Whatever stands at padded places, even NaN, changes neither value nor gradient."""
    shape = (3, 2, 5, 5) if loss is score_loss else (3, 5, 4)
    values = []
    for junk in (0.0, 1e4, float("nan")):
        s, t = draw(*shape, seed=1).float(), draw(*shape, seed=2).float()
        if junk == junk or loss is hidden_state_loss:  # a NaN would be in every sum that makes a score
            for x in (s, t):
                if loss is score_loss:
                    x.masked_fill_(~(MASK[:, None, :, None] * MASK[:, None, None, :]).bool(), junk)
                else:
                    x.masked_fill_(~MASK[:, :, None].bool(), junk)
        s.requires_grad_()
        value = loss((s, s), (t, t), MASK, 2) if loss is relation_loss else loss(s, t, MASK)
        value.backward()
        values.append((value.item(), float(s.grad[0].norm()), float(s.grad.nan_to_num().norm())))
    assert values[0][0] > 0
    assert values[0] == pytest.approx(values[1]) and values[0] == pytest.approx(values[2])


@pytest.mark.parametrize("loss", [hidden_state_loss, score_loss, relation_loss, soft_label_loss])
def test_gradients_are_those_of_finite_differences(loss):
    shape = {score_loss: (3, 2, 5, 5), soft_label_loss: (4, 3)}.get(loss, (3, 5, 4))
    s, t = draw(*shape, seed=1).float(), draw(*shape, seed=2).float()

    def value(x):
        if loss is relation_loss:
            return loss((x, x), (t, t), MASK, 2)
        return loss(x, t, 2.0) if loss is soft_label_loss else loss(x, t, MASK)

    variable = s.clone().requires_grad_()
    value(variable).backward()
    direction = draw(*shape, seed=5).float()
    step = 1e-2
    slope = (value(s + step * direction) - value(s - step * direction)) / (2 * step)
    assert float((variable.grad * direction).sum()) == pytest.approx(float(slope), rel=2e-3, abs=1e-5)


# --- students ---------------------------------------------------------------------------------------


def test_layers_are_spread_and_end_with_the_last():
    assert choose_layers(12, 4) == [2, 5, 8, 11]  # TinyBERT's g(m) = 3m
    assert choose_layers(6, 3) == [1, 3, 5] and choose_layers(6, 6) == list(range(6)) and choose_layers(6, 1) == [5]
    for teacher in range(1, 13):
        for student in range(1, teacher + 1):
            chosen = choose_layers(teacher, student)
            assert chosen == sorted(set(chosen)) and len(chosen) == student and chosen[-1] == teacher - 1
            gaps = [b - a for a, b in zip([-1, *chosen], chosen, strict=False)]
            assert max(gaps) - min(gaps) <= 1
    with pytest.raises(DistillationError, match="give 1 to 6"):
        choose_layers(6, 7)


@pytest.mark.parametrize("make", [bert, pangu])
def test_a_student_is_its_teachers_layers(make, tmp_path):
    """Its weights, then its states: the copied layers, run by hand on the teacher, give the student's output."""
    teacher = make()
    before = weights_hash(teacher)
    student = student_from(teacher, [1, 3])
    assert type(student) is type(teacher) and student.config.num_hidden_layers == 2
    own, its = student.state_dict(), teacher.state_dict()
    for key, value in own.items():
        same = key.replace("layer.1.", "layer.3.").replace("layer.0.", "layer.1.")
        same = same.replace("layers.1.", "layers.3.").replace("layers.0.", "layers.1.")
        torch.testing.assert_close(value, its[same], rtol=0, atol=0)
    ids = torch.randint(5, 60, (2, 7))
    stack = teacher.bert.encoder if make is bert else teacher.model.encoder
    chosen = next(m for m in stack.modules() if isinstance(m, torch.nn.ModuleList))
    kept = [chosen[1], chosen[3]]
    with torch.no_grad():
        logits = student(input_ids=ids).logits
        while len(chosen):
            del chosen[0]
        chosen.extend(kept)
        teacher.config.num_hidden_layers = 2
        torch.testing.assert_close(logits, teacher(input_ids=ids).logits)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, logits)
    with torch.no_grad():  # no memory is shared
        for parameter in student.parameters():
            parameter.zero_()
    assert weights_hash(make()) == before


def test_layers_that_the_teacher_lacks_are_told():
    with pytest.raises(DistillationError, match=r"layers are \[1, 4\]; the teacher has 4, so give some of 0 to 3"):
        student_from(bert(), [1, 4])
    with pytest.raises(DistillationError, match="no encoder layers that are known"):
        student_from(torch.nn.Linear(2, 2), [0])


@pytest.mark.parametrize("make", [bert, pangu])
def test_watching_a_layer_gives_the_scores_it_attends_by(make):
    model = make()
    model.set_attn_implementation("eager")
    watch = Watch(model, [2])
    ids = torch.randint(5, 60, (2, 7))
    with torch.no_grad():
        weights = model(input_ids=ids, output_attentions=True).attentions[2]
    seen = watch.seen[2]
    q, k = (split_heads(seen[name], watch.heads[2]) for name in "qk")
    torch.testing.assert_close(attention_scores(q, k).softmax(-1), weights)
    watch.stop()
    before = seen["q"]
    model(input_ids=ids + 1)
    assert watch.seen[2]["q"] is before


# --- runs -------------------------------------------------------------------------------------------


def teacher_and_rows(make=bert):
    """A tiny teacher with opinions: random weights, its head scaled up."""
    teacher, rows = make(), make_rows()
    with torch.no_grad():
        teacher.classifier.weight.mul_(3)
    return teacher, rows


def divergence(teacher, student, rows):
    """How far the student is from the teacher, by the soft loss at T = 1 over single rows."""
    with torch.no_grad():
        values = []
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            values.append(float(soft_label_loss(student(input_ids=ids).logits, teacher(input_ids=ids).logits)))
    return sum(values) / len(values)


@pytest.mark.parametrize("make", [bert, pangu])
@pytest.mark.parametrize(
    "settings",
    [
        Distillation(alpha=1.0),
        Distillation(alpha=0.9, hidden=1.0, attention=0.2, relations=1.0),
    ],
    ids=["logits", "all"],
)
def test_a_student_comes_closer_to_its_teacher(make, settings, tmp_path):
    teacher, rows = teacher_and_rows(make)
    student, before = student_from(teacher, [1, 3]), weights_hash(teacher)
    start = divergence(teacher, student, rows)
    unlabelled = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in make_rows(20, seed=7)]
    result = distill(
        teacher, student, rows, settings, tmp_path, unlabelled=unlabelled, epochs=6,
        train_settings=Train(**FP32), quiet=True,
    )  # fmt: skip
    assert result.steps == 6 * 8
    assert divergence(teacher, student, rows) < 0.5 * start
    assert weights_hash(teacher) == before and all(p.grad is None for p in teacher.parameters())
    assert (tmp_path / "teacher.safetensors").is_file() == settings.only_logits
    hooks = [h for model in (teacher, student) for m in model.modules() for h in m._forward_hooks.values()]
    assert not any(isinstance(getattr(hook, "func", None), MethodType) for hook in hooks)  # transformers leaves its own


def test_a_narrower_student_learns_through_projections(tmp_path):
    teacher, rows = teacher_and_rows()
    torch.manual_seed(3)
    student = random_student(teacher, num_hidden_layers=2, hidden_size=8, intermediate_size=16)
    distiller = Distiller(student, teacher, Distillation(hidden=1.0))
    assert [tuple(w.shape) for w in distiller.projections] == [(8, 16), (8, 16)]
    settings = Distillation(logits=0.0, hidden=1.0, relations=0.5)
    result = distill(
        teacher, student, rows, settings, tmp_path, epochs=6, train_settings=Train(**FP32), quiet=True
    )  # fmt: skip
    losses = [entry["loss"] for entry in result.log]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    with pytest.raises(DistillationError, match="hidden_size 10 cannot be split over 4 heads"):
        random_student(teacher, hidden_size=10, num_attention_heads=4)


def test_logits_known_beforehand_change_nothing(tmp_path):
    """Cached logits and a teacher asked at each step end in the same student, up to rounding."""
    weights = []
    for number, settings in enumerate((Distillation(), Distillation(hidden=1e-12))):
        teacher, rows = teacher_and_rows()
        student = student_from(teacher, [1, 3])
        train_settings = Train(**(FP32 | {"learning_rate": 1e-4}))
        distill(teacher, student, rows, settings, tmp_path / str(number), train_settings=train_settings, quiet=True)
        weights.append(student.classifier.weight.detach().clone())
    assert (tmp_path / "0" / "teacher.safetensors").is_file() and not (tmp_path / "1" / "teacher.safetensors").exists()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)


def test_hard_labels_alone_never_ask_the_teacher_and_train_as_cross_entropy_does(tmp_path):
    from pangu_lab.data.batches import collate
    from pangu_lab.training import Job, cross_entropy_loss, train

    teacher, rows = teacher_and_rows()
    distilled, tuned = student_from(teacher, [1, 3]), student_from(teacher, [1, 3])
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    distill(teacher, distilled, rows, Distillation(alpha=0.0), tmp_path / "a", train_settings=Train(**FP32), quiet=True)
    hook.remove()
    job = Job(rows, partial(collate, pad_token_id=0), cross_entropy_loss, 1, Train(**FP32))
    train(tuned, job, tmp_path / "b", quiet=True, tensorboard=False)
    assert not calls
    torch.testing.assert_close(distilled.classifier.weight, tuned.classifier.weight, rtol=1e-4, atol=1e-5)


def test_a_function_of_ones_own_takes_the_place_of_a_loss(tmp_path):
    seen = []

    def mine(student, teacher, labels, temperature, alpha):
        seen.append((tuple(student.shape), temperature, alpha, int((labels == -100).sum())))
        return distillation_loss(student, teacher, labels, temperature, alpha)

    teacher, rows = teacher_and_rows()
    unlabelled = [dict(row) for row in make_rows(8, seed=7)]  # their labels are not read
    settings = Distillation(temperature=3.0, alpha=0.7, losses=Losses(logits=mine))
    student = student_from(teacher, [3])
    distill(
        teacher, student, rows[:8], settings, tmp_path, unlabelled=unlabelled, train_settings=Train(**FP32), quiet=True
    )
    assert [shape for shape, *_ in seen] == [(8, 3), (8, 3)] and {entry[1:3] for entry in seen} == {(3.0, 0.7)}
    assert sum(entry[3] for entry in seen) == 8


def test_question_answering_is_distilled_over_real_positions(tmp_path):
    teacher = bert(kind=BertForQuestionAnswering, num_labels=2)
    with torch.no_grad():
        teacher.qa_outputs.weight.mul_(3)
    rows = [
        {"input_ids": r["input_ids"], "attention_mask": r["attention_mask"], "start_positions": 1, "end_positions": 2}
        for r in make_rows()
    ]
    student = student_from(teacher, [1, 3])
    settings = Distillation(alpha=0.8, hidden=0.1)
    result = distill(
        teacher, student, rows, settings, tmp_path, unlabelled=make_rows(8, seed=5), epochs=5,
        train_settings=Train(**FP32), quiet=True,
    )  # fmt: skip
    losses = [entry["loss"] for entry in result.log]
    assert all(map(math.isfinite, losses)) and sum(losses[-5:]) < 0.8 * sum(losses[:5])


JOB = """
import os, signal, sys, traceback
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_distillation import *
calls = 0
def run(kill_at, *folders):
    def mine(*arguments):
        global calls
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return distillation_loss(*arguments)
    for folder in folders:
        for kind in ("logits", "hidden"):
            teacher, rows = teacher_and_rows()
            student = student_from(teacher, [1, 3])
            if kind == "hidden":
                student = random_student(teacher, num_hidden_layers=1, hidden_size=8)
            settings = Distillation(hidden=float(kind == "hidden"), losses=Losses(logits=mine))
            training = Train(**(FP32 | dict(dropout=0.1, checkpoint_seconds=0.0)))
            distill(teacher, student, rows, settings, Path(folder, kind), epochs=2, train_settings=training, quiet=True)
            print(weights_hash(student), flush=True)
def exit_code(*arguments):
    # Of a process of its own, which need not import everything again.
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        run(*arguments)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)
killed, whole = sys.argv[1:]
# Ten steps each: the first process dies in the fourth, the second in the third step of the other run.
codes = [exit_code(3, killed), exit_code(9, killed)]
checkpoint = Path(killed, "hidden", "checkpoint").is_dir()
print("codes", *codes, checkpoint, exit_code(-1, killed, whole))
"""


def test_a_run_killed_and_started_again_ends_with_the_same_weights(tmp_path):
    """kill -9 in both runs, one with cached logits, one with a projection that is trained beside the student."""
    job = JOB.format(tests=os.path.dirname(__file__))
    command = [sys.executable, "-c", job, str(tmp_path / "killed"), str(tmp_path / "whole")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    lines = done.stdout.splitlines()
    assert lines[-1].split() == ["codes", *[str(-signal.SIGKILL)] * 2, "True", "0"], done.stderr
    # What the killed processes had finished is printed too; the last one says all four hashes.
    hashes = lines[-5:-1]
    assert hashes[:2] == hashes[2:] and hashes[0] != hashes[1]


def test_a_damaged_or_foreign_cache_of_logits_is_made_anew(tmp_path):
    teacher, rows = teacher_and_rows()
    arguments = dict(train_settings=Train(**FP32), quiet=True)
    (tmp_path / "teacher.safetensors").write_bytes(b"not a safetensors file")
    first = student_from(teacher, [3])
    distill(teacher, first, rows, Distillation(), tmp_path, **arguments)
    (tmp_path / "other").mkdir()
    other = bert(seed=9)
    distill(other, student_from(teacher, [3]), rows, Distillation(), tmp_path / "other", **arguments)
    (tmp_path / "third").mkdir()
    (tmp_path / "other" / "teacher.safetensors").rename(tmp_path / "third" / "teacher.safetensors")
    second = student_from(teacher, [3])
    distill(teacher, second, rows, Distillation(), tmp_path / "third", **arguments)
    assert weights_hash(first) == weights_hash(second)


def test_another_teachers_folder_is_refused(tmp_path):
    from pangu_lab.run_folder import RunFolderError

    teacher, rows = teacher_and_rows()
    distill(teacher, student_from(teacher, [3]), rows, Distillation(), tmp_path, quiet=True)
    with pytest.raises(RunFolderError, match="holds another run"):
        distill(bert(seed=9), student_from(teacher, [3]), rows, Distillation(), tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(temperature=0), "temperature is 0; it must be greater than 0"),
        (dict(alpha=1.5), r"alpha is 1.5; it must be from 0 \(hard labels\) to 1"),
        (dict(logits=0.0), "one must be above 0"),
        (dict(relation_pairs=("ab",)), "give pairs of q, k and v"),
    ],
)
def test_settings_that_cannot_be_are_told(changes, told):
    with pytest.raises(DistillationError, match=told):
        Distillation(**changes)


def test_models_that_do_not_go_together_are_told(tmp_path):
    teacher, rows = teacher_and_rows()
    with pytest.raises(DistillationError, match=r"teacher knows 60 tokens and the student 50"):
        distill(teacher, random_student(teacher, vocab_size=50), rows, Distillation(), tmp_path)
    with pytest.raises(DistillationError, match=r"teacher knows 3 labels and the student 2"):
        distill(teacher, bert(num_labels=2), rows, Distillation(), tmp_path)
    with pytest.raises(
        DistillationError, match=r"teacher_layers are \[0, 4\]; give one of 0 to 3 for each .* 2 layers"
    ):
        distill(teacher, student_from(teacher, [1, 3]), rows, Distillation(teacher_layers=(0, 4)), tmp_path)


def test_unlabelled_texts_of_the_samples_and_of_a_file(tiny_encoder, tmp_path):
    from transformers import AutoTokenizer

    from pangu_lab.hub import BUNDLED_DATA
    from pangu_lab.tasks.classification import read_texts

    texts = bundled_texts(["tweets"])
    lines = (BUNDLED_DATA / "tweets" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(texts) == len(lines) > 400 and len(bundled_texts()) > 1500
    held_out = {json.loads(line)["text"] for line in (BUNDLED_DATA / "tweets" / "test.jsonl").open(encoding="utf-8")}
    assert not held_out & set(texts)
    file = tmp_path / "texts.txt"
    file.write_text("A first text.\n\nA second one, which is longer than ten tokens and will therefore be cut.\n")
    rows = unlabelled_rows([*read_texts(file)[0], " "], AutoTokenizer.from_pretrained(tiny_encoder), 10)
    assert [len(row["input_ids"]) for row in rows] == [6, 10] and all("labels" not in row for row in rows)
    with pytest.raises(DistillationError, match="no bundled sample of texts 'news'"):
        bundled_texts(["news"])
