"""A D3G training step against one head, and against the loop over heads a user would write."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from _bench import Row, compare, emit, figure
from trialrun.shift.d3g import D3GLoss, RelationWeightedHeads

BATCH = 256
LIMIT = (
    "heads add 2 x batch x domains x outputs x width multiplications to the encoder's forward "
    "pass and twice that to the backward one; time and the (batch, domains, outputs) memory grow "
    "linearly with domains, and the relation matrix with their square"
)


def encoder(widths: tuple[int, ...]) -> nn.Sequential:
    """Make layers of the given widths with ReLUs, alike every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*parts)


def stepper(parameters: list[nn.Parameter], loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    """Return ten updates of AdamW on ``loss_of`` as one call, to time above the clock's noise."""
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def steps() -> None:
        for _ in range(10):
            optimiser.zero_grad(set_to_none=True)
            loss_of().backward()
            optimiser.step()

    return steps


def material(widths: tuple[int, ...], domains: int, classes: int) -> tuple[Tensor, ...]:
    """Return x, y, domain numbers and relations of one batch."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(BATCH, widths[0], generator=generator),
        torch.randint(classes, (BATCH,), generator=generator),
        torch.randint(domains, (BATCH,), generator=generator),
        torch.rand(domains, domains, generator=generator),
    )


def d3g(widths: tuple[int, ...], domains: int, classes: int) -> Callable[[], None]:
    """Return steps of D3G with its consistency term."""
    net = RelationWeightedHeads(encoder(widths), domains, classes)
    loss = D3GLoss(0.5)
    x, y, index, relations = material(widths, domains, classes)
    return stepper(list(net.parameters()), lambda: loss(net(x), y, index, relations))


def erm(widths: tuple[int, ...], classes: int) -> Callable[[], None]:
    """Return steps of a plain network with one linear head and no relation."""
    net = nn.Sequential(encoder(widths), nn.Linear(widths[-1], classes))
    x, y, _, _ = material(widths, 1, classes)
    return stepper(list(net.parameters()), lambda: nn.functional.cross_entropy(net(x), y))


def looped(widths: tuple[int, ...], domains: int, classes: int) -> Callable[[], None]:
    """Return the same steps with a ModuleList of heads and a loop over domains."""
    shared = encoder(widths)
    heads = nn.ModuleList(nn.Linear(widths[-1], classes) for _ in range(domains))
    x, y, index, relations = material(widths, domains, classes)

    def loss_of() -> Tensor:
        features = shared(x)
        outputs = [head(features) for head in heads]
        own, other = torch.zeros(()), torch.zeros(())
        for d in range(domains):
            mine = index == d
            if not mine.any():
                continue
            weights = relations[d].clone()
            weights[d] = 0
            mixed = sum(w * out[mine] for w, out in zip(weights / weights.sum(), outputs))
            own = own + nn.functional.cross_entropy(outputs[d][mine], y[mine], reduction="sum")
            other = other + nn.functional.cross_entropy(mixed, y[mine], reduction="sum")
        return (own + 0.5 * other) / BATCH

    return stepper([*shared.parameters(), *heads.parameters()], loss_of)


def main() -> list[Row]:
    """Time all rows, print them and append them to the results."""
    torch.set_num_threads(1)
    tall, small = (100, 512, 512, 64), (20, 64, 64)
    rows = [
        compare(
            "d3g step, 50 heads / 1 head, encoder 100-512-512-64, 10 classes",
            d3g(tall, 50, 10), d3g(tall, 1, 10), repeats=15, at_most=1.3,
        ),
        compare(
            "d3g step, 50 heads / plain network, encoder 100-512-512-64, 10 classes",
            d3g(tall, 50, 10), erm(tall, 10), repeats=15,
        ),
        compare(
            "d3g step, 50 heads / 1 head, encoder 20-64-64, 2 classes",
            d3g(small, 50, 2), d3g(small, 1, 2), repeats=15,
        ),
        compare(
            "d3g step, 50 heads, one contraction against a loop over heads",
            d3g(tall, 50, 10), looped(tall, 50, 10), repeats=9, faster=True, at_least=2.0,
        ),
    ]  # fmt: skip
    wide = compare("d3g step, 400 heads / 50 heads", d3g(tall, 400, 10), d3g(tall, 50, 10))
    rows += [wide, figure("d3g parameters of 50 heads", 50 * 10 * 65, "numbers")]
    emit(rows, limit=LIMIT)
    return rows


if __name__ == "__main__":
    main()
