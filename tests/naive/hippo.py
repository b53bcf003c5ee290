"""The slow twin of hippo: plain loops, the papers' symbols, nothing shared with the fast code."""

import math

import torch


def naive_scan(a, b, initial):
    h, out = initial, []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


def naive_conv(kernel, u):
    y = torch.zeros_like(u)
    for t in range(len(u)):
        for s in range(t + 1):
            y[t] = y[t] + kernel[s] * u[t - s]
    return y


def naive_legs(order):
    A = torch.zeros(order, order, dtype=torch.float64)
    B = torch.zeros(order, dtype=torch.float64)
    for n in range(order):
        B[n] = math.sqrt(2 * n + 1)
        for k in range(order):
            if n > k:
                A[n, k] = -math.sqrt((2 * n + 1) * (2 * k + 1))
            elif n == k:
                A[n, k] = -(n + 1)
    return A, B


def naive_lmu(order):
    A = torch.zeros(order, order, dtype=torch.float64)
    B = torch.zeros(order, dtype=torch.float64)
    for n in range(order):
        B[n] = (2 * n + 1) * (-1) ** n
        for k in range(order):
            A[n, k] = (2 * n + 1) * (-1 if n < k else (-1) ** (n - k + 1))
    return A, B


def naive_discrete(A, B, h, method):
    """A' and B' of one step, by inverting what the method puts on the new state's side."""
    eye = torch.eye(len(B), dtype=A.dtype)
    if method == "zoh":
        # The integral of exp(s A) over the step by its power series, on a short step that is then
        # doubled: twice as long a step is the factor applied once more to the same input.
        halvings = 16
        small = h / 2**halvings
        power, factor, weight = eye, torch.zeros_like(A), torch.zeros_like(A)
        for n in range(1, 14):
            factor = factor + power
            weight = weight + power * small / n
            power = power @ A * small / n
        for _ in range(halvings):
            weight = factor @ weight + weight
            factor = factor @ factor
        return factor, weight @ B
    share = {"forward": 0.0, "bilinear": 0.5, "backward": 1.0}[method]
    inverse = torch.linalg.inv(eye - share * h * A)
    return inverse @ (eye + (1 - share) * h * A), inverse @ (h * B)


def naive_scaled_memory(A, B, u, method, times=None):
    """x_k of x' = (A x + B u) / t; the first sample stands for a constant past."""
    x = torch.zeros(len(B), dtype=A.dtype)
    x[0] = u[0]
    out, last = [x], 1.0 if times is None else float(times[0])
    for k in range(1, len(u)):
        now = k + 1.0 if times is None else float(times[k])
        h = math.log(now / last) if method == "zoh" else (now - last) / now
        A1, B1 = naive_discrete(A, B, h, method)
        x = A1 @ x + B1 * u[k]
        out.append(x)
        last = now
    return torch.stack(out)


def naive_fixed_memory(A, B, u, method, step):
    A1, B1 = naive_discrete(A, B, step, method)
    x, out = torch.zeros(len(B), dtype=A.dtype), []
    for k in range(len(u)):
        x = A1 @ x + B1 * u[k]
        out.append(x)
    return torch.stack(out)


def naive_diagonal_layer(u, poles, dt, C, D, disc):
    """One channel of S4D on one sequence: the recurrence of each pole, added up."""
    y = []
    x = [torch.zeros((), dtype=torch.complex128) for _ in range(len(poles))]
    for t in range(len(u)):
        total = D * u[t]
        for n in range(len(poles)):
            if disc == "zoh":
                factor = torch.exp(dt * poles[n])
                weight = (factor - 1) / poles[n]
            else:
                factor = (1 + dt * poles[n] / 2) / (1 - dt * poles[n] / 2)
                weight = dt / (1 - dt * poles[n] / 2)
            x[n] = factor * x[n] + weight * u[t]
            total = total + 2 * (C[n] * x[n]).real
        y.append(total)
    return torch.stack(y)


def naive_low_rank_layer(u, poles, P, B, dt, C, D):
    """One channel of S4 on one sequence: the dense bilinear recurrence of the whole state."""
    pairs = len(poles)
    A = torch.zeros(2 * pairs, 2 * pairs, dtype=torch.complex128)
    whole = torch.cat([poles, poles.conj()])
    for i in range(2 * pairs):
        A[i, i] = whole[i]
    for p in P:
        full = torch.cat([p, p.conj()])
        for i in range(2 * pairs):
            for j in range(2 * pairs):
                A[i, j] = A[i, j] - full[i] * full[j].conj()
    full_B, full_C = torch.cat([B, B.conj()]), torch.cat([C, C.conj()])
    eye = torch.eye(2 * pairs, dtype=torch.complex128)
    inverse = torch.linalg.inv(eye - dt / 2 * A)
    x, y = torch.zeros(2 * pairs, dtype=torch.complex128), []
    for t in range(len(u)):
        x = inverse @ ((eye + dt / 2 * A) @ x + dt * full_B * u[t])
        y.append((full_C @ x).real + D * u[t])
    return torch.stack(y)


def naive_gated_memory(x, net, A, B):
    """Outputs of a HiPPO net on one sequence, from its weights and each step's matrices."""
    h = torch.zeros(net.hidden, dtype=x.dtype)
    memory = torch.zeros(net.channels, A.shape[-1], dtype=x.dtype)
    out = []
    for t in range(len(x)):
        seen = net.read.weight @ torch.cat([x[t], memory.flatten()]) + net.read.bias
        past = net.gates.weight @ h + net.gates.bias
        width = net.hidden
        reset = torch.sigmoid(seen[:width] + past[:width])
        update = torch.sigmoid(seen[width : 2 * width] + past[width : 2 * width])
        new = torch.tanh(seen[2 * width :] + reset * past[2 * width :])
        h = (1 - update) * new + update * h
        written = net.write.weight @ h + net.write.bias
        rows = [A[t] @ memory[c] + B[t] * written[c] for c in range(net.channels)]
        memory = torch.stack(rows)
        out.append(h)
    return torch.stack(out)
