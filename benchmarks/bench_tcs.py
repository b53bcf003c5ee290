"""A TCS training step against cross-entropy and on-line distillation; axes and memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional

from _bench import Row, compare, emit, figure
from trialrun.fewshot.tcs import ELSHLoss, TailoredCoordinates, Tailoring, TCSHead

BATCH, STUDENT, TEACHER, CLASSES, AXES, IMAGES = 32, 128, 384, 100, 128, 2000
LIMIT = (
    "the head adds 2 x batch x (student x teacher + teacher x axes) multiplications forward and "
    "twice that backward, whatever the student costs; the buffers are teacher x axes numbers, and "
    "with eLSH axes x hashes numbers and images x hashes bits; a trainable adapter adds student x "
    "teacher numbers, their gradient and two numbers of optimiser state each"
)


def student() -> nn.Sequential:
    """Make a student of about the cost of a small mobile network at 64 pixels."""
    plan = ((3, 32, 2), (32, 64, 1), (64, 96, 2), (96, STUDENT, 1))
    layers: list[nn.Module] = []
    for into, out, stride in plan:
        layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def teacher() -> nn.Sequential:
    """Make a frozen teacher of three times the student's width."""
    layers: list[nn.Module] = []
    for into, out, stride in ((3, 96, 2), (96, 192, 1), (192, 288, 2), (288, TEACHER, 1)):
        layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return made.eval().requires_grad_(False)


def material() -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Return images, labels, numbers and teacher features."""
    draw = torch.Generator().manual_seed(0)
    features = np.random.default_rng(0).normal(size=(IMAGES, TEACHER)).astype("float32")
    return (
        torch.randn(BATCH, 3, 64, 64, generator=draw),
        torch.randint(CLASSES, (BATCH,), generator=draw),
        torch.randint(IMAGES, (BATCH,), generator=draw),
        features,
    )


def stepper(*parts: nn.Module, loss_of: Callable[[], Tensor], after: object = None) -> Callable:
    """Return one update of AdamW on ``loss_of``."""
    optimiser = torch.optim.AdamW([p for m in parts for p in m.parameters()], lr=1e-3, fused=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss_of().backward()
        if isinstance(after, TCSHead):
            after.accumulate_scores()
        optimiser.step()
        if isinstance(after, TCSHead):
            after.prune(1)

    return step


def plain() -> Callable[[], None]:
    """Return a step of cross-entropy alone."""
    x, y, _, _ = material()
    net = nn.Sequential(student(), nn.Linear(STUDENT, CLASSES))
    return stepper(net, loss_of=lambda: functional.cross_entropy(net(x), y))


def tcs(*, mimic: bool = False) -> Callable[[], None]:
    """Return a step of TCS with tailoring, with or without eLSH."""
    x, y, index, features = material()
    coords = TailoredCoordinates(n_components=AXES).fit(features)
    head, net = TCSHead(STUDENT, coords, CLASSES, tailoring=Tailoring(keep=64)), student()
    elsh = ELSHLoss(coords, features, n_hashes=512) if mimic else None

    def loss_of() -> Tensor:
        loss = functional.cross_entropy(head(net(x)), y)
        return loss if elsh is None else loss + 6.0 * elsh(head.features_, index)

    return stepper(net, head, loss_of=loss_of, after=head)


def online() -> Callable[[], None]:
    """Return a step of logit distillation that runs the teacher on the batch."""
    x, y, _, _ = material()
    net, frozen = nn.Sequential(student(), nn.Linear(STUDENT, CLASSES)), teacher()
    top = nn.Linear(TEACHER, CLASSES).requires_grad_(False)

    def loss_of() -> Tensor:
        with torch.no_grad():
            told = functional.log_softmax(top(frozen(x)) / 4, dim=1)
        logits = net(x)
        own = functional.log_softmax(logits / 4, dim=1)
        soft = functional.kl_div(own, told, reduction="batchmean", log_target=True)
        return 0.1 * functional.cross_entropy(logits, y) + 0.9 * 16 * soft

    return stepper(net, loss_of=loss_of)


def held(adapter: bool) -> tuple[int, int, int]:
    """Return the bytes that TCS holds beyond plain training, of its buffers, and of its adapter.

    The student is as wide as the teacher and as the classifier's input on either side, so that all
    that differs is the head: between two steps, with its gradients and its optimiser's state.
    """
    x, y, _, features = material()
    coords = TailoredCoordinates(n_components=AXES).fit(features[:, :STUDENT])
    sizes = []
    head = TCSHead(STUDENT, coords, CLASSES, adapter=adapter, tailoring=Tailoring(keep=64))
    for top in (nn.Linear(STUDENT, CLASSES), head):
        net = nn.Sequential(student(), top)
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
        functional.cross_entropy(net(x), y).backward()
        optimiser.step()
        if isinstance(top, TCSHead):
            top.features_ = None
        state = [v for kept in optimiser.state.values() for v in kept.values()]
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        there = [*net.parameters(), *net.buffers(), *grads, *state]
        sizes.append(sum(v.numel() * v.element_size() for v in there))
    buffers = sum(v.numel() * v.element_size() for v in head.buffers())
    return sizes[1] - sizes[0], buffers, 0 if head.adapter is None else 4 * 4 * head.adapter.numel()


def main() -> list[Row]:
    """Time all rows, print them and append them to the results."""
    torch.set_num_threads(1)
    _, _, _, features = material()
    bare, buffers, _ = held(adapter=False)
    whole, _, adapter = held(adapter=True)
    names = f"student of {STUDENT}, teacher of {TEACHER}, {AXES} axes"
    rows = [
        compare(
            f"tcs step / plain cross-entropy, {names}", tcs(), plain(), repeats=25, at_most=1.05
        ),
        compare("tcs step with eLSH, 512 hashes / plain", tcs(mimic=True), plain(), repeats=9),
        compare("tcs step / on-line distillation", tcs(), online(), repeats=9, at_most=0.6),
        compare(
            "tcs coordinates / scikit-learn PCA (covariance_eigh), 2000 x 384",
            lambda: TailoredCoordinates(n_components=AXES).fit(features),
            lambda: PCA(n_components=AXES, svd_solver="covariance_eigh").fit(
                features.astype("float64")
            ),
            repeats=9,
        ),
        figure(
            "tcs memory beyond plain training, no adapter / its buffers", bare / buffers, "times",
            at_most=1.05,
        ),
        figure(
            "tcs memory beyond plain training / its buffers and its adapter's four tables",
            whole / (buffers + adapter), "times", at_most=1.05,
        ),
    ]  # fmt: skip
    emit(rows, limit=LIMIT)
    return rows


if __name__ == "__main__":
    main()
