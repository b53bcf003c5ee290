"""The slow twin of mcinfonce.

Plain loops, the papers' symbols, nothing shared with the fast code. Draws are given where the
fast code makes them, so that both see the same.
"""

import math

import torch
from torch.distributions import Beta


def naive_log_bessel(nu, kappa, terms=400):
    """log I_nu(kappa) by its power series; good to kappa of some hundreds."""
    logs = [
        (2 * m + nu) * math.log(kappa / 2) - math.lgamma(m + 1) - math.lgamma(m + nu + 1)
        for m in range(terms)
    ]
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs))


def naive_log_normaliser(d, kappa):
    """log C_d(kappa) of the density C exp(kappa mu.z)."""
    nu = d / 2 - 1
    return nu * math.log(kappa) - (d / 2) * math.log(2 * math.pi) - naive_log_bessel(nu, kappa)


def naive_length(d, kappa):
    nu = d / 2 - 1
    return math.exp(naive_log_bessel(nu + 1, kappa) - naive_log_bessel(nu, kappa))


def naive_log_prob(mu, kappa, z):
    d, dot = len(mu), sum(m * x for m, x in zip(mu, z))
    return naive_log_normaliser(d, kappa) + kappa * dot


def naive_cosine_cdf(d, kappa, w, cells=200_000):
    """Midpoint sums of the cosine's density over the angle."""
    inside = total = 0.0
    for i in range(cells):
        angle = math.pi * (i + 0.5) / cells
        mass = math.exp(kappa * (math.cos(angle) - 1)) * math.sin(angle) ** (d - 2)
        total += mass
        if math.cos(angle) <= w:
            inside += mass
    return inside / total


def naive_mcinfonce(r, p, n, kappa):
    """r, p (S, B, D); n (S, B, M, D)."""
    S, B, _ = r.shape
    loss = 0.0
    for b in range(B):
        share = 0.0
        for s in range(S):
            near = torch.exp(kappa * (r[s, b] * p[s, b]).sum())
            far = 0.0
            for m in range(n.shape[2]):
                far = far + torch.exp(kappa * (r[s, b] * n[s, b, m]).sum()) / n.shape[2]
            share = share + near / (near + far) / S
        loss = loss - torch.log(share) / B
    return loss


def naive_kernel(r, p, n, kappa):
    """The same with kernels averaged over draws first, and negatives summed."""
    S, B, _ = r.shape
    loss = 0.0
    for b in range(B):
        near = far = 0.0
        for s in range(S):
            near = near + torch.exp(kappa * (r[s, b] * p[s, b]).sum()) / S
            for m in range(n.shape[2]):
                far = far + torch.exp(kappa * (r[s, b] * n[s, b, m]).sum()) / S
        loss = loss - torch.log(near / (near + far)) / B
    return loss


def naive_hib(r, p, n, a, b0):
    S, B, _ = r.shape
    loss = 0.0
    for b in range(B):
        match = 0.0
        for s in range(S):
            match = match + torch.sigmoid(b0 - a * (r[s, b] - p[s, b]).norm()) / S
        loss = loss - torch.log(match) / B
        for m in range(n.shape[2]):
            differ = 0.0
            for s in range(S):
                differ = differ + torch.sigmoid(a * (r[s, b] - n[s, b, m]).norm() - b0) / S
            loss = loss - torch.log(differ) / (B * n.shape[2])
    return loss


def naive_log_elk(mu1, kappa1, mu2, kappa2):
    """log of the integral of p q over the sphere, times its area."""
    d = len(mu1)
    joint = math.sqrt(sum((kappa1 * a + kappa2 * b) ** 2 for a, b in zip(mu1, mu2)))
    area = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    logs = naive_log_normaliser(d, kappa1) + naive_log_normaliser(d, kappa2)
    return logs - naive_log_normaliser(d, joint) + math.log(area)


def naive_elk(ref, pos, neg):
    """Lists of (mu, kappa); neg a list of such lists."""
    loss = 0.0
    for (mu, kappa), (mu_p, kappa_p), others in zip(ref, pos, neg):
        near = math.exp(naive_log_elk(mu, kappa, mu_p, kappa_p))
        far = sum(math.exp(naive_log_elk(mu, kappa, *other)) for other in others) / len(others)
        loss -= math.log(near / (near + far)) / len(ref)
    return loss


def naive_credible(mu, threshold, gallery):
    """Gallery rows at or above the threshold, nearest first."""
    found = []
    for i, z in enumerate(gallery):
        cosine = sum(m * x for m, x in zip(mu, z))
        if cosine >= threshold:
            found.append((-cosine, i))
    return [i for _, i in sorted(found)]


def naive_draws(mu, kappa, n_samples):
    """Rejection as commonly written: all parameters repeated per draw, beta proposals for all of
    them in every round, until the last one is accepted; then a Householder reflection each."""
    d = mu.shape[-1]
    mu = mu.expand(n_samples, *mu.shape).contiguous()
    kappa = kappa.expand(n_samples, *kappa.shape).contiguous().double()
    b = (d - 1) / (2 * kappa + torch.sqrt(4 * kappa**2 + (d - 1) ** 2))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + (d - 1) * torch.log(1 - x0**2)
    w, done = torch.zeros_like(kappa), torch.zeros_like(kappa, dtype=torch.bool)
    beta = Beta(torch.full_like(kappa, (d - 1) / 2), torch.full_like(kappa, (d - 1) / 2))
    while not done.all():
        e = beta.sample()
        proposal = (1 - (1 + b) * e) / (1 - (1 - b) * e)
        bound = kappa * proposal + (d - 1) * torch.log(1 - x0 * proposal) - c
        accept = (bound >= torch.log(torch.rand_like(kappa))) & ~done
        w, done = torch.where(accept, proposal, w), done | accept
    w = w.to(mu.dtype)[..., None]
    v = torch.nn.functional.normalize(torch.randn(*mu.shape[:-1], d - 1), dim=-1).to(mu.dtype)
    x = torch.cat([w, torch.sqrt((1 - w**2).clamp(min=1e-10)) * v], dim=-1)
    u = -mu.clone()
    u[..., 0] += 1
    u = torch.nn.functional.normalize(u + 1e-20, dim=-1)
    return x - 2 * (x * u).sum(-1, keepdim=True) * u


def naive_joint_gap(d, kappa1, kappa2, draws, seed):
    """1 - cos of the means of two posteriors of one latent, walking from the first mean to z and
    from z to the second mean by explicit vectors."""
    torch.manual_seed(seed)
    e1 = torch.eye(d, dtype=torch.float64)[0]
    gaps = []
    z = naive_draws(e1, torch.tensor(kappa1), draws)
    m = naive_draws(z, torch.full((draws,), float(kappa2)), 1)[0]
    for s in range(draws):
        gaps.append(1 - sum(a * b for a, b in zip(e1.tolist(), m[s].tolist())))
    return sorted(gaps)
