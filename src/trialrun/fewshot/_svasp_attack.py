"""The adversarial style of a picture, with crops of it to steady the gradient (li2025svasp).

Written from the project's notes on the published code and the digest; no author code was used.
Ours, not theirs: ``gradient_at``; nothing is computed before the attacked stage that needs a
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from trialrun.blocks.modes import evaluating
from trialrun.core.errors import UsageError
from trialrun.core.seeds import split
from trialrun.core.shapes import check_range
from trialrun.fewshot._svasp_ensemble import (
    PRESETS,
    SIGNS,
    STARTS,
    Draws,
    Preset,
    StyleStep,
    check_classes,
    check_word,
    mix_gradients,
    only_last,
    random_ways,
    used_crops,
)
from trialrun.fewshot._svasp_style import (
    Moments,
    Style,
    at_least_single,
    run_changed,
    style_of,
    swaps,
)


class StyleAttack:
    """Find the styles that hurt a classifier most, stage by stage (li2025svasp).

    Parameters
    ----------
    stages : sequence of str
        Names of the backbone's submodules, in the order in which they run, which is checked; the
        first three of four stages in the paper.
    eps : sequence of float, at least 0
        Sizes of a step; drawn anew for every stage, for the mean and for the std.
    crop_decay : float, at least 0, or None
        Weight of the crops' gradient against the picture's own; None takes the preset's (0.1,
        or 0 where the attack has no crops).
    start_std : float, at least 0
        Spread of the random start, or its size where the start is constant.
    preset : {"code", "paper", "styleadv", "noise"}
        ``code`` subtracts the crops' gradient as the published code does, ``paper`` adds it as
        the text reads. ``styleadv`` has no crops and a constant start. ``noise`` steps in random
        directions and looks at no gradient.
    start : {"gaussian", "constant", "none"} or None
        What is added to the style besides the step; None takes the preset's.
    sign : {"minus", "plus"} or None
        Whether the crops' gradient is taken off or added.
    normalise : bool or None
        Whether each gradient is divided by its own mean size over channels before they are mixed.
    gradient_at : {"clean", "start"}
        Where the gradient is taken: at the picture's own style (the published code) or at the
        random start.

    Raises
    ------
    ValueError
        For a setting out of range or that the preset does not heed, a stage that the backbone has
        not or that runs before an earlier one, crops of another shape, or labels that the
        classifier has not.

    Notes
    -----
    Calling the attack leaves no trace: no gradients in ``.grad``, no hooks, and every part of the
    networks back in its own train or eval mode. Its cost is one forward pass per stage over
    pictures and crops, and a backward pass over the part after that stage.

    Examples
    --------
    >>> from trialrun.fewshot.svasp import Conv4
    >>> net, classifier = Conv4(widths=(4, 4, 4, 4)), nn.Linear(4, 10)
    >>> attack = StyleAttack(stages=net.stages)
    >>> x, crops, y = torch.rand(2, 3, 32, 32), torch.rand(2, 2, 3, 32, 32), torch.tensor([1, 7])
    >>> styles = attack(net, classifier, x, crops, y, seed=0)
    >>> [style.stage for style in styles], styles[0].mean.shape
    (['layer1', 'layer2', 'layer3'], torch.Size([2, 4]))
    """

    def __init__(
        self,
        *,
        stages: Sequence[str],
        eps: Sequence[int | float] = (0.8, 0.08, 0.008),
        crop_decay: int | float | None = None,
        start_std: int | float = 16 / 255,
        preset: str = "code",
        start: str | None = None,
        sign: str | None = None,
        normalise: bool | None = None,
        gradient_at: str = "clean",
    ) -> None:
        self.stages = stages
        self.eps = eps
        self.crop_decay = crop_decay
        self.start_std = start_std
        self.preset = preset
        self.start = start
        self.sign = sign
        self.normalise = normalise
        self.gradient_at = gradient_at
        self._check()

    def _check(self) -> None:
        if isinstance(self.stages, str) or not self.stages:
            raise ValueError(f"stages must list at least one name, got {self.stages!r}")
        if len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages must differ, got {', '.join(self.stages)}")
        if not self.eps:
            raise ValueError("eps must list at least one step size, got none")
        for size in self.eps:
            check_range("eps", size, low=0)
        check_range("start_std", self.start_std, low=0)
        for name, value, known in (
            ("preset", self.preset, tuple(PRESETS)),
            ("start", self.start, (None, *STARTS)),
            ("sign", self.sign, (None, *SIGNS)),
            ("gradient_at", self.gradient_at, ("clean", "start")),
        ):
            check_word(name, value, known)
        check_range("crop_decay", self.settings.crop_decay, low=0)
        if self.preset == "noise":
            idle = [name for name in ("sign", "normalise") if getattr(self, name) is not None]
            idle += ["crop_decay"] if self.crop_decay else []
            idle += ["gradient_at"] if self.gradient_at != "clean" else []
            if idle:
                raise UsageError(
                    f"preset noise looks at no gradient, so {', '.join(idle)} would do nothing: "
                    "leave them out or take another preset"
                )

    def __repr__(self) -> str:
        return f"StyleAttack(stages={tuple(self.stages)}, eps={tuple(self.eps)}, {self.settings})"

    @property
    def settings(self) -> Preset:
        """Return the settings in force: the preset's, save where they were given."""
        base = PRESETS[self.preset]
        return Preset(
            base.crop_decay if self.crop_decay is None else float(self.crop_decay),
            base.start if self.start is None else self.start,
            base.sign if self.sign is None else self.sign,
            base.normalise if self.normalise is None else self.normalise,
        )

    def draws(self, stage: str, shape: tuple[int, int], *, seed: int) -> Draws:
        """Return what the attack draws at a ``stage`` for styles of a ``shape`` under a ``seed``.

        The shape is (batch, channels).
        """
        generator = torch.Generator().manual_seed(split(seed, "style", stage))
        picks = torch.randint(len(self.eps), (2,), generator=generator).tolist()
        start = self.settings.start
        if start == "gaussian":
            both = self.start_std * torch.randn(2, *shape, generator=generator)
        else:
            both = torch.full((2, *shape), self.start_std if start == "constant" else 0.0)
        return Draws(both[0], both[1], float(self.eps[picks[0]]), float(self.eps[picks[1]]))

    def __call__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        x: Float[Tensor, "batch channels height width"],
        crops: Float[Tensor, "crops batch channels height width"] | None,
        y: Int[Tensor, batch],
        *,
        seed: int = 0,
    ) -> list[Style]:
        """Return one adversarial style per stage for the pictures ``x``; see `steps`."""
        return [step.style for step in self.steps(backbone, classifier, x, crops, y, seed=seed)]

    def steps(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        x: Float[Tensor, "batch channels height width"],
        crops: Float[Tensor, "crops batch channels height width"] | None,
        y: Int[Tensor, batch],
        *,
        seed: int = 0,
    ) -> list[StyleStep]:
        """Return, stage by stage, the adversarial style and the gradient behind it.

        Parameters
        ----------
        backbone : torch.nn.Module
            From pictures to features of shape (batch, width).
        classifier : torch.nn.Module
            From features to one logit per base class, (batch, classes).
        x : tensor of shape (batch, channels, height, width)
        crops : tensor of shape (crops, batch, channels, height, width), or None
            Crops of the same pictures, in the same order, at the same size. Not used by an
            attack whose crop decay is 0.
        y : integer tensor of shape (batch,)
            Base classes, each below the number of the classifier's logits.
        seed : int
            Seed of the starts and the step sizes.
        """
        used = used_crops(self.settings.crop_decay, x, crops, y)
        y = y.long()
        with torch.inference_mode(False):  # gradients are wanted here, whatever stands around
            if self.preset != "noise":
                with evaluating(backbone, classifier):
                    return self._walk(backbone, classifier, x, used, y.clone(), seed)
            check_classes(y, getattr(classifier, "out_features", None))
            with evaluating(backbone):
                return self._walk(backbone, None, x, used, y, seed)

    def _walk(
        self,
        backbone: nn.Module,
        classifier: nn.Module | None,
        x: Tensor,
        crops: Tensor,
        y: Tensor,
        seed: int,
    ) -> list[StyleStep]:
        done: list[StyleStep] = []
        for stage in self.stages:
            styles = [step.style for step in done]
            own, raw = self._measure(backbone, classifier, x, crops, y, styles, stage, seed)
            done.append(self._step(stage, own, raw, seed))
        return done

    def _measure(
        self,
        backbone: nn.Module,
        classifier: nn.Module | None,
        x: Tensor,
        crops: Tensor,
        y: Tensor,
        styles: list[Style],
        stage: str,
        seed: int,
    ) -> tuple[Moments, Moments]:
        """Return the pictures' own style at a stage, and the loss's gradients by it."""
        count, size = len(crops), len(x)
        leaves: list[Tensor] = []
        kept: list[Tensor] = []

        def recompose(features: Tensor) -> Tensor:
            own = style_of(features)
            kept.extend(own)
            if classifier is None:
                return features
            torch.set_grad_enabled(True)  # up to here nothing needs a gradient
            start = self._start(stage, own, count * size, seed)
            leaves.extend(part.detach().clone().requires_grad_() for part in start)
            unit = at_least_single(features) - own.mean[..., None, None]
            unit = unit / own.std[..., None, None]
            made = unit * leaves[1][..., None, None] + leaves[0][..., None, None]
            return made.to(features.dtype)

        changes = {name: only_last(size, change) for name, change in swaps(styles).items()}
        both = torch.cat([crops.flatten(0, 1), x]) if count else x
        with torch.no_grad():
            features = run_changed(backbone, both, {**changes, stage: recompose}, ordered=True)
            own = Moments(*(part[count * size :] for part in kept))
            if classifier is None:
                return own, random_ways(stage, own, seed)
            loss = self._loss(classifier(features), y.repeat(count + 1))
            gradients = torch.autograd.grad(loss, leaves)
        return own, Moments(*(gradient.unflatten(0, (count + 1, size)) for gradient in gradients))

    def _start(self, stage: str, own: Moments, first: int, seed: int) -> Moments:
        if self.gradient_at == "clean":
            return own
        size = (len(own.mean) - first, own.mean.shape[1])
        drawn = self.draws(stage, size, seed=seed)
        moved = (own.mean.clone(), own.std.clone())
        moved[0][first:] += drawn.mean_start.to(own.mean)
        moved[1][first:] += drawn.std_start.to(own.std)
        return Moments(*moved)

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        if logits.ndim != 2 or int(y.max()) >= logits.shape[1] or int(y.min()) < 0:
            raise ValueError(
                f"classifier must give one logit for every class in y, up to {int(y.max())}, "
                f"got logits of shape {tuple(logits.shape)}"
            )
        return functional.cross_entropy(logits, y)

    def _step(self, stage: str, own: Moments, raw: Moments, seed: int) -> StyleStep:
        batch, channels = own.mean.shape
        drawn = self.draws(stage, (batch, channels), seed=seed)
        gradient = Moments(*(mix_gradients(part, self.settings) for part in raw))
        mean = own.mean + drawn.mean_start.to(own.mean) + drawn.mean_eps * gradient.mean.sign()
        std = own.std + drawn.std_start.to(own.std) + drawn.std_eps * gradient.std.sign()
        return StyleStep(Style(mean.detach(), std.detach(), stage), gradient, raw)
