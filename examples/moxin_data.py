"""Clean a small corpus in one pipeline, look for a test set in it, and grade a release."""

from trialrun.pretraining.moxin import (
    LengthFilter,
    MinHashDedup,
    Normalise,
    Pipeline,
    contamination,
    grade,
)

PAGE = (
    "The harbour lies open to the north, and in winter the boats are drawn up on the shingle, "
    "where their owners tar and mend them until the herring come back in March."
)
QUESTION = (
    "True or false: the boats are drawn up on the shingle, where their owners tar and mend them?"
)


def main():
    """Run the pipeline, the contamination report and the grading on things made up here."""
    crawl = [
        PAGE,
        PAGE.upper().replace("MARCH", "APRIL"),  # a near-copy
        "Buy now!",
        "A second page says something else altogether, about trains that run late in the snow.",
    ]
    pipeline = Pipeline(
        [Normalise(), LengthFilter(least=40), MinHashDedup(threshold=0.8, link="kept")]
    )
    kept = list(pipeline(crawl))
    for name, entered, left in pipeline.counts:
        print(f"{name:<13} {entered} -> {left}")

    print(contamination(kept, {"reading test": [QUESTION]}, n=13).as_text())

    weights = {"licence": "Apache-2.0", "evidence": "model.safetensors"}
    release = grade({"release": "harbour-7b", "components": {"final_parameters": weights}})
    lacking = ", ".join(finding.component for finding in release.in_the_way(3)[:3])
    print(f"{release.release}: {release.label}; class III lacks {lacking}, ...")


if __name__ == "__main__":
    main()
