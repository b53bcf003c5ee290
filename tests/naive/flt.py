"""FLT by the definition, one number at a time (choromanski2023flt).

Symbols: xi frequencies, g spectrum, p density, r freqs, N1, N2 features of places, W projections,
phi the random features. Vectors are looped over by token, blob and frequency.
"""

import math

import torch


def naive_mixture_ratio(xi, mass, centre, log_width, p=None):
    """(g(xi) + g(-xi)) / (2 p(xi)) and (g(xi) - g(-xi)) / (2 p(xi)), p standard normal or given."""
    n = len(xi)
    if p is None:
        p = (2 * math.pi) ** (-n / 2) * torch.exp(-(xi**2).sum() / 2)
    halves = []
    for sign in (1, -1):
        g = 0.0
        for w, mu, s in zip(mass, centre, log_width, strict=True):
            sigma2 = s.exp()
            volume = (math.pi * sigma2) ** (n / 2)
            g = g + w / volume * torch.exp(-((sign * xi - mu) ** 2).sum() / sigma2)
        halves.append(g)
    return (halves[0] + halves[1]) / (2 * p), (halves[0] - halves[1]) / (2 * p)


def naive_scenic_ratio(xi, weight, centre, log_width):
    """g / p with unnormalised blobs, and the constant of one dimension in p."""
    p = torch.exp(-(xi**2).sum() / 2) / math.sqrt(2 * math.pi)
    g = 0.0
    for w, mu, s in zip(weight, centre, log_width, strict=True):
        g = g + w * torch.exp(-((xi - mu) ** 2).sum() / s.exp())
    return g / p


def naive_local_ratio(u, height, tail):
    """C prod_l sin(2 pi u_l) / (pi u_l) over a density of 1 / (1/2 + u), cut at ``tail``."""
    out = height
    for x in u:
        x = abs(x)
        density = 1 / ((0.5 + x) * math.log(1 + 2 * tail)) / 2
        out = out * torch.sin(2 * math.pi * x) / (math.pi * x) / density
    return out


def naive_transform(kind, xi, height, length):
    """Integral of f(z) exp(-2 pi i xi z) over the line, for a mask f of height and length."""
    if kind == "local":
        return height * torch.sin(2 * math.pi * length * xi) / (math.pi * xi)
    turn = 2 * math.pi * xi * length
    if kind == "shift":
        return height * length * math.sqrt(2 * math.pi) * torch.exp(-(turn**2) / 2)
    return height * 2 * length / (1 + turn**2)


def naive_mask(z, xi, even, odd=None):
    """f(z) ~ 1/r sum_m a_m cos(2 pi xi_m . z) + b_m sin(2 pi xi_m . z)."""
    out = 0.0
    for m in range(len(xi)):
        turn = 2 * math.pi * (xi[m] * z).sum()
        out = out + even[m] * torch.cos(turn)
        if odd is not None:
            out = out + odd[m] * torch.sin(turn)
    return out / len(xi)


def naive_places(r, xi, even, odd=None, sides="one"):
    """N1 and N2 at a place r; with one side, every wave is scaled to equal length on both."""
    count = len(xi)
    cos = [torch.cos(2 * math.pi * (xi[m] * r).sum()) for m in range(count)]
    sin = [torch.sin(2 * math.pi * (xi[m] * r).sum()) for m in range(count)]
    root = math.sqrt(count)
    if sides == "both":
        both = [even[m] * cos[m] / root for m in range(count)]
        both += [even[m] * sin[m] / root for m in range(count)]
        return torch.stack(both), torch.stack(both)
    b = [torch.zeros_like(even[0])] * count if odd is None else odd
    s = [(even[m] ** 2 + b[m] ** 2 + 1e-4) ** 0.25 for m in range(count)]
    first = [(even[m] * cos[m] + b[m] * sin[m]) / root / s[m] for m in range(count)]
    first += [(even[m] * sin[m] - b[m] * cos[m]) / root / s[m] for m in range(count)]
    second = [cos[m] / root * s[m] for m in range(count)]
    second += [sin[m] / root * s[m] for m in range(count)]
    return torch.stack(first), torch.stack(second)


def naive_phi(z, W, feature_map):
    """phi(z) = exp(W z - |z|^2 / 2), or max(W z, 0) and a thousandth."""
    out = []
    for w in W:
        x = (w * z).sum()
        if feature_map == "relu":
            out.append(torch.clamp(x, min=0) + 1e-3)
        else:
            out.append(torch.exp(x - (z**2).sum() / 2))
    return torch.stack(out)


def naive_flt(q, k, v, W, *, N1=None, N2=None, causal=False, feature_map="softmax", real=None):
    """O[i] = sum_j phi(Q_i) . phi(K_j) v_j / sum_j phi(Q_i) . phi(K_j), for one head.

    q, k and v are (time, d); N1 and N2 (time, 2 r); Q_i is q_i / d^(1/4) with N1_i behind it.
    """
    time, d = q.shape
    phis = []
    for x, places in ((q, N1), (k, N2)):
        rows = []
        for i in range(time):
            z = x[i] / d**0.25
            if places is not None:
                z = torch.cat([z, places[i]])
            rows.append(naive_phi(z, W, feature_map))
        phis.append(rows)
    out = []
    for i in range(time):
        if real is not None and not real[i]:
            out.append(torch.zeros_like(v[i]))
            continue
        top, bottom = torch.zeros_like(v[i]), 0.0
        for j in range(i + 1 if causal else time):
            if real is not None and not real[j]:
                continue
            a = (phis[0][i] * phis[1][j]).sum()
            top, bottom = top + a * v[j], bottom + a
        out.append(top / bottom)
    return torch.stack(out)
