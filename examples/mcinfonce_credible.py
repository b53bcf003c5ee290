"""Learn posteriors of ambiguous inputs, and retrieve what each may be.

Give a file name to have a picture drawn as well (extra ``plots``).
"""

import math
import sys

import torch
from torch import nn

from trialrun.representation.mcinfonce import (
    MCInfoNCELoss,
    VMFEncoder,
    VMFWorld,
    VonMisesFisher,
    credible_coverage,
    credible_retrieval,
    procrustes,
)

torch.set_num_threads(1)
world = VMFWorld(3, kappa=(8.0, 64.0), positives="reference", seed=1)
encoder = VMFEncoder(nn.Identity(), 3, width=world.x_dim, head="mlps", hidden=(64, 64))
train, test = world.inputs(1000, seed=1), world.inputs(1000, 50, seed=2)
encoder.calibrate(train.x)

for part in ("mu", "kappa"):
    loss = MCInfoNCELoss(kappa=20.0, n_samples=16, rolled=4)
    encoder.requires_grad_(False)
    weights = encoder.parameters_of(part)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser, steps = torch.optim.Adam(weights, lr=5e-3), 150
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    pairs = world.pairs(steps * 128, 0, seed=3 if part == "mu" else 4)
    for step, (ref, pos) in enumerate(zip(pairs.ref.split(128), pairs.pos.split(128))):
        if part == "mu":  # from soft to sharp, lest the sphere stay folded
            loss.log_kappa.fill_(min(1.0, step / (0.7 * steps)) * math.log(20.0))
        optimiser.zero_grad()
        loss(encoder(ref), encoder(pos)).backward()
        optimiser.step()
        schedule.step()

with torch.no_grad():
    turn = procrustes(encoder(train.x).mu, train.posterior.mu.float())
    found = encoder(test.x)
    found = VonMisesFisher(found.mu @ turn, found.kappa)
share = float(credible_coverage(found, test.latents).mean())
print(f"95 % credible sets hold the true latent in {share:.0%} of all cases")

order = found.kappa.argsort()
ids, _ = credible_retrieval(found[order[[20, -20]]], test.latents[:, 0].float())
print(f"an ambiguous input has more candidates than a clear one: {len(ids[0]) > 2 * len(ids[1])}")

if len(sys.argv) > 1:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 4.6), layout="constrained")
    angle = torch.linspace(0, 2 * math.pi, 200)
    for place, row in enumerate(order[[20, -20]].tolist()):
        axes = figure.add_subplot(1, 2, place + 1)
        mu, true = found.mu[row], test.posterior.mu[row].float()
        # Look straight down on mu: two tangent directions span the page.
        basis = torch.linalg.qr(torch.stack([mu, *torch.eye(3)[:2]]).T).Q[:, 1:]
        near = test.latents[:, 0].float()
        near = near[(near @ mu) > 0]
        inside = torch.zeros(len(test.x), dtype=torch.bool)
        inside[ids[place]] = True
        inside = inside[(test.latents[:, 0].float() @ mu) > 0]
        axes.scatter(*(near[~inside] @ basis).T, s=9, c="#b8bcc4", label="gallery")
        axes.scatter(*(near[inside] @ basis).T, s=12, c="#2a6fdb", label="in the credible set")
        axes.scatter(*(test.latents[row].float() @ basis).T, s=16, c="#d9822b", marker="+",
                     label="what it truly may be")  # fmt: skip
        axes.scatter(*(true @ basis), s=90, c="#b3261e", marker="*", label="true mean")
        gap = float(found[row : row + 1].gap_quantile(0.95))
        radius = math.sqrt(gap * (2 - gap))
        axes.plot(radius * torch.cos(angle), radius * torch.sin(angle), c="#2a6fdb", lw=1.5)
        axes.plot(torch.cos(angle), torch.sin(angle), c="#555555", lw=0.8)
        axes.set(aspect="equal", xticks=[], yticks=[])
        kind = ("ambiguous", "clear")[place]
        axes.set_title(f"{kind} input: kappa {float(found.kappa[row]):.0f} "
                       f"(true {float(test.posterior.kappa[row]):.0f})", fontsize=11)  # fmt: skip
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize=9)  # fmt: skip
    figure.savefig(sys.argv[1], metadata={"Date": None} if sys.argv[1].endswith("svg") else None)
