"""Finds the token of each label, the first of its word; a language model's likelihood of it is the label's score."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def label_token_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, labels: Sequence[str], words: Sequence[str] = ()
) -> list[int]:
    """
    Returns for each label the first token of its word after `prompt` and a space.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the language model.
        prompt (`str`): The string appended to every text.
        labels (`Sequence[str]`): The labels, in the order of the scores.
        words (`Sequence[str]`, *optional*): Words for some labels, as `"label=word"`; the default is the label itself.

    Raises:
        ValueError: If a word is for an unknown label, if two words begin with the same token, or if the tokens of the
            prompt change when a word follows, as with a tokenizer that appends a token to every text.
    """
    word_of = {label: label for label in labels}
    for pair in words:
        label, _, word = pair.partition("=")
        if label not in word_of:
            raise ValueError(
                f"label_words={pair!r} is for the unknown label {label!r}; the labels are {list(labels)}."
            )
        word_of[label] = word
    prompt_ids = tokenizer(prompt)["input_ids"]
    word_by_token: dict[int, str] = {}
    for word in word_of.values():
        ids = tokenizer(f"{prompt} {word}")["input_ids"]
        if ids[: len(prompt_ids)] != prompt_ids or len(ids) == len(prompt_ids):
            alone, followed = (tokenizer.convert_ids_to_tokens(found) for found in (prompt_ids, ids))
            raise ValueError(
                f"The tokens of prompt={prompt!r} change when {word!r} follows, so a language model could not "
                f"continue it: {alone} and {followed}. Choose another prompt, without a space at its end, or "
                "text_head=linear."
            )
        token = ids[len(prompt_ids)]
        if token in word_by_token:
            raise ValueError(
                f"The words {word_by_token[token]!r} and {word!r} begin with the same token, "
                f"{tokenizer.convert_ids_to_tokens(token)!r}; choose another word for one of them with label_words."
            )
        word_by_token[token] = word
    return list(word_by_token)
