"""The slow twin of ssl_interplay.

Plain loops, the paper's symbols, nothing shared with the fast code.
"""


def naive_ssl_interplay(X, y, queries):
    means = {}
    for label in sorted(set(y)):
        rows = [row for row, its in zip(X, y) if its == label]
        means[label] = [sum(column) / len(rows) for column in zip(*rows)]
    chosen = []
    for query in queries:
        distances = {}
        for label, mean in means.items():
            distances[label] = sum((a - b) ** 2 for a, b in zip(query, mean))
        chosen.append(min(distances, key=distances.get))
    return chosen
