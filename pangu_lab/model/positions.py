"""Where a token stands, told to attention as a distance; ``layers.Embeddings`` has the tables of positions."""

import torch
from torch import Tensor, nn


class RelativePositions(nn.Module):
    """A number for each head and each distance between query and key, added to the score.

    Added as in T5 (Raffel et al. 2020, §2.1); distances are cut off at R as in Shaw et al. 2018, §3.2, where T5 has
    buckets. Fresh heads differ widely, so each looks at other neighbors from the first step on. The weights are kept
    a tenth as large as what they stand for: AdamW's steps have one size, and a tenth makes them matter here.
    """

    SPREAD, SCALE = 2.0, 10.0

    def __init__(self, heads: int, most: int) -> None:
        super().__init__()
        self.most = most  # R
        self.weight = nn.Parameter(torch.randn(heads, 2 * most + 1) * (self.SPREAD / self.SCALE))

    def forward(self, length: int) -> Tensor:
        """(H, T, T): row i, column j holds the number of the distance j - i."""
        place = torch.arange(length, device=self.weight.device)
        distance = (place[None, :] - place[:, None]).clamp(-self.most, self.most)  # (T, T)
        return (self.SCALE * self.weight)[:, distance + self.most]
