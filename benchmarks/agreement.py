"""
Compares an exported graph with the float model in PyTorch, on the held-out rows of corpora.

    python benchmarks/agreement.py --data_dir data --corpora ravdess meld
    python benchmarks/agreement.py --model path/to/exported --float path/to/model --data_dir data --corpora emodb

Rows are scored with the modalities that carry the emotion of their corpus. The table shows accuracy (wa), weighted F1,
the share of labels that equal PyTorch's, and the differences of the scores. The default is the embedded model.
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
    """Returns the scores of rows, `(rows, labels)`, predicted from some modalities."""

    def make_item(row):
        return {modality: rows[row][modality] for modality in modalities}

    return score_items(emotion, make_item, row_lengths(emotion, rows, modalities[0]), batch_size)


def compare(emotions, corpus, rows, modalities, batch_size):
    """Prints one line per pipeline; the first pipeline is the reference."""
    scores = {name: score(emotion, rows, modalities, batch_size) for name, emotion in emotions.items()}
    truth = label_ids(rows["label"], model_labels(emotions["torch"].model.config))
    for name, values in scores.items():
        figures = emotion_metrics(truth, values.argmax(axis=1))
        same = np.mean(values.argmax(axis=1) == scores["torch"].argmax(axis=1))
        difference = np.abs(values - scores["torch"])
        cells = f"{100 * figures['wa']:>8.2f}{100 * figures['weighted_f1']:>8.2f}{100 * same:>12.2f}%"
        cells += f"{difference.mean():>12.4f}{difference.max():>11.4f}"
        print(f"{corpus:<12}{len(rows):>6}{name:>8}{cells}", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder with the corpora")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, required=True)
    parser.add_argument("--model", help="exported model; the embedded one by default")
    parser.add_argument("--float", help="model that it was exported from; in the same folder by default")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--limit", type=int, help="number of random rows of each corpus; all by default")
    args = parser.parse_args(argv)
    emotions = {
        "torch": load_pipeline(args.float or args.model),
        "onnx": load_pipeline(args.model, backend="onnx"),
    }
    labels = model_labels(emotions["torch"].model.config)
    print(f"{'':<12}{'rows':>6}{'':>8}{'wa':>8}{'wf1':>8}{'same label':>13}{'mean diff.':>12}{'max diff.':>11}")
    for corpus in args.corpora:
        rows, _ = held_out(read_corpus(corpus, args.data_dir, labels=labels))
        if args.limit is not None:
            rows = rows.shuffle(0, keep_in_memory=True).select(range(min(args.limit, len(rows))))
        carrier = find_layout(corpus, args.data_dir).modality
        compare(emotions, corpus, rows, MODALITIES if carrier == "both" else (carrier,), args.batch_size)


if __name__ == "__main__":
    main()
