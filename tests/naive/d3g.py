"""Slow twin of D3G (yao2023d3g): plain loops in the paper's symbols, nothing shared.

Tensors stay tensors only so that gradients can be compared.
"""

import math

import torch


def naive_head_outputs(z, W, b):
    """f_d(x) = W_d e(x) + b_d, one number at a time."""
    n, width = z.shape
    D, C, _ = W.shape
    rows = []
    for i in range(n):
        per_domain = []
        for d in range(D):
            per_class = []
            for c in range(C):
                total = b[d, c]
                for k in range(width):
                    total = total + W[d, c, k] * z[i, k]
                per_class.append(total)
            per_domain.append(torch.stack(per_class))
        rows.append(torch.stack(per_domain))
    return torch.stack(rows)


def naive_example_loss(out, y):
    """Cross-entropy for a class number, mean squared error for numbers."""
    if torch.is_floating_point(y):
        return ((out - y) ** 2).mean()
    log_total = torch.log(sum(torch.exp(o) for o in out))
    return log_total - out[y]


def naive_mixture(per_domain, a, skip, combine):
    """Sum of a_j f_j over j other than ``skip``, divided by the sum of those a_j."""
    total, mixed = 0.0, 0.0
    for j in range(len(per_domain)):
        if j == skip:
            continue
        weight = a[j] if a[j].item() > 0 else a[j] * 0
        part = per_domain[j]
        if combine == "prob":
            part = torch.exp(part) / torch.exp(part).sum()
        total = total + weight
        mixed = mixed + weight * part
    if total.item() == 0:
        return None
    mixed = mixed / total
    return torch.log(mixed) if combine == "prob" else mixed


def naive_loss(f, y, domain, a, lam, combine="logits"):
    """L = mean own-head loss + lam x mean loss of the other heads combined."""
    n, pred, cons, counted = len(f), 0.0, 0.0, 0
    for i in range(n):
        d = int(domain[i])
        pred = pred + naive_example_loss(f[i, d], y[i])
        other = naive_mixture(f[i], a[d], d, combine)
        if other is not None:
            cons = cons + naive_example_loss(other, y[i])
            counted += 1
    return pred / n + lam * (cons / counted if counted else 0.0)


def naive_cosine(u, v):
    dot = sum(p * q for p, q in zip(u, v))
    return dot / math.sqrt(sum(p * p for p in u)) / math.sqrt(sum(q * q for q in v))


def naive_kernel(u, v, kernel, s):
    """exp(s (cos - 1)), or exp(-s |u - v|^2 / 2)."""
    if kernel == "cosine":
        return math.exp(s * (naive_cosine(u, v) - 1))
    return math.exp(-s * sum((p - q) ** 2 for p, q in zip(u, v)) / 2)


def naive_learned(g_i, g_j, w):
    """a^l_ij = (1/R) sum over r of cos(w_r * g(m_i), w_r * g(m_j))."""
    total = 0.0
    for w_r in w:
        u, v = w_r * g_i, w_r * g_j
        total = total + (u @ v) / torch.sqrt(u @ u) / torch.sqrt(v @ v)
    return total / len(w)
