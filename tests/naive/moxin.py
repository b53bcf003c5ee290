"""Slow twins of the data pipeline and of openness grading: plain loops over plain Python.

Definitions: Jaccard similarity of sets of n-grams, the S-curve of banded MinHash, one-permutation
hashing with a walk for empty bins, connected components, n-gram overlap, and the framework's table
of components.
"""

import unicodedata


def naive_fold(text):
    text = unicodedata.normalize("NFC", text).lower()
    text = unicodedata.normalize("NFC", text)
    left = ""
    for letter in text:
        if unicodedata.category(letter)[0] in ("P", "S"):
            continue
        left += " " if letter.isspace() else letter
    while "  " in left:
        left = left.replace("  ", " ")
    return left.strip(" ")


def naive_shingles(text, ngram, unit):
    """Return the n-grams in order, repeats included."""
    folded = naive_fold(text)
    units = list(folded) if unit == "character" else [w for w in folded.split(" ") if w]
    if not units:
        return []
    if len(units) < ngram:
        return [tuple(units)]
    grams = []
    for start in range(len(units) - ngram + 1):
        grams.append(tuple(units[start : start + ngram]))
    return grams


def naive_jaccard(one, other, ngram, unit):
    a, b = set(naive_shingles(one, ngram, unit)), set(naive_shingles(other, ngram, unit))
    if not a and not b:
        return 1.0
    return len(a & b) / len(a | b)


def naive_probability(similarity, bands, rows):
    none = 1.0
    for _ in range(bands):
        same = 1.0
        for _ in range(rows):
            same *= similarity
        none *= 1.0 - same
    return 1.0 - none


def naive_signature(values, bins, walks):
    """Least value of each bin; an empty one takes that of the first filled bin of its walk."""
    least = {}
    for value in values:
        place = ((value >> 32) * bins) >> 32
        least[place] = min(value, least.get(place, value))
    signature = []
    for place in range(bins):
        signature.append(2**64 - 1)
        for step in walks[place]:
            if step in least:
                signature[-1] = least[step]
                break
    return signature


def naive_union(count, pairs):
    """Return each place's least place among those it can be reached from."""
    beside = {place: set() for place in range(count)}
    for a, b in pairs:
        beside[a].add(b)
        beside[b].add(a)
    roots = []
    for place in range(count):
        seen, todo = {place}, [place]
        while todo:
            for other in beside[todo.pop()]:
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        roots.append(min(seen))
    return roots


def naive_kept(count, pairs):
    """Walk through the places: one stays unless it is paired with an earlier one that stayed."""
    stands = []
    for place in range(count):
        stands.append(place)
        for earlier in range(place):
            paired = (earlier, place) in pairs or (place, earlier) in pairs
            if paired and stands[earlier] == earlier:
                stands[place] = earlier
                break
    return stands


def naive_bucket_pairs(keys):
    """Return all pairs of places with equal keys, in every band."""
    pairs = set()
    for b in range(len(keys)):
        for a in range(b):
            for band in range(len(keys[a])):
                if keys[a][band] == keys[b][band]:
                    pairs.add((a, b))
    return pairs


def naive_overlap(item, documents, n, least):
    """Return which words of an item stand in some document, and which documents share any."""
    words = naive_fold(item).split()
    covered = [False] * len(words)
    touched = []
    if len(words) < least:
        return covered, touched
    size = min(n, len(words))
    for place, document in enumerate(documents):
        theirs = naive_fold(document).split()
        for i in range(len(words) - size + 1):
            for j in range(len(theirs) - size + 1):
                if words[i : i + size] == theirs[j : j + size]:
                    for k in range(i, i + size):
                        covered[k] = True
                    if place not in touched:
                        touched.append(place)
    return covered, touched


REQUIRED = {
    3: [
        "model_architecture",
        "final_parameters",
        "technical_report",
        "evaluation_results",
        "model_card",
        "data_card",
    ],
    2: [
        "training_code",
        "inference_code",
        "evaluation_code",
        "evaluation_data",
        "supporting_libraries",
    ],
    1: ["research_paper", "datasets", "preprocessing_code", "intermediate_parameters"],
}


def naive_level(counting):
    """Return the class of a release from the names of the components that count."""
    if any(name not in counting for name in REQUIRED[3]):
        return 4
    if any(name not in counting for name in REQUIRED[2]):
        return 3
    if any(name not in counting for name in REQUIRED[1]):
        return 2
    return 1
