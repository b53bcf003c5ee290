"""Few-shot heads that are graphs of support and queries (satorras2018gnn).

They follow the sizes in the project's notes on the published code (a 128-wide entry, two layers of
96); their inner form is written from memory of the equations. Published graph heads normalise by
batch statistics that are never stored, and so predict a query differently when the other queries
change. Here this is the `TransductiveGNNHead`; `InductiveGNNHead` sees one query at a time.
"""

from __future__ import annotations

from itertools import pairwise

from trialrun.fewshot import _svasp_stack  # noqa: F401

# isort: split
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trialrun.core.shapes import check_range
from trialrun.fewshot._svasp_heads import check_episode

_NUMBERS = 2**23
"""About how many numbers a layer of a graph head holds where queries can be taken in turns."""


class _Norm(nn.Module):
    """Batch normalisation over an episode's graphs, without running statistics.

    Inputs have shape (episodes, graphs, ..., width). ``alone`` takes the statistics of each graph
    by itself, else those of all graphs of an episode together.
    """

    def __init__(self, width: int, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        dims = tuple(range(2 if self.alone else 1, x.ndim - 1))
        variance, mean = torch.var_mean(x, dim=dims, correction=0, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias


class _Edges(nn.Module):
    """Learned adjacency: how much each node takes from each other, from their difference."""

    def __init__(self, width: int, hidden: int, *, alone: bool) -> None:
        super().__init__()
        widths = [width, 2 * hidden, 2 * hidden, hidden, hidden]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(_Norm(b, alone=alone) for b in widths[1:])
        self.last = nn.Linear(hidden, 1, bias=False)  # a bias would cancel in the softmax

    def forward(self, nodes: Tensor) -> Tensor:
        edges = (nodes.unsqueeze(-2) - nodes.unsqueeze(-3)).abs()
        for linear, norm in zip(self.linears, self.norms):
            edges = functional.leaky_relu(norm(linear(edges)))
        itself = torch.eye(nodes.shape[-2], dtype=torch.bool, device=nodes.device)
        return self.last(edges).squeeze(-1).masked_fill(itself, -torch.inf).softmax(-1)


class _GNNHead(nn.Module):
    """What both graph heads share; `_alone` tells them apart."""

    _alone: bool

    def __init__(self, width: int, *, way: int = 5, seed: int = 0) -> None:
        super().__init__()
        check_range("width", width, low=1)
        check_range("way", way, low=2, unit="classes")
        self.width, self.way = width, way
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            entry, hidden = 128, 96
            self.entry = nn.Linear(width, entry)
            self.entry_norm = _Norm(entry, alone=self._alone)
            sizes = [entry + way, entry + way + hidden // 2, entry + way + hidden]
            self.edges = nn.ModuleList(_Edges(n, hidden, alone=self._alone) for n in sizes)
            self.mixes = nn.ModuleList(nn.Linear(2 * n, hidden // 2) for n in sizes[:2])
            self.norms = nn.ModuleList(_Norm(hidden // 2, alone=self._alone) for _ in sizes[:2])
            self.out = nn.Linear(2 * sizes[2], way)

    def _queries_per_graph(self) -> int:
        return 1

    def _queries_at_once(self, support: Tensor) -> int:
        """How many queries go together where graphs are apart and no gradient is wanted."""
        way, shot = support.shape[-3:-1]
        episodes = support.shape[:-3].numel()
        return max(1, _NUMBERS // max(1, episodes * self.numbers(way, shot, 1)))

    def numbers(self, way: int, shot: int, queries: int) -> int:
        """Return about how many numbers an episode's widest layer holds.

        ``way``, ``shot`` and ``queries`` are classes, pictures per class and all queries.
        """
        together = self._queries_per_graph()
        widest = 128 + 96 + self.way  # differences of nodes before the last layer
        return -(-queries // together) * (way * shot + together) ** 2 * widest

    def forward(
        self,
        support: Float[Tensor, "*episodes way shot width"],
        query: Float[Tensor, "*episodes queries width"],
    ) -> Float[Tensor, "*episodes queries way"]:
        """Return logits of shape (..., queries, way).

        ``support`` has shape (..., way, shot, width), ``query`` (..., queries, width).
        """
        check_episode(support, query)
        way, shot, width = support.shape[-3:]
        if (way, width) != (self.way, self.width):
            raise ValueError(
                f"support must have {self.way} classes and features {self.width} wide, "
                f"got {way} and {width}"
            )
        together = self._queries_per_graph()
        most = self._queries_at_once(support)
        if self._alone and not torch.is_grad_enabled() and query.shape[-2] > most:
            parts = [self.forward(support, part) for part in query.split(most, dim=-2)]
            return torch.cat(parts, dim=-2)
        if query.shape[-2] % together:
            raise ValueError(
                f"queries must fill graphs of {together}, got {query.shape[-2]}: give a multiple"
            )
        lead, support, query = query.shape[:-2], _flat(support, 3), _flat(query, 2)
        episodes, queries = query.shape[:2]
        query = query.unflatten(1, (-1, together))
        graphs = query.shape[1]
        known = support.flatten(1, 2).unsqueeze(1).expand(-1, graphs, -1, -1)
        nodes = self.entry_norm(self.entry(torch.cat([known, query], dim=2)))
        labels = torch.eye(way, dtype=nodes.dtype, device=nodes.device)
        labels = torch.cat([labels.repeat_interleave(shot, 0), labels.new_zeros(together, way)])
        nodes = torch.cat([nodes, labels.expand(episodes, graphs, -1, -1)], dim=-1)
        for edges, mix, norm in zip(self.edges, self.mixes, self.norms):
            taken = torch.cat([nodes, edges(nodes) @ nodes], dim=-1)
            nodes = torch.cat([nodes, functional.leaky_relu(norm(mix(taken)))], dim=-1)
        last = torch.cat([nodes, self.edges[-1](nodes) @ nodes], dim=-1)[:, :, -together:]
        return self.out(last).reshape(*lead, queries, way)


def _flat(x: Tensor, kept: int) -> Tensor:
    return x.reshape(-1, *x.shape[x.ndim - kept :])


class InductiveGNNHead(_GNNHead):
    """Score each query on a graph of its own with the support (satorras2018gnn).

    Statistics for normalising are taken over one graph, so that no other query has a part in a
    prediction.

    Parameters
    ----------
    width : int, at least 1
        Width of the features.
    way : int, at least 2
        Classes of an episode; the head serves this number only.
    seed : int
        Start of the weights; torch's global generator is left alone.

    Raises
    ------
    ValueError
        For another number of classes or another width than the head was made for.

    Examples
    --------
    >>> head = InductiveGNNHead(8, way=3)
    >>> head(torch.randn(3, 1, 8), torch.randn(7, 8)).shape
    torch.Size([7, 3])
    """

    _alone = True


class TransductiveGNNHead(_GNNHead):
    """Score queries on graphs that are normalised together, as published (satorras2018gnn).

    Every query's prediction depends on all queries of its episode, through the statistics and,
    where a graph holds several, through its edges.

    Parameters
    ----------
    width : int, at least 1
        Width of the features.
    way : int, at least 2
        Classes of an episode; the head serves this number only.
    queries_per_graph : int, at least 1
        Queries that share a graph, taken in the order given. With ``way``, and queries given one
        of each class in turn, this is the published layout, which tells the head that every graph
        holds one query of each class; 1 does not.
    seed : int
        Start of the weights; torch's global generator is left alone.

    Raises
    ------
    ValueError
        For another number of classes or another width than the head was made for, or queries
        that do not fill whole graphs.

    Examples
    --------
    >>> head = TransductiveGNNHead(8, way=3)
    >>> head(torch.randn(3, 1, 8), torch.randn(7, 8)).shape
    torch.Size([7, 3])
    """

    _alone = False

    def __init__(
        self, width: int, *, way: int = 5, queries_per_graph: int = 1, seed: int = 0
    ) -> None:
        super().__init__(width, way=way, seed=seed)
        check_range("queries_per_graph", queries_per_graph, low=1)
        self.queries_per_graph = queries_per_graph

    def _queries_per_graph(self) -> int:
        return self.queries_per_graph
