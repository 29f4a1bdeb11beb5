"""Recall over a gap: the last token of a text asks which letter stood 1, 2, 4, … 63 tokens before it.

Five architectures of one size read the same texts: RNN, LSTM, GRU, CNN and this package's Transformer. The task is
as small as a long-range task can be; how far back each can answer is what tells them apart. Read ``draw_texts``
first, ``race`` last.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pangu_lab.errors import PanguLabError
from pangu_lab.model import PanguConfig, PanguModel

LETTERS = 8
GAPS = (1, 2, 4, 8, 16, 32, 63)  # token LETTERS + i asks for the letter GAPS[i] tokens back
VOCABULARY = LETTERS + len(GAPS)
KINDS = ("RNN", "LSTM", "GRU", "CNN", "Transformer")
KERNEL, CNN_LAYERS = 5, 4
# Of 1e-3, 3e-3 and 1e-2 the rate at which each learned most in 400 steps, on a seed that no lab uses (1000).
LEARNING_RATES = {"RNN": 1e-2, "LSTM": 1e-2, "GRU": 1e-2, "CNN": 3e-3, "Transformer": 3e-3}


class RecallError(PanguLabError, ValueError):
    """The task cannot be set as asked."""


def draw_texts(which: Tensor, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts (B, T) of letters drawn evenly, the question GAPS[which] (B,) at their ends, and the letters asked for (B,).

    Who knows nothing can only guess, and is right once in eight times.
    """
    if length <= max(GAPS):
        raise RecallError(f"length is {length}; the largest gap, {max(GAPS)}, needs {max(GAPS) + 1} tokens")
    texts = torch.randint(LETTERS, (len(which), length), generator=generator)  # (B, T)
    letters = texts[torch.arange(len(which)), length - 1 - torch.tensor(GAPS)[which]]  # (B,)
    texts[:, -1] = LETTERS + which
    return texts, letters


# --- five readers -----------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Embedding and one recurrent layer, nn.RNN, nn.LSTM or nn.GRU; its last state goes on."""

    def __init__(self, layer: Callable[..., nn.Module], width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.layer = layer(width, width, batch_first=True)

    def forward(self, texts: Tensor) -> Tensor:
        """(B, T) to the last state (B, d)."""
        states, _ = self.layer(self.words(texts))  # (B, T, d)
        return states[:, -1]


class Convolutional(nn.Module):
    """Embedding and layers of x + ReLU(conv(x)), each over a token and the four before it (causal)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, KERNEL) for _ in range(CNN_LAYERS))

    def forward(self, texts: Tensor) -> Tensor:
        """(B, T) to the last token's vector (B, d)."""
        x = self.words(texts).transpose(1, 2)  # (B, d, T)
        for layer in self.layers:
            x = x + functional.relu(layer(functional.pad(x, (KERNEL - 1, 0))))
        return x[:, :, -1]

    @property
    def reach(self) -> int:
        """How many tokens before the last one can change the result."""
        return CNN_LAYERS * (KERNEL - 1)


class Attending(nn.Module):
    """A pre-norm PanGu encoder of two layers and two heads."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        shape = {"hidden_size": width, "intermediate_size": 2 * width, "max_position_embeddings": length}
        config = PanguConfig(
            vocab_size=VOCABULARY,
            type_vocab_size=0,
            num_hidden_layers=2,
            num_attention_heads=2,
            norm_position="pre",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=None,
            **shape,
        )
        self.encoder = PanguModel(config, add_pooling_layer=False)

    def forward(self, texts: Tensor) -> Tensor:
        """(B, T) to the last token's vector (B, d)."""
        return self.encoder(texts).last_hidden_state[:, -1]


class Reader(nn.Module):
    """One of the five and a linear layer over the letters."""

    def __init__(self, kind: str, width: int, length: int) -> None:
        super().__init__()
        self.body: nn.Module
        match kind:
            case "RNN" | "LSTM" | "GRU":
                self.body = Recurrent(getattr(nn, kind), width)
            case "CNN":
                self.body = Convolutional(width)
            case "Transformer":
                self.body = Attending(width, length)
            case _:
                raise RecallError(f"there is no reader {kind!r}; there are {', '.join(KINDS)}")
        self.head = nn.Linear(width, LETTERS)

    def forward(self, texts: Tensor) -> Tensor:
        """(B, T) to logits (B, letters)."""
        return self.head(self.body(texts))

    @property
    def parameters_count(self) -> int:
        """How many numbers can be trained."""
        return sum(p.numel() for p in self.parameters())


def width_for(kind: str, parameters: int, length: int) -> int:
    """The width at which a reader of that kind has about as many parameters; a Transformer's two heads share it."""
    step = 2 if kind == "Transformer" else 1
    with torch.device("meta"):
        counts = {width: Reader(kind, width, length).parameters_count for width in range(4, 130, step)}
    return min(counts, key=lambda width: abs(counts[width] - parameters))


# --- training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recall:
    """One trained reader: accuracy by gap on ``texts`` fresh texts each, and the seconds that training took."""

    kind: str
    seed: int
    parameters: int
    accuracy: dict[int, float]
    texts: int
    seconds: float


def race(kinds: Sequence[str], seeds: Iterable[int], length: int, steps: int, width: int = 24) -> Iterator[Recall]:
    """Train each kind with each seed, on the same texts for all kinds; all as large as a Transformer of that width.

    Yields each result as it is there, so that a notebook can show its progress.
    """
    size = Reader("Transformer", width, length).parameters_count
    widths = {kind: width_for(kind, size, length) for kind in kinds}
    for seed in seeds:
        for kind in kinds:
            yield train_reader(kind, widths[kind], seed, length, steps)


def train_reader(kind: str, width: int, seed: int, length: int, steps: int, batch: int = 64, test: int = 256) -> Recall:
    """Adam on fresh texts with all gaps, the rate falling to zero; then accuracy at each gap."""
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(kind, width, length)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(reader.parameters(), lr=LEARNING_RATES[kind])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        texts, letters = draw_texts(torch.randint(len(GAPS), (batch,), generator=generator), length, generator)
        loss = functional.cross_entropy(reader(texts), letters)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    accuracy = {}
    held_out = torch.Generator().manual_seed(10_000 + seed)
    reader.eval()
    with torch.no_grad():
        for i, gap in enumerate(GAPS):
            texts, letters = draw_texts(torch.full((test,), i), length, held_out)
            accuracy[gap] = float((reader(texts).argmax(dim=-1) == letters).float().mean())
    return Recall(kind, seed, reader.parameters_count, accuracy, test, seconds)
