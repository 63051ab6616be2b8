"""The field's measures for one label a sample."""

from collections.abc import Sequence

from sklearn.metrics import accuracy_score, f1_score, recall_score


def emotion_metrics(truth: Sequence, answers: Sequence) -> dict[str, float]:
    """Scores answers against the true labels.

    Returns:
        `dict` with `wa`, plain accuracy; `uar`, the mean recall of the labels that occur in `truth`; and
        `weighted_f1`, F1 averaged by support; each in [0, 1].
    """
    return {
        "wa": accuracy_score(truth, answers),
        "uar": recall_score(truth, answers, average="macro", labels=sorted(set(truth)), zero_division=0),
        "weighted_f1": f1_score(truth, answers, average="weighted", zero_division=0),
    }
