"""Collects the turns before each row of a table of dialogues."""

from collections import deque
from collections.abc import Mapping
from typing import Any


class DialogueHistory:
    """
    The turns before each row; the rows of a dialogue must follow each other, in the order of its turns.

    Args:
        turns (`int`): Maximum number of turns before a row; with 0 a row has no context.
    """

    def __init__(self, turns: int):
        self.turns = turns
        self._previous: deque[dict[str, str | None]] = deque(maxlen=turns)
        self._dialogue: Any = None

    def reset(self) -> None:
        """Forgets all turns."""
        self._previous.clear()
        self._dialogue = None

    def add(self, row: Mapping[str, Any], speaker: str | None) -> dict[str, Any]:
        """
        Adds a row, and returns its columns `dialogue`, `context` and `said_by`.

        Args:
            row (`Mapping`):
                A row with `dialogue`, the name of its dialogue within the split, or `None`; `split`; `text`; and
                `context`, its turns if they are known already.
            speaker (`str`, *optional*): Speaker of the text, by the name used in the turns.
        """
        dialogue, context = row.get("dialogue"), row.get("context")
        if not self.turns or (dialogue is None and context is None):
            return {"dialogue": None, "context": None, "said_by": None}
        if context is not None:
            context = [{"speaker": turn.get("speaker"), "text": turn["text"]} for turn in context][-self.turns :]
        else:
            if (row["split"], dialogue) != self._dialogue:
                self._dialogue = row["split"], dialogue
                self._previous.clear()
            context = list(self._previous)
            if row["text"]:
                self._previous.append({"speaker": speaker, "text": row["text"]})
        name = None if dialogue is None else str(dialogue)
        return {"dialogue": name, "context": context or None, "said_by": speaker}
