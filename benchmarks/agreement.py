"""
Compares what runs an exported model with PyTorch at full precision, on the held-out rows of corpora.

    python benchmarks/agreement.py --data_dir data --corpora ravdess meld
    python benchmarks/agreement.py --model path/to/exported --float path/to/model --data_dir data --corpora emodb

Rows are scored on the modalities that carry the emotion of their corpus. Besides accuracy (wa) and weighted F1 it says
how many labels are those of PyTorch, and how far scores move. Without `--model` it is about the embedded one.
"""

import argparse

import numpy as np

from modeling_mmemo import load_pipeline
from modeling_mmemo.data.corpora import CORPORA, find_layout, read_corpus
from modeling_mmemo.evaluation.conditions import MODALITIES
from modeling_mmemo.evaluation.evaluation_run import model_labels
from modeling_mmemo.evaluation.figures import label_ids
from modeling_mmemo.evaluation.metrics import emotion_metrics
from modeling_mmemo.evaluation.scoring import held_out, row_lengths, score_items


def score(emotion, rows, modalities, batch_size):
    def make_item(row):
        return {modality: rows[row][modality] for modality in modalities}

    return score_items(emotion, make_item, row_lengths(emotion, rows, modalities[0]), batch_size)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder that holds the corpora")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, required=True)
    parser.add_argument("--model", help="the exported model; the embedded one by default")
    parser.add_argument("--float", help="the model that it was exported from; by default it lies in the same folder")
    parser.add_argument("--backend", default="onnx", choices=["onnx", "torch-int8"])
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args(argv)
    emotions = {
        "torch": load_pipeline(args.float or args.model),
        args.backend: load_pipeline(args.model, backend=args.backend),
    }
    labels = model_labels(emotions["torch"].model.config)
    print(f"{'':<12}{'rows':>6}{'':>14}{'wa':>8}{'wf1':>8}{'kept':>9}{'moved, mean':>13}{'at most':>9}")
    for corpus in args.corpora:
        rows, _ = held_out(read_corpus(corpus, args.data_dir, labels=labels))
        carrier = find_layout(corpus, args.data_dir).modality
        modalities = MODALITIES if carrier == "both" else (carrier,)
        scores = {name: score(emotion, rows, modalities, args.batch_size) for name, emotion in emotions.items()}
        truth, expected = label_ids(rows["label"], labels), scores["torch"]
        for name, values in scores.items():
            figures = emotion_metrics(truth, values.argmax(axis=1))
            kept = np.mean(values.argmax(axis=1) == expected.argmax(axis=1))
            moved = np.abs(values - expected)
            cells = f"{100 * figures['wa']:>8.2f}{100 * figures['weighted_f1']:>8.2f}{100 * kept:>8.2f}%"
            print(f"{corpus:<12}{len(rows):>6}{name:>14}{cells}{moved.mean():>13.4f}{moved.max():>9.4f}", flush=True)


if __name__ == "__main__":
    main()
