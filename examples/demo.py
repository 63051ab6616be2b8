"""Predicts the emotions of the example clips and of a few sentences, and prints them as tables.

python -m modeling_mmemo.examples.demo
"""

import csv
from pathlib import Path

from modeling_mmemo import pipeline


CLIPS = Path(__file__).parent / "audio"
SENTENCES = (
    "I have been waiting for an hour and nobody answers!",
    "That is the best news I have had all year.",
    "My grandmother died last night.",
)


def main() -> None:
    emotion = pipeline("multimodal-emotion")

    print(f"{'clip':<14}{'acted':<10}{'predicted':<10}{'score':>6}   {'second':<10}{'score':>6}")
    with (CLIPS / "metadata.csv").open(newline="", encoding="utf-8") as file:
        for clip in csv.DictReader(file):
            first, second = emotion(str(CLIPS / clip["file_name"]), top_k=2)
            print(f"{clip['file_name']:<14}{clip['label']:<10}{_cells(first)}   {_cells(second)}")

    print(f"\n{'sentence':<54}{'predicted':<10}{'score':>6}")
    for sentence in SENTENCES:
        (first,) = emotion({"text": sentence}, top_k=1)
        print(f"{sentence:<54}{_cells(first)}")


def _cells(entry: dict) -> str:
    return f"{entry['label']:<10}{entry['score']:>6.2f}"


if __name__ == "__main__":
    main()
