"""What the words of a report mean, for those who read one for the first time."""

import html
import re

MEANINGS = {
    "codes": "what the encoder makes of the samples, one row of numbers each",
    "probe": "a small model fitted on codes that stay as they are: it measures what they hold",
    "ridge": "a probe: linear regression with a penalty on large weights",
    "knn": "a probe: the labels of the nearest neighbours among the codes",
    "knn_pca": "the same among the codes' principal components",
    "objective": "the error by which checkpoints and trials are chosen; lower is better",
    "untrained": "the same encoder before its first step, under the same probe",
    "raw": "the input itself, under the same probe",
    "chance": "the best guess that sees no input",
    "95 % interval": "made so that it holds the true value for 95 of 100 draws of as many rows",
    "clear": "the 95 % interval of the difference does not hold 0",
    "seeds": "the starts of the random draws: runs that differ in nothing else show their scatter",
    "overlap": "two intervals share values: the difference may be chance",
    "teacher": "the slow average of the encoder, which makes the targets",
    "rank": "how many directions the codes use; near 1 means they have collapsed",
    "rankme": "the rank counted softly, as exp(entropy of the singular values)",
    "alpha_req": "how fast the codes' eigenvalues fall: 0 is not at all; far above 1, few count",
    "spectrum_entropy": "0: the codes lie along one direction; 1: all directions count alike",
    "isotropy": "the share of the directions that carry the codes' variance",
    "mean_cosine": "mean cosine between the codes of two samples; 1: all point one way",
    "collapse": "the encoder gives all samples the same code: a low loss that says nothing",
    "running median": "the middle value of a moving window, which single steps do not bend",
    "micro-batch": "the rows of one forward pass; several may share one optimizer step",
    "McNemar": "a test on the samples that one run has right and the other wrong",
    "effect": "the size of a difference without a unit; what it is taken over stands beside it",
}


def found_in(page: str) -> dict[str, str]:
    """Return those of the words that a page, as HTML, uses."""
    text = html.unescape(re.sub(r"<[^>]*>", "", page.replace("</", " </")))
    return {
        word: what
        for word, what in MEANINGS.items()
        if re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text, flags=re.IGNORECASE)
    }
