"""The slow twin of ntkeval.

Plain loops, the paper's symbols, nothing shared with the fast code.
"""


def naive_ntkeval(texts, *, least_words=1):
    kept = []
    for place, text in enumerate(texts):
        seen_before = False
        for earlier in range(place):
            if texts[earlier] == text:
                seen_before = True
        if len(text.split()) >= least_words and not seen_before:
            kept.append(place)
    return kept
