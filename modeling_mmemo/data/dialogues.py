"""What was said before each row of a table of dialogues."""

from collections import deque
from collections.abc import Mapping
from typing import Any


class DialogueHistory:
    """The turns before each row, where the rows of a dialogue stand together and in the order they were said in.

    Args:
        turns (`int`): How many turns are looked back; of 0, a row has no context.
    """

    def __init__(self, turns: int):
        self.turns = turns
        self._said: deque[dict[str, str | None]] = deque(maxlen=turns)
        self._dialogue: Any = None

    def forget(self) -> None:
        """Begins anew, with no dialogue going on."""
        self._said.clear()
        self._dialogue = None

    def place(self, row: Mapping[str, Any], speaker: str | None) -> dict[str, Any]:
        """The columns `dialogue`, `context` and `said_by` of a row, whose text is then the last that was said.

        Args:
            row (`Mapping`): With `dialogue`, what tells it from the others of its split, or `None`; `split`; `text`;
                and `context`, its turns where they are known already.
            speaker (`str`, *optional*): Who says its text, as the dialogue's other rows name their speakers.
        """
        dialogue, given = row.get("dialogue"), row.get("context")
        if not self.turns or (dialogue is None and given is None):
            return {"dialogue": None, "context": None, "said_by": None}
        if given is not None:
            context = [{"speaker": turn.get("speaker"), "text": turn["text"]} for turn in given][-self.turns :]
        else:
            if (row["split"], dialogue) != self._dialogue:
                self._dialogue = row["split"], dialogue
                self._said.clear()
            context = list(self._said)
            if row["text"]:
                self._said.append({"speaker": speaker, "text": row["text"]})
        name = None if dialogue is None else str(dialogue)
        return {"dialogue": name, "context": context or None, "said_by": speaker}
