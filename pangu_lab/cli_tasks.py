"""`pangu-lab train|evaluate|predict`: the three tasks of the course."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pangu_lab.cli_base import (
    AsJson,
    ConfigFile,
    Mirror,
    ModelFolder,
    ModeName,
    TaskName,
    app,
    newest_model,
    out,
    plain,
    print_metrics,
    settings_from,
    shown,
)
from pangu_lab.config import Config, load_config
from pangu_lab.errors import PanguLabError


def text_task(name: str) -> Any:
    """A classification task, or None for squad."""
    from pangu_lab.data.text_tasks import TASKS

    if name not in TASKS and name != "squad":
        raise PanguLabError(f"{name!r} is not a task; there are {', '.join(TASKS)}, squad")
    return TASKS.get(name)


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        out.print(f"  {plain(note)}", style="dim", soft_wrap=True)


@app.command()
def train(
    task: TaskName,
    mode: ModeName = None,
    run: Annotated[str | None, typer.Option(help="Name of the run's folder below paths.runs.")] = None,
    train_on: Annotated[
        str,
        typer.Option(
            help="task: the data set's own train split; bundled: the course's sample, tested on the task's rows."
        ),
    ] = "task",
    bundled: Annotated[bool, typer.Option("--bundled", help="Train and test on the bundled sample.")] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            help="squad: train on your own questions, a .json as SQuAD 1.1 or 2.0, or .jsonl.", metavar="FILE"
        ),
    ] = None,
    test_file: Annotated[
        Path | None, typer.Option(help="squad: test on these; else on articles of --file held back.", metavar="FILE")
    ] = None,
    all_splits: Annotated[
        bool, typer.Option("--all-splits", help="Record the train and validation rows' metrics, too.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Another encoder: a hub id or a folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split, the head and the order.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a batch, at most.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.")] = None,
    rows: Annotated[int | None, typer.Option(help="Training rows.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the run's folder holds and start again.")] = False,
    mirror: Mirror = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a pre-trained encoder on a task, test it, save it and its record.

    A run that was stopped, by Ctrl-C or a crash, goes on when the same command is given again.

    Example: pangu-lab train imdb --mode lesson
    """
    spec = text_task(task)
    if train_on not in ("task", "bundled"):
        raise PanguLabError(f"--train-on is {train_on!r}; it must be task or bundled")
    if (file or test_file) and (spec or not file or bundled or train_on == "bundled"):
        raise PanguLabError("--file is squad's, alone or with --test-file, and without --bundled and --train-on")
    settings = settings_from(config, mode, mirror, seed=seed, learning_rate=learning_rate, batch_size=batch_size)
    own = {"epochs": epochs, "train_rows": rows, "learning_rate": learning_rate, "batch_size": batch_size}
    sizes = {name: value for name, value in own.items() if value is not None}
    if sizes:
        settings = load_config(
            config,
            mode=mode,
            train=settings.train.model_dump(),
            **{task: {settings.mode: sizes}},
            paths={"mirror": str(mirror.resolve())} if mirror else {},
        )
    given: dict[str, Any] = {
        "seed": settings.train.seed,
        "bundled": bundled,
        "train_on_bundled": train_on == "bundled",
    }
    splits: Any
    if spec:
        from pangu_lab.data.text_tasks import load_splits

        splits = load_splits(spec, settings, **given)
    else:
        from pangu_lab.tasks.squad import load_questions, questions_of_files

        if file:
            splits = questions_of_files(file, test_file, settings, seed=settings.train.seed)
        else:
            splits = load_questions(settings, **given)
    first = os.environ.get("RANK", "0") == "0"  # of several processes under torchrun, one speaks
    if first and not as_json:
        out.print(f"data: {plain(str(splits.source))}", soft_wrap=True)
        _print_notes(splits.notes)
    name = run or "-".join(
        [
            task,
            settings.mode,
            file.stem if file else splits.source.kind,
            *(["on-bundled"] if train_on == "bundled" else []),
            str(settings.train.seed),
        ]
    )
    options: dict[str, Any] = {"run": name, "splits": splits, "fresh": fresh, "quiet": as_json, "model_id": model}
    fitted: Any
    measure: Any
    if spec:
        from pangu_lab.tasks import classification

        fitted = classification.fine_tune(task, settings, **options)
        measure = partial(classification.evaluate, fitted.classifier, task=spec)
    else:
        from pangu_lab.tasks import question_answering, squad

        fitted = squad.fine_tune(settings, **options)
        measure = partial(question_answering.evaluate, fitted.reader)
    record = fitted.record
    others = {}
    for split in ("train", "validation") if all_splits else ():
        from pangu_lab.tasks.runs import record_split

        others[split], _ = measure(getattr(splits, split), quiet=as_json)
        record_split(settings.paths.runs / name, record, split, others[split])
    if as_json and first:
        out.print_json(record.model_dump_json())
    if as_json or not first:
        return
    print_metrics(f"{task}, {record.split}: {record.rows['test']:,} rows of {splits.source}", fitted.metrics)
    for split, metrics in others.items():
        print_metrics(f"{task}, {split}: {record.rows[split]:,} rows of {splits.source}", metrics)
    out.print(f"trained in {record.seconds:.0f} s; saved in {shown(settings.paths.runs / name)}")


@app.command()
def evaluate(
    task: TaskName,
    model: ModelFolder = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="A .csv, .tsv, .jsonl or .parquet with columns text and label; for squad a .json or .jsonl of questions.",
            metavar="FILE",
        ),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="squad: write the answers there, in the official format.", metavar="FILE")
    ] = None,
    bundled: Annotated[bool, typer.Option("--bundled", help="Test on the bundled sample.")] = False,
    mode: ModeName = None,
    mirror: Mirror = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure a saved model on a task's test rows, or on a file of your own."""
    spec, settings = text_task(task), settings_from(config, mode, mirror)
    if spec is None:
        _evaluate_squad(settings, model, file, predictions, bundled, as_json)
        return
    from pangu_lab.data.text_tasks import checked_rows, load_splits
    from pangu_lab.tasks.classification import evaluate as measure
    from pangu_lab.tasks.classification import load_classifier, read_texts

    classifier = load_classifier(model or newest_model(settings, task))
    if len(classifier.labels) != len(spec.labels):
        raise PanguLabError(
            f"the model knows {', '.join(classifier.labels)}, and {task} is scored on {', '.join(spec.labels)}; "
            f"give --model a model that `pangu-lab train {task}` saved"
        )
    notes: tuple[str, ...] = ()
    if file:
        texts, labels = read_texts(file)
        if labels is None:
            raise PanguLabError(
                f"{file}: has no column 'label'; add one with the right answers, or use `predict --file`"
            )
        rows, told = checked_rows(texts, labels, spec, str(file)), str(file)
    else:
        splits = load_splits(spec, settings, seed=settings.train.seed, bundled=bundled)
        rows, told, notes = splits.test, str(splits.source), splits.notes
    metrics, _ = measure(classifier, rows, spec, quiet=as_json)
    if as_json:
        out.print_json(
            json.dumps({"rows": len(rows), "data": told, "metrics": {k: vars(v) for k, v in metrics.items()}})
        )
        return
    _print_notes(notes)
    print_metrics(f"{task}: {len(rows):,} rows of {told}", metrics)


def _evaluate_squad(
    settings: Config, model: Path | None, file: Path | None, predictions: Path | None, bundled: bool, as_json: bool
) -> None:
    from pangu_lab.tasks.question_answering import evaluate as measure
    from pangu_lab.tasks.question_answering import read_questions, write_predictions
    from pangu_lab.tasks.squad import load_questions, load_reader

    reader = load_reader(model or newest_model(settings, "squad"))
    if file:
        questions, notes = read_questions(file)
        told = str(file)
        # A reader that never saw such questions may answer "" where the file has some, at a margin of 0.
        reader.no_answer = reader.no_answer or any(not question.answers for question in questions)
    else:
        splits = load_questions(settings, seed=settings.train.seed, bundled=bundled)
        questions, told, notes = list(splits.test), str(splits.source), splits.notes
    metrics, answers = measure(reader, questions, quiet=as_json)
    if predictions:
        write_predictions(answers, predictions)
    if as_json:
        values = {name: vars(metric) for name, metric in metrics.items()}
        out.print_json(json.dumps({"rows": len(questions), "data": told, "metrics": values}))
        return
    _print_notes(notes)
    print_metrics(f"squad: {len(questions):,} questions of {told}", metrics)


@app.command()
def predict(
    task: TaskName,
    texts: Annotated[
        list[str] | None, typer.Argument(help="One text or more, each in quotes.", metavar="[TEXT]...")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Texts from a file: .txt (one a line), .csv, .tsv, .jsonl, .parquet.", metavar="FILE"),
    ] = None,
    question: Annotated[str | None, typer.Option(help="squad: what you want to know.")] = None,
    passage: Annotated[str | None, typer.Option(help="squad: the text that holds the answer, or @FILE.")] = None,
    model: ModelFolder = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Label a text, or answer a question.

    Examples: pangu-lab predict imdb "this film was a waste of an evening"

    pangu-lab predict squad --question "Who ran?" --passage "Anna ran home."
    """
    settings = settings_from(config)
    if text_task(task) is None:
        if texts or file:
            raise PanguLabError("squad takes no text or --file; give --question and --passage (a text, or @FILE)")
        _answer(settings, question, passage, model, as_json)
        return
    if question is not None or passage is not None:
        raise PanguLabError(f"--question and --passage are for squad; give {task} a text in quotes or --file")
    from pangu_lab.tasks.classification import load_classifier, read_texts
    from pangu_lab.tasks.classification import predict as classify

    wanted = list(texts or []) + (read_texts(file)[0] if file else [])
    if not wanted:
        raise PanguLabError("there is nothing to classify; give a text in quotes or --file")
    classifier = load_classifier(model or newest_model(settings, task))
    probabilities = classify(classifier, wanted)
    answers: list[dict[str, Any]] = [
        {"text": text, "label": classifier.labels[int(row.argmax())], "probability": round(float(row.max()), 4)}
        for text, row in zip(wanted, probabilities, strict=True)
    ]
    if as_json:
        out.print_json(json.dumps(answers, ensure_ascii=False))
        return
    for answer in answers:
        shown = answer["text"] if len(answer["text"]) <= 70 else answer["text"][:67] + "…"
        out.print(f"{answer['label']:>9}  {answer['probability']:.3f}  {plain(shown)}", soft_wrap=True)


def _answer(settings: Config, question: str | None, passage: str | None, model: Path | None, as_json: bool) -> None:
    from rich.text import Text

    from pangu_lab.tasks.question_answering import ask
    from pangu_lab.tasks.squad import load_reader

    if not question or not passage:
        raise PanguLabError("squad needs a question and a passage; give --question and --passage (a text, or @FILE)")
    if passage.startswith("@"):
        try:
            passage = Path(passage[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PanguLabError(f"{passage[1:]}: cannot be read ({error}); give a text file in UTF-8") from None
    answers = ask(load_reader(model or newest_model(settings, "squad")), question, passage)
    if as_json:
        out.print_json(json.dumps([vars(answer) for answer in answers], ensure_ascii=False))
        return
    best = answers[0]
    start, end = max(0, best.start - 160), best.end + 160
    shown = Text(("…" if start else "") + passage[start : best.start])
    shown.append(passage[best.start : best.end], style="bold reverse")
    shown.append(passage[best.end : end] + ("…" if end < len(passage) else ""))
    out.print(f"[bold]{plain(best.text) or '(the passage does not say)'}[/bold]  {best.probability:.2f}")
    out.print(shown)
    for answer in answers[1:]:
        out.print(f"  {answer.probability:.2f}  {plain(answer.text) or '(the passage does not say)'}", style="dim")
