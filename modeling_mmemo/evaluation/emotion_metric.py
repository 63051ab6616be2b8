"""The field's measures of emotion recognition as a metric of `evaluate`; this file is loaded by its path."""

# One import a line: `evaluate` reads them by regular expression.
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
    predictions (`list[int]`): The labels that were answered.
    references (`list[int]`): The true labels.

Returns:
    `dict` with `wa`, `uar`, `macro_f1` and `weighted_f1`, each in [0, 1]. Labels that never are the true one take no
    part in the two means over labels; answering one still costs the label that was true its recall.
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
