"""Slow twins of the training half: plain loops over Python numbers, and over tensors one element
at a time where gradients are compared. Nothing is imported from trialrun.
"""

import math

import torch


def naive_logp(logits, token):
    """log softmax of one row of logits at one token."""
    top = max(logits.tolist())
    total = 0.0
    for x in logits:
        total = total + torch.exp(x - top)
    return logits[token] - top - torch.log(total)


def naive_sft(logits, labels):
    """Mean over trained tokens, each predicted from the place before it."""
    total, count = 0.0, 0
    for row in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[row, t] != -100:
                total = total - naive_logp(logits[row, t - 1], labels[row, t])
                count += 1
    return total / count


def naive_answer(logits, labels):
    """Each row's sum of log-probabilities of its trained tokens, over their number."""
    means = []
    for row in range(labels.shape[0]):
        total, count = 0.0, 0
        for t in range(1, labels.shape[1]):
            if labels[row, t] != -100:
                total = total + naive_logp(logits[row, t - 1], labels[row, t])
                count += 1
        means.append(total / count)
    return torch.stack(means)


def naive_dpo(chosen, rejected, chosen_reference, rejected_reference, beta):
    """-log sigma(beta [w - w_ref - (l - l_ref)]), the mean over pairs."""
    total = 0.0
    for w, l_, wr, lr in zip(chosen, rejected, chosen_reference, rejected_reference):
        total = total + torch.log(1 + torch.exp(-beta * ((w - wr) - (l_ - lr))))
    return total / len(chosen)


def naive_advantages(rewards, floor):
    """(r - mean) / (std + floor) in each group, std over n - 1; zeros where all are equal."""
    out = []
    for group in rewards.tolist():
        mean = sum(group) / len(group)
        spread = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - 1))
        same = all(r == group[0] for r in group)
        out.append([0.0 if same else (r - mean) / (spread + floor) for r in group])
    return torch.tensor(out, dtype=torch.float64)


def naive_grpo(logps, old, reference, advantages, trained, clip, kl, mean):
    """The clipped loss with the k3 term, token by token."""
    rows, all_tokens = [], []
    for b in range(logps.shape[0]):
        tokens = []
        for t in range(logps.shape[1]):
            if not trained[b, t]:
                continue
            ratio = torch.exp(logps[b, t] - old[b, t])
            bounded = min(max(ratio.item(), 1 - clip), 1 + clip)
            bounded = ratio if bounded == ratio.item() else torch.tensor(bounded, dtype=ratio.dtype)
            a = advantages[b]
            first, second = ratio * a, bounded * a
            gain = first if first.item() <= second.item() else second
            d = reference[b, t] - logps[b, t]
            tokens.append(-gain + kl * (torch.exp(d) - d - 1))
        rows.append(sum(tokens) / len(tokens))
        all_tokens += tokens
    return sum(rows) / len(rows) if mean == "sequences" else sum(all_tokens) / len(all_tokens)


def naive_layer_map(source, layers):
    """After every source / extra layers, the last one again."""
    extra = layers - source
    copies = []
    for i in range(source):
        copies.append(i)
        for j in range(1, extra + 1):
            if i + 1 == source * j // extra:
                copies.append(i)
    return copies


def naive_window_attention(q, k, v, window):
    """Attention of each query over itself and the window - 1 keys before it; (heads, time, dim),
    with several query heads to one key head."""
    heads, time, dim = q.shape
    share = heads // k.shape[0]
    out = torch.zeros_like(q)
    for h in range(heads):
        for i in range(time):
            scores, values = [], []
            for j in range(time):
                if i - window < j <= i:
                    scores.append((q[h, i] * k[h // share, j]).sum() / math.sqrt(dim))
                    values.append(v[h // share, j])
            weights = [torch.exp(s - max(x.item() for x in scores)) for s in scores]
            total = sum(weights)
            for w, value in zip(weights, values):
                out[h, i] += w / total * value
    return out


def naive_ring(length, window):
    """Which positions lie in a ring buffer of ``window`` slots after ``length`` tokens."""
    slots = [None] * window
    for position in range(length):
        slots[position % window] = position
    return sorted(p for p in slots if p is not None)


def naive_rate(step, steps, peak, end, warmup, shape):
    """A learning rate, case by case."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    if shape == "constant":
        return peak
    share = (step - rising) / (steps - rising)
    if shape == "linear":
        return peak + share * (end - peak)
    return end + (peak - end) * (1 + math.cos(math.pi * share)) / 2


def naive_mixture(shares, count):
    """Give each turn to the source that lags most behind its share."""
    taken = dict.fromkeys(shares, 0)
    order = []
    for turn in range(1, count + 1):
        best, lag = None, None
        for name, share in shares.items():
            behind = share * turn - taken[name]
            if lag is None or behind > lag:
                best, lag = name, behind
        taken[best] += 1
        order.append(best)
    return order
