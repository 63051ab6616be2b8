"""
Dialogue context: what was said before a text, as lines before its own, and which of the tokens are whose.

Deliberate choices:
- Previous turns and the text are one sequence for the encoder, and the text alone is what is answered for: the tokens
  of the previous turns can be looked at, but are neither pooled, nor placed in time, nor attended to from the audio.
- The text's own line comes last, behind the tokenizer's separator, or behind a mark where it has none: a decoder has
  then read all of the dialogue when it comes to it.
- Too long a dialogue loses its beginning, never the text that is asked about.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


DialogueTurn = str | tuple[str | None, str] | dict[str, Any]
"""What was said: a text, `(speaker, text)`, or `{"speaker": ..., "text": ...}`; the speaker may be `None`."""

# Where a tokenizer has no separator, as those of decoders.
TARGET_MARK = "\n>> "
TURN_KEYS = {"speaker", "text"}


def read_context(context: Sequence[DialogueTurn]) -> list[tuple[str | None, str]]:
    """
    Brings previous turns to one form.

    Args:
        context (`Sequence[DialogueTurn]`): What was said before, oldest first.

    Returns:
        `list` of `(speaker, text)`; `speaker` is `None` where it is unknown. Turns of blank text are left out.

    Raises:
        ValueError: If `context` is no list of turns.
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
            f"turn {index} is {turn!r}; a turn is a str, a tuple (speaker, text), or a dictionary with 'text' and, if "
            "it is known, 'speaker'."
        )
    return speaker, text


def as_line(speaker: str | None, text: str) -> str:
    """A turn as the model reads it: `[speaker]: text`, or the text alone."""
    return text if speaker is None else f"[{speaker}]: {text}"


@dataclass(frozen=True)
class DialogueText:
    """
    A text with what was said before, as the encoder reads it.

    Args:
        whole (`str`): All of it.
        line (`int`): Where in `whole` the text's line begins, with its speaker; what comes before is context.
        start, end (`int`): Where in `whole` the text itself stands.
    """

    whole: str
    line: int
    start: int
    end: int

    def context_mask(self, offsets: Sequence[tuple[int, int]]) -> list[int]:
        """1 for the tokens that lie before the text's line; special tokens, whose offsets are `(0, 0)`, do not."""
        return [int(begin < end <= self.line) for begin, end in offsets]

    def own_offsets(self, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The tokens' offsets counted from where the text begins; `(0, 0)` for those before it and behind it."""
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
    Writes previous turns, a line each, and the text's line behind them.

    Args:
        text (`str`): The text that is asked about.
        speaker (`str`, *optional*): Who says it.
        context (`Sequence` of `(speaker, text)`): The turns before, oldest first.
        prompt (`str`, *optional*): What follows the text.
        separator (`str`, *optional*): The tokenizer's separator; `TARGET_MARK` stands where it has none.
    """
    before = "\n".join(as_line(*turn) for turn in context)
    if before:
        before += separator or TARGET_MARK
    line = as_line(speaker, text)
    start = len(before) + len(line) - len(text)
    return DialogueText(before + line + prompt, len(before), start, start + len(text))
