"""The tokens by whose likelihood a language model says a label: the first of each label's word."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def label_token_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, labels: Sequence[str], words: Sequence[str] = ()
) -> list[int]:
    """For each label the first token of its word behind `prompt` and a blank.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The language model's.
        prompt (`str`): What stands behind every text.
        labels (`Sequence[str]`): The labels, in their order.
        words (`Sequence[str]`, *optional*): Words for some of them, `"label=word"`; a label is its own by default.

    Raises:
        ValueError: If a word is for no label, if two words begin with the same token, or if the tokenizer writes the
            prompt otherwise where a word follows, as one that puts a token at the end does.
    """
    chosen = {label: label for label in labels}
    for pair in words:
        label, _, word = pair.partition("=")
        if label not in chosen:
            raise ValueError(
                f"label_words={pair!r} is for the unknown label {label!r}; the labels are {list(labels)}."
            )
        chosen[label] = word
    before = tokenizer(prompt)["input_ids"]
    found: dict[int, str] = {}
    for word in chosen.values():
        ids = tokenizer(f"{prompt} {word}")["input_ids"]
        if ids[: len(before)] != before or len(ids) == len(before):
            raise ValueError(
                f"prompt={prompt!r} has other tokens where {word!r} follows, so a language model could not go on from "
                f"it: {tokenizer.convert_ids_to_tokens(before)} and {tokenizer.convert_ids_to_tokens(ids)}. Choose "
                "another prompt, without a blank at its end, or text_head=linear."
            )
        first = ids[len(before)]
        if first in found:
            raise ValueError(
                f"The words {found[first]!r} and {word!r} begin with the same token, "
                f"{tokenizer.convert_ids_to_tokens(first)!r}; give one of them another with label_words."
            )
        found[first] = word
    return list(found)
