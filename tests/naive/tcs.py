"""The slow twin of tcs.

Plain loops, the method's symbols, nothing shared with the fast code.
"""

import math

import torch


def naive_coordinates(F, d):
    """Mean, top-d principal axes by power iteration with deflation, and their variances."""
    N, D = F.shape
    mu = torch.zeros(D, dtype=F.dtype)
    for i in range(N):
        mu = mu + F[i] / N
    S = torch.zeros(D, D, dtype=F.dtype)
    for i in range(N):
        for a in range(D):
            for b in range(D):
                S[a, b] += (F[i, a] - mu[a]) * (F[i, b] - mu[b]) / (N - 1)
    axes, variances = [], []
    for j in range(d):
        v = torch.ones(D, dtype=F.dtype) + 0.1 * torch.arange(D, dtype=F.dtype) * (j + 1)
        for _ in range(5000):
            v = S @ v
            for u in axes:
                v = v - (u @ v) * u
            v = v / v.norm()
        variances.append(v @ S @ v)
        largest = max(range(D), key=lambda a: abs(float(v[a])))
        axes.append(v if v[largest] > 0 else -v)
    return mu, torch.stack(axes), torch.stack(variances)


def naive_head(g, A, mu, U, m, W, b):
    """Logits of student features g: ((g A - mu) U * m) W + b; U holds one axis a row."""
    B, Dt, d, C = len(g), len(mu), len(U), len(b)
    out = []
    for i in range(B):
        f = []
        for t in range(Dt):
            f.append(sum(g[i, s] * A[s, t] for s in range(g.shape[1])))
        c = []
        for j in range(d):
            c.append(sum((f[t] - mu[t]) * U[j, t] for t in range(Dt)))
        logits = []
        for k in range(C):
            logits.append(b[k] + sum(m[j] * c[j] * W[k, j] for j in range(d)))
        out.append(torch.stack(logits))
    return torch.stack(out)


def naive_median(values):
    ordered = sorted(float(v) for v in values)
    n = len(ordered)
    return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2


def naive_lsh(student, teacher, H, table, l2, right=None):
    """Hashing loss; biases are minus the medians of the table's projections."""
    n_hashes, total, count = H.shape[1], 0.0, 0
    bias = [-naive_median([row @ H[:, k] for row in table]) for k in range(n_hashes)]
    for i in range(len(student)):
        if right is not None and not right[i]:
            continue
        loss = 0.0
        for k in range(n_hashes):
            z = student[i] @ H[:, k] + bias[k]
            bit = 1.0 if float(teacher[i] @ H[:, k]) + bias[k] > 0 else 0.0
            # The log of the logistic function, without overflow at either end.
            log_p = -torch.log1p(torch.exp(-z)) if z.item() > 0 else z - torch.log1p(torch.exp(z))
            log_q = log_p - z
            loss = loss - (bit * log_p + (1 - bit) * log_q) / n_hashes
        if l2:
            width = student.shape[1]
            loss = loss + sum((student[i, a] - teacher[i, a]) ** 2 for a in range(width)) / width
        total, count = total + loss, count + 1
    return total / max(count, 1)


def naive_removed(scores, there, keep, fraction):
    """Axes that one removal takes: of least score, later ones first among equals."""
    goes = min(max(math.floor(fraction * len(there)), 1), len(there) - keep)
    order = sorted(there, key=lambda j: (float(scores[j]), -j))
    return set(order[: max(goes, 0)])
