import json

import pytest
from tiny import write_table

from modeling_mmemo import MMEmoProcessor
from modeling_mmemo.data.corpora import read_corpus
from modeling_mmemo.data.dialogues import DialogueHistory
from modeling_mmemo.data.schema import text_of
from modeling_mmemo.data.sources import read_source
from modeling_mmemo.training.collator import EmotionCollator
from modeling_mmemo.training.features import tower_states
from modeling_mmemo.training.rows import EmotionRows, StreamedRows


LINES = [
    ("1", "A", "wait !", "anger", "train"),
    ("1", "B", "so sad", "sadness", "train"),
    # Without a known label, but part of the dialogue.
    ("1", "A", "i am not", "bored", "train"),
    ("1", "B", "you are", "joy", "train"),
    ("1", "A", "i am happy", "joy", "dev"),
    ("2", "A", "no", "anger", "dev"),
]
NAMES = ("dialogue", "speaker", "text", "label", "split")


@pytest.fixture
def data_dir(tmp_path):
    write_table(tmp_path / "text" / "meld_text.csv", [dict(zip(NAMES, line)) for line in LINES])
    return tmp_path


def contexts(rows):
    return [[(turn["speaker"], turn["text"]) for turn in context or ()] for context in rows["context"]]


EXPECTED = [
    [],
    [("A", "wait !")],
    [("B", "so sad"), ("A", "i am not")],
    # The same number in another split is another dialogue.
    [],
    [],
]


def test_rows_of_a_corpus_have_context(data_dir):
    rows = read_corpus("meld", data_dir, context_turns=2)

    assert contexts(rows) == EXPECTED
    assert rows["said_by"][:] == ["A", "B", "B", "A", "A"] and rows["speaker"][1] == "meld-B"
    assert text_of(rows[1]) == {"text": "so sad", "context": [{"speaker": "A", "text": "wait !"}], "speaker": "B"}


def test_rows_have_no_context_by_default(data_dir):
    rows = read_corpus("meld", data_dir)

    assert set(rows["context"]) == set(rows["dialogue"]) == set(rows["said_by"]) == {None}
    assert text_of(rows[1]) == {"text": "so sad"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_of_a_table_have_context(tmp_path, suffix, streaming):
    names = ("conversation", *NAMES[1:])
    path = write_table(tmp_path / f"calls{suffix}", [dict(zip(names, line)) for line in LINES])

    options = {"columns": {"dialogue": "conversation"}, "context_turns": 2, "allow_unknown_labels": True}
    rows = read_source(str(path), tmp_path, streaming=streaming, **options)

    for _ in range(2):
        assert contexts({"context": [row["context"] for row in rows]}) == EXPECTED


def test_table_with_a_context_column(tmp_path):
    turns = [{"speaker": "B", "text": "no"}, {"text": "wait !"}]
    path = write_table(tmp_path / "calls.csv", [{"text": "so sad", "label": "sad", "context": json.dumps(turns)}])

    rows = read_source(str(path), tmp_path, context_turns=1)

    assert contexts(rows) == [[(None, "wait !")]]


def test_row_without_text_adds_no_turn():
    history = DialogueHistory(2)

    for text in ("so sad", None):
        history.add({"dialogue": "1", "split": None, "text": text}, "A")
    placed = history.add({"dialogue": "1", "split": None, "text": "no"}, "A")

    assert placed["context"] == [{"speaker": "A", "text": "so sad"}]


def test_training_batches_have_context(data_dir, tokenizer):
    processor = MMEmoProcessor(tokenizer=tokenizer, context_turns=2)
    rows = read_corpus("meld", data_dir, context_turns=2)
    drawn = EmotionRows(rows, range(3), ("angry", "happy", "sad"), {}, processor)

    batch = EmotionCollator(processor)([drawn[position] for position in range(3)])

    expected = processor(
        text=["wait !", "so sad", "you are"],
        context=[None, [("A", "wait !")], [("B", "so sad"), ("A", "i am not")]],
        speaker=["A", "B", "B"],
        return_tensors="pt",
    )
    for name, values in expected.items():
        assert batch[name].tolist() == values.tolist()


def test_context_dropout(data_dir, tokenizer):
    processor = MMEmoProcessor(tokenizer=tokenizer, context_turns=2)
    rows = read_corpus("meld", data_dir, context_turns=2)
    drawn = EmotionRows(rows, range(3), ("angry", "happy", "sad"), {}, processor, context_dropout=0.5)

    seen = {position: set() for position in range(3)}
    for epoch in range(20):
        drawn.set_epoch(epoch)
        for position in range(3):
            row = drawn[position]
            assert row["text"] == rows[position]["text"]
            seen[position].add(tuple(name for name in ("context", "speaker") if name in row))

    # The first turn of a dialogue has a speaker and nothing before it.
    both = {(), ("context", "speaker")}
    assert seen == {0: {(), ("speaker",)}, 1: both, 2: both}


def test_context_dropout_of_a_stream(data_dir, tokenizer):
    processor = MMEmoProcessor(tokenizer=tokenizer, context_turns=2)
    rows = read_corpus("meld", data_dir, context_turns=2).to_iterable_dataset()
    stream = StreamedRows(rows, ("angry", "happy", "sad"), processor, None, seed=0, context_dropout=1.0)

    assert [set(row) for row in stream] == [{"labels", "label_mask", "text"}] * 5


def test_cached_states_do_not_include_the_context(data_dir, model, processor, tmp_path):
    reader = MMEmoProcessor(processor.feature_extractor, processor.tokenizer, context_turns=2)
    rows = read_corpus("meld", data_dir, context_turns=2)

    cached = tower_states("text", model.mmemo.text_tower, reader, rows, tmp_path / "cached")

    inputs = reader(**{**text_of(rows[2]), "context": contexts(rows)[2]}, return_tensors="pt")
    assert cached.length(2) == int((inputs["attention_mask"] & ~inputs["context_mask"]).sum())
    assert cached.length(2) < inputs["input_ids"].shape[1]
