"""A start from fresh weights that hand words on, for encoders that learn from little: see ``start_by_copying``."""

import torch
from torch import nn

from pangu_lab.model.attention import MultiHeadAttention
from pangu_lab.model.layers import Embeddings, MaskedLMHead

COPIED = 1.0  # how much of a word fresh heads hand on


@torch.no_grad()
def start_by_copying(model: nn.Module, head: MaskedLMHead, share: float = COPIED) -> None:
    """Let an encoder with relative positions, and its head for masked words, begin by handing on what a word is.

    W^V becomes orthogonal and Wᴼ ``share`` times its transpose: what is added to a place is then ``share`` times the
    mean of the words that its heads look at. The head answers with the word that its state is nearest to. A model that
    starts so knows at once which words its text has; from random matrices it has to find W^V Wᴼ ≈ 1 first.
    """
    for part in model.modules():
        if isinstance(part, MultiHeadAttention) and part.distances is not None:
            nn.init.orthogonal_(part.v.weight)
            part.o.weight.copy_(share * part.v.weight.T)
        elif isinstance(part, Embeddings) and part.positions is None and part.segments is not None:
            # One vector added to every word would drown in the mean what differs between words.
            nn.init.zeros_(part.segments.weight)
    nn.init.eye_(head.dense.weight)
