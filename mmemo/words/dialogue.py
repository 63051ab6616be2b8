"""
Dialogue context: previous turns as lines before the text, and a mask that separates their tokens from the text's.

Deliberate choices:
- Previous turns and the text are one input sequence, and only the text is predicted: its tokens attend to the previous
  turns, whose tokens are not pooled, have no timestamps, and are not attended to from the audio.
- The text's line comes last, after the tokenizer's separator, or after a marker if the tokenizer has none, so that
  decoders attend from the text to the whole dialogue.
- Long dialogues are truncated at the beginning; the text itself is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


DialogueTurn = str | tuple[str | None, str] | dict[str, Any]
"""One turn: a text, `(speaker, text)`, or `{"speaker": ..., "text": ...}`; the speaker may be `None`."""

# For tokenizers without a separator, such as those of decoders.
TARGET_MARK = "\n>> "
TURN_KEYS = {"speaker", "text"}


def read_context(context: Sequence[DialogueTurn]) -> list[tuple[str | None, str]]:
    """
    Converts previous turns to one form.

    Args:
        context (`Sequence[DialogueTurn]`): The previous turns, oldest first.

    Returns:
        `list` of `(speaker, text)`; `speaker` is `None` if unknown. Turns with blank text are dropped.

    Raises:
        ValueError: If `context` is not a list of turns.
    """
    if not isinstance(context, (list, tuple)):
        raise ValueError(f"expected a list of turns, oldest first, got {type(context).__name__}.")
    turns = [_read_turn(turn, index) for index, turn in enumerate(context)]
    return [turn for turn in turns if turn[1].strip()]


def _read_turn(turn: DialogueTurn, index: int) -> tuple[str | None, str]:
    speaker: Any = None
    text: Any = turn
    if isinstance(turn, tuple) and len(turn) == 2:
        speaker, text = turn
    elif isinstance(turn, dict) and "text" in turn and turn.keys() <= TURN_KEYS:
        speaker, text = turn.get("speaker"), turn["text"]
    if not isinstance(text, str) or not isinstance(speaker, (str, type(None))):
        raise ValueError(
            f"turn {index} is {turn!r}; a turn is a str, a tuple (speaker, text), or a dict with 'text' and, "
            "optionally, 'speaker'."
        )
    try:
        check_characters(f"{speaker or ''} {text}")
    except ValueError as error:
        raise ValueError(f"turn {index}: {error}") from error
    return speaker, text


def check_characters(text: str) -> None:
    """Raises a `ValueError` if a text has a lone surrogate, half a character, which tokenizers cannot read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{text[:40]!r} is not Unicode text: character {error.start}, {text[error.start]!r}, is a lone surrogate. "
            "It was decoded or cut wrongly; read it again as UTF-8, or remove that character."
        ) from error


def as_line(speaker: str | None, text: str) -> str:
    """Formats a turn for the model: `[speaker]: text`, or the text alone."""
    return text if speaker is None else f"[{speaker}]: {text}"


@dataclass(frozen=True)
class DialogueText:
    """
    A text after its previous turns, as the encoder's input.

    Args:
        whole (`str`): The whole input: previous turns, the text's line, and the prompt.
        line (`int`): Index in `whole` where the text's line begins, with its speaker; everything before is context.
        start, end (`int`): Indices in `whole` where the text itself begins and ends.
    """

    whole: str
    line: int
    start: int
    end: int

    def context_mask(self, offsets: Sequence[tuple[int, int]]) -> list[int]:
        """Returns 1 for tokens before the text's line, else 0; special tokens, with offsets `(0, 0)`, get 0."""
        return [int(begin < end <= self.line) for begin, end in offsets]

    def own_offsets(self, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Returns the tokens' offsets relative to the text; `(0, 0)` for tokens before and after it."""
        return [
            (max(begin, self.start) - self.start, min(end, self.end) - self.start)
            if begin < self.end and end > self.start
            else (0, 0)
            for begin, end in offsets
        ]


def write_dialogue(
    text: str,
    speaker: str | None = None,
    context: Sequence[tuple[str | None, str]] = (),
    prompt: str = "",
    separator: str | None = None,
) -> DialogueText:
    """
    Joins previous turns, one line each, and the text's line.

    Args:
        text (`str`): The text to predict.
        speaker (`str`, *optional*): Its speaker.
        context (`Sequence` of `(speaker, text)`, *optional*): The previous turns, oldest first.
        prompt (`str`, *optional*): Appended to the text.
        separator (`str`, *optional*): The tokenizer's separator; defaults to `TARGET_MARK`.
    """
    before = "\n".join(as_line(*turn) for turn in context)
    if before:
        before += separator or TARGET_MARK
    line = as_line(speaker, text)
    start = len(before) + len(line) - len(text)
    return DialogueText(before + line + prompt, len(before), start, start + len(text))
