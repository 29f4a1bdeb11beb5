"""`pangu-lab pretrain`: a model from fresh weights, on the synthetic world, text files, or a data set of the hub."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pangu_lab.cli_base import AsJson, ConfigFile, ModeName, app, out, settings_from, shown
from pangu_lab.errors import PanguLabError

if TYPE_CHECKING:
    from pangu_lab.pretraining import Corpus

# Mode -> d, layers, documents, epochs, batch, learning rate, held-out stories, steps between evaluations.
SIZES: dict[str, tuple[int, int, int, int, int, float, int, int]] = {
    "smoke": (32, 1, 200, 1, 16, 8e-3, 4, 10),
    "lesson": (96, 2, 90_000, 1, 32, 2e-3, 200, 250),
    "full": (768, 12, 2_000_000, 1, 256, 3e-4, 600, 1000),
}


@app.command()
def pretrain(
    objective: Annotated[
        str, typer.Option(help="Comma-separated: mlm or wwm; with nsp or sop, pos, ner, hard or soft; or with spans.")
    ] = "mlm,sop,pos,ner",
    on: Annotated[
        str, typer.Option("--on", help="world, a text file or a folder of them, or a data set's id.", metavar="CORPUS")
    ] = "world",
    column: Annotated[str, typer.Option(help="The column of a data set that has the text.")] = "text",
    mode: ModeName = None,
    run: Annotated[str | None, typer.Option(help="Name of the run's folder below paths.runs.")] = None,
    documents: Annotated[int | None, typer.Option(help="Documents to train on.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the documents, each with masks of its own.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Documents in a batch, at most.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    rate: Annotated[float, typer.Option(help="Share of the tokens that are masked.")] = 0.15,
    max_length: Annotated[int, typer.Option(help="Tokens of a piece of text, at most.")] = 128,
    seed: Annotated[int | None, typer.Option(help="Seed of the weights, the masks and the order.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the run's folder holds and start again.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Pre-train a small model from fresh weights, and save it as a Hugging Face model.

    With [bold]spans[/bold] it is an encoder–decoder, else an encoder. On the world, the held-out loss stands beside
    the lowest loss that any model can have. A run that was stopped goes on when the same command is given again.
    """
    import shutil

    from pangu_lab.model import PanguConfig
    from pangu_lab.model.checkpoints import quiet_transformers
    from pangu_lab.pretraining import held_out, parse_objectives, unwrapped
    from pangu_lab.pretraining import pretrain as run_pretraining
    from pangu_lab.speed import matmul_speed
    from pangu_lab.training import choose_precision

    settings = settings_from(config, mode)
    names = parse_objectives(objective)
    width, layers, most, passes, batch, peak_rate, stories, every = SIZES[settings.mode]
    changes = {
        "batch_size": batch_size or batch,
        "learning_rate": learning_rate or peak_rate,
        "warmup_ratio": 0.05,
        "adam_beta2": 0.98,  # gradients of a model that starts from nothing change faster than AdamW's default expects
        "seed": settings.train.seed if seed is None else seed,
        "precision": "fp32" if width < 256 and settings.train.precision == "auto" else settings.train.precision,
    }
    hyper = settings.train.model_copy(update=changes)
    corpus, tokenizer, world = _corpus(on, column, documents or most, max_length, hyper.seed, settings)
    folder = settings.paths.runs / (run or f"pretrain-{'-'.join(names)}-{settings.mode}")
    if fresh and folder.is_dir():
        shutil.rmtree(folder)
    shape = PanguConfig(
        architecture="encoder-decoder" if "spans" in names else "encoder",
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        decoder_layers=max(1, layers // 2) if "spans" in names else None,
        num_attention_heads=max(8, width // 64),
        # What a large model learns about places from much text, a small one is given.
        relative_positions=8 if width < 256 else 0,
        norm_position="pre",
        max_position_embeddings=max(256, max_length),
        initializer_range=0.05 if width < 256 else 0.02,
    )
    data = held_out(world, 77, stories) if world is not None else None
    model, result = run_pretraining(
        corpus,
        names,
        shape,
        hyper,
        folder,
        epochs=epochs or passes,
        rate=rate,
        evaluate=data.evaluate if data is not None else None,
        evaluate_every=every,
        peak_flops=matmul_speed(0.3, choose_precision(hyper.precision)[0]),
        quiet=as_json,
        tensorboard=True,
    )
    with quiet_transformers():
        unwrapped(model).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    found = _figures(result)
    if as_json:
        print(json.dumps(found | {"folder": str(folder)}))
    else:
        for key, value in found.items():
            out.print(f"{key:>18}  {value:,.3f}".rstrip("0").rstrip("."))
        out.print(f"model: {shown(folder / 'model')}", soft_wrap=True)


def _corpus(on: str, column: str, count: int, max_length: int, seed: int, settings: Any) -> tuple["Corpus", Any, Any]:
    """The corpus, its tokenizer, and the world if it is the world's."""
    from itertools import islice

    from transformers import AutoTokenizer

    from pangu_lab import hub
    from pangu_lab.data.world import World
    from pangu_lab.pretraining import text_corpus, world_corpus

    if on == "world":
        world = World()
        return world_corpus(world, world.documents(seed, 0, count)), world.tokenizer(), world
    tokenizer = AutoTokenizer.from_pretrained(hub.find_model(settings.model, settings).folder)
    path = Path(on)
    if path.exists():
        files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        try:
            texts = [file.read_text(encoding="utf-8") for file in files]
        except UnicodeDecodeError as error:
            raise PanguLabError(f"{on}: is not UTF-8 text (byte {error.start}); convert it first") from None
        # An empty line ends a document; a line is a sentence.
        pieces = [piece for text in texts for piece in text.split("\n\n")]
        return text_corpus(pieces[:count], tokenizer, max_length, path.name), tokenizer, None
    import datasets

    try:
        rows = datasets.load_dataset(on, split="train", streaming=True)
        pieces = [row[column] for row in islice(rows, count)]
    except KeyError:
        raise PanguLabError(f"{on}: has no column {column!r}; name the one with the text by --column") from None
    except Exception as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PanguLabError(f"{on}: is neither world, nor a file, nor a data set that can be loaded ({told})") from None
    return text_corpus(pieces, tokenizer, max_length, on), tokenizer, None


def _figures(result: Any) -> dict[str, float]:
    """What a run's log says: last losses, and the median speed of its steps."""
    import statistics

    steps = [entry for entry in result.log if "tokens_per_second" in entry]
    found: dict[str, float] = {"steps": result.steps, "seconds": round(result.seconds, 1)}
    found["train_loss"] = statistics.fmean(entry["loss"] for entry in steps[-50:])
    found["tokens_per_second"] = statistics.median(entry["tokens_per_second"] for entry in steps)
    found["flops_utilization"] = statistics.median(entry["flops_utilization"] for entry in steps)
    if result.evaluations:
        found |= {key: value for key, value in result.evaluations[-1].items() if key != "step"}
    return found
