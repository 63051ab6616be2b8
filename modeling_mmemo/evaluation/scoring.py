"""Scores of a pipeline on a corpus."""

from pathlib import Path

from tqdm.auto import tqdm

from modeling_mmemo.data.corpora import CORPORA, read_corpus
from modeling_mmemo.evaluation.metrics import emotion_metrics
from modeling_mmemo.pipelines import MultimodalEmotionPipeline


def score_corpus(
    emotion: MultimodalEmotionPipeline, name: str, data_dir: str | Path, batch_size: int = 16
) -> dict[str, float | int | str]:
    """Scores the modality that carries the emotion of corpus `name`, on its test part.

    A corpus that has no test part, and was never trained on, is scored whole.
    """
    rows = read_corpus(name, data_dir)
    if "test" in set(rows["split"]):
        rows = rows.filter(lambda row: row["split"] == "test")
    modality = CORPORA[name].modality
    items = ({modality: value} for value in rows[modality])
    answers = [
        scores[0]["label"] for scores in tqdm(emotion(items, top_k=1, batch_size=batch_size), name, total=len(rows))
    ]
    return {"corpus": name, "modality": modality, "samples": len(rows), **emotion_metrics(rows["label"], answers)}
