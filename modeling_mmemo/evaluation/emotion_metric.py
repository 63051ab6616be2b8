"""Standard measures of emotion recognition as an `evaluate` metric; loaded by file path."""

# One import per line: `evaluate` parses them with a regular expression.
import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score, recall_score


_DESCRIPTION = """
WA (weighted accuracy: plain accuracy), UAR (unweighted average recall), macro-F1 and weighted F1.
"""

_CITATION = """
@inproceedings{schuller2009interspeech,
    title = {The {INTERSPEECH} 2009 Emotion Challenge},
    author = {Schuller, Bj{\\"o}rn and Steidl, Stefan and Batliner, Anton},
    booktitle = {Interspeech},
    year = {2009}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[int]`): Predicted labels.
    references (`list[int]`): True labels.

Returns:
    `dict` with `wa`, `uar`, `macro_f1` and `weighted_f1`, each in [0, 1]. Labels that never occur in the references
    are excluded from the two means over labels; predicting one still lowers the recall of the true label.
"""


class EmotionMetric(evaluate.Metric):
    """Measures of single-label emotion recognition."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        over_labels = {"labels": sorted(set(references)), "zero_division": 0}
        return {
            "wa": float(accuracy_score(references, predictions)),
            "uar": float(recall_score(references, predictions, average="macro", **over_labels)),
            "macro_f1": float(f1_score(references, predictions, average="macro", **over_labels)),
            "weighted_f1": float(f1_score(references, predictions, average="weighted", **over_labels)),
        }
