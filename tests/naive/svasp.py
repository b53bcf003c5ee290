"""The slow twin of svasp.

Plain loops, one picture at a time, the paper's symbols, nothing shared with the fast code.
"""

import math

import torch


def naive_style(f):
    """Mean and deviation of one picture's channels; f has shape (channels, height, width)."""
    mu, sigma = [], []
    for channel in f:
        values = [value for row in channel for value in row]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        mu.append(mean)
        sigma.append((variance + 1e-5).sqrt())
    return torch.stack(mu), torch.stack(sigma)


def naive_adain(f, mu_new, sigma_new):
    mu, sigma = naive_style(f)
    out = torch.zeros_like(f)
    for c in range(f.shape[0]):
        for i in range(f.shape[1]):
            for j in range(f.shape[2]):
                out[c, i, j] = (f[c, i, j] - mu[c]) / sigma[c] * sigma_new[c] + mu_new[c]
    return out


def naive_unit(g):
    size = sum(abs(float(v)) for v in g) / len(g)
    return g / size if size > 0 else g


def naive_attack(parts, classifier, n_attacked, x, crops, y, draws, xi, sign, normalise, at_start):
    """Attack one picture after another.

    ``parts`` are the network's stages and what follows them, in eval mode; the first
    ``n_attacked`` are attacked. ``draws[s]`` holds the starts (mean, std) and steps (mean, std).
    Returns per stage the styles and the mixed gradients, each a pair of (batch, channels).
    """
    count = (len(crops) + 1) * len(x)
    styles, mixed = [], []
    for s in range(n_attacked):
        stage_styles, stage_mixed = [], []
        for b in range(len(x)):
            gradients = []
            for which in [*range(len(crops)), None]:
                own = which is None
                f = x[b] if own else crops[which][b]
                for t in range(s + 1):
                    f = parts[t](f[None])[0].detach()
                    if own and t < s:
                        f = naive_adain(f, styles[t][0][b], styles[t][1][b])
                mu, sigma = naive_style(f)
                start = (mu.clone(), sigma.clone())
                if at_start and own:
                    start = (mu + draws[s][0][b], sigma + draws[s][1][b])
                leaves = [value.detach().clone().requires_grad_() for value in start]
                g = (f - mu[:, None, None]) / sigma[:, None, None]
                g = g * leaves[1][:, None, None] + leaves[0][:, None, None]
                rest = g[None]
                for part in parts[s + 1 :]:
                    rest = part(rest)
                logits = classifier(rest)[0]
                loss = -(logits[y[b]] - torch.logsumexp(logits, 0)) / count
                gradients.append(torch.autograd.grad(loss, leaves))
            new, kept = [], []
            for kind in range(2):
                own = gradients[-1][kind]
                own = naive_unit(own) if normalise else own
                total = own
                if len(crops):
                    mean = sum(g[kind] for g in gradients[:-1]) / len(crops)
                    mean = naive_unit(mean) if normalise else mean
                    total = own + sign * xi * mean
                base = (mu, sigma)[kind]
                new.append(base + draws[s][kind][b] + draws[s][2 + kind] * torch.sign(total))
                kept.append(total)
            stage_styles.append(new)
            stage_mixed.append(kept)
        styles.append([torch.stack([row[k] for row in stage_styles]) for k in range(2)])
        mixed.append([torch.stack([row[k] for row in stage_mixed]) for k in range(2)])
    return styles, mixed


def _log_softmax(row):
    top = max(float(v) for v in row)
    return row - top - torch.log(sum(torch.exp(v - top) for v in row))


def _cross_entropy(logits, labels):
    return -sum(_log_softmax(row)[label] for row, label in zip(logits, labels)) / len(logits)


def _soft(logits, targets):
    total = 0.0
    for row, target in zip(logits, targets):
        q, logp = torch.exp(_log_softmax(target)), _log_softmax(row)
        total = total - sum(a * b for a, b in zip(q, logp))
    return total / len(logits)


def _kl(clean, adv):
    total = 0.0
    for a, b in zip(clean, adv):
        p, q = _log_softmax(a), _log_softmax(b)
        total = total + sum(torch.exp(u) * (u - v) for u, v in zip(p, q))
    return total / len(clean)


def naive_loss(fsl_ori, fsl_adv, cls_ori, cls_crop, dom_crop, dom_clean, dom_adv, y, y_query, lam):
    y, y_query = [int(v) for v in y], [int(v) for v in y_query]
    k = len(cls_crop) // len(y)
    l_dom = (
        _cross_entropy(dom_crop, [0] * len(dom_crop))
        + _cross_entropy(dom_clean, [0] * len(dom_clean))
        + _cross_entropy(dom_adv, [1] * len(dom_adv))
    ) / 3
    targets = [cls_ori[i % len(y)] for i in range(len(cls_crop))]
    l_crop = (1 - lam) * _cross_entropy(cls_crop, y * k) + lam * _soft(cls_crop, targets)
    return (
        _cross_entropy(fsl_ori, y_query)
        + _cross_entropy(fsl_adv, y_query)
        + _kl(fsl_ori, fsl_adv)
        + _cross_entropy(cls_ori, y)
        + l_dom
        + l_crop
    )


def naive_prototype_logits(support, query):
    """Support (way, shot, width), query (queries, width)."""
    out = torch.zeros(len(query), len(support), dtype=query.dtype)
    for q, point in enumerate(query):
        for w, shots in enumerate(support):
            prototype = sum(shots) / len(shots)
            out[q, w] = -sum((a - b) ** 2 for a, b in zip(point, prototype))
    return out


def naive_accuracies(features, support, query):
    """Accuracy of every episode in points, by one episode, query and class at a time."""
    found = []
    for rows, asked in zip(support.tolist(), query.tolist()):
        shots = torch.stack([torch.stack([features[i] for i in row]) for row in rows])
        right = total = 0
        for truth, indices in enumerate(asked):
            for i in indices:
                logits = naive_prototype_logits(shots, features[i][None])[0]
                right += int(logits.argmax()) == truth
                total += 1
        found.append(100 * right / total)
    return found


def naive_interval(values):
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


def _leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def _normalised(rows, weight, bias):
    """Batch normalisation of a list of vectors by their own mean and variance."""
    mean = sum(rows) / len(rows)
    variance = sum((row - mean) ** 2 for row in rows) / len(rows)
    return [(row - mean) / (variance + 1e-5).sqrt() * weight + bias for row in rows]


def naive_inductive_gnn(state, support, query):
    """One graph per query, node by node and edge by edge; ``state`` maps names to weights."""

    def linear(name, x):
        bias = state.get(f"{name}.bias")
        y = state[f"{name}.weight"] @ x
        return y if bias is None else y + bias

    def norm(name, rows):
        return _normalised(rows, state[f"{name}.weight"], state[f"{name}.bias"])

    def adjacency(layer, nodes):
        n = len(nodes)
        edges = [(nodes[i] - nodes[j]).abs() for i in range(n) for j in range(n)]
        for k in range(4):
            edges = [linear(f"edges.{layer}.linears.{k}", e) for e in edges]
            edges = [_leaky(e) for e in norm(f"edges.{layer}.norms.{k}", edges)]
        scores = [linear(f"edges.{layer}.last", e)[0] for e in edges]
        rows = []
        for i in range(n):
            total = sum(torch.exp(scores[i * n + j]) for j in range(n) if j != i)
            rows.append([torch.exp(scores[i * n + j]) / total * (i != j) for j in range(n)])
        return rows

    def taken(layer, nodes):
        weights = adjacency(layer, nodes)
        mixed = [sum(w * node for w, node in zip(row, nodes)) for row in weights]
        return [torch.cat([node, other]) for node, other in zip(nodes, mixed)]

    way = len(support)
    out = []
    for point in query:
        given = [shot for shots in support for shot in shots]
        labels = [torch.eye(way, dtype=point.dtype)[w] for w, shots in enumerate(support)
                  for _ in shots]  # fmt: skip
        rows = norm("entry_norm", [linear("entry", v) for v in [*given, point]])
        labels.append(torch.zeros(way, dtype=point.dtype))
        nodes = [torch.cat(pair) for pair in zip(rows, labels)]
        for layer in range(2):
            fresh = [linear(f"mixes.{layer}", v) for v in taken(layer, nodes)]
            fresh = [_leaky(v) for v in norm(f"norms.{layer}", fresh)]
            nodes = [torch.cat(pair) for pair in zip(nodes, fresh)]
        out.append(linear("out", taken(2, nodes)[-1]))
    return torch.stack(out)
