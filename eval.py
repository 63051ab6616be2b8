"""Scores a model on the test part of corpora with labels.

python eval.py --model modeling_mmemo/default --data_dir data --corpora ravdess meld emodb
"""

import argparse
import json
import sys


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder or Hub name; the embedded model by default.")
    parser.add_argument("--data_dir", default="data", help="Folder that holds the corpora.")
    parser.add_argument("--corpora", nargs="+", default=["ravdess", "meld"], help="Names of known corpora.")
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)

    from modeling_mmemo.evaluation.scoring import score_corpus
    from modeling_mmemo.pipelines import load_pipeline

    emotion = load_pipeline(args.model)
    for name in args.corpora:
        print(json.dumps(score_corpus(emotion, name, args.data_dir, args.batch_size)))


if __name__ == "__main__":
    main()
