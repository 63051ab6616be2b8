"""
Cuts the vocabulary of a multilingual text encoder to the tokens that some texts need.

The word embeddings are most of a small multilingual encoder, 96 of 118 million parameters of multilingual-e5-small,
and most of their rows belong to languages that a model is never asked about.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast


# Texts that are tokenised at once.
BATCH = 10_000


@torch.no_grad()
def cut_vocabulary(
    tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], size: int
) -> PreTrainedTokenizerFast:
    """
    Keeps the special tokens, the characters of the texts and their most frequent tokens, `size` tokens in all.

    A token that is dropped is written with shorter ones from now on. The word embeddings of `tower` are cut in place,
    to the rows of the tokens that are kept.

    Args:
        tower (`PreTrainedModel`): The text encoder.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, with a Unigram model, as XLM-R and multilingual E5 have.
        texts (`Iterable[str]`): Texts in the languages to keep.
        size (`int`): Number of tokens to keep.

    Returns:
        [`PreTrainedTokenizerFast`]: The tokenizer with the new vocabulary and ids.

    Raises:
        ValueError: If the tokenizer has no Unigram model, or `size` is not between the number of special tokens and
            characters, and the size of the vocabulary.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {} if backend is None else json.loads(backend.to_str())
    kind = content.get("model", {}).get("type")
    if kind != "Unigram":
        raise ValueError(
            f"vocabulary_size={size} needs a tokenizer with a Unigram model, such as that of "
            f"intfloat/multilingual-e5-small, but {type(tokenizer).__name__} has {kind}. Leave vocabulary_size out, "
            "or choose another text_encoder."
        )
    vocabulary = content["model"]["vocab"]
    kept = _kept_tokens(backend, content, texts, size)
    new_ids = {old: new for new, old in enumerate(kept)}
    content["model"]["vocab"] = [vocabulary[old] for old in kept if old < len(vocabulary)]
    content["model"]["unk_id"] = new_ids[content["model"]["unk_id"]]
    _renumber(content, new_ids)
    table = tower.get_input_embeddings()
    cut = nn.Embedding(
        len(kept), table.embedding_dim, padding_idx=None if table.padding_idx is None else new_ids[table.padding_idx]
    ).to(table.weight)
    cut.weight.copy_(table.weight[kept])
    tower.set_input_embeddings(cut)
    tower.config.vocab_size = len(kept)
    if tower.config.pad_token_id is not None:
        tower.config.pad_token_id = new_ids[tower.config.pad_token_id]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **special,
    )


def _kept_tokens(backend: Tokenizer, content: dict[str, Any], texts: Iterable[str], size: int) -> list[int]:
    """Returns the ids of the tokens to keep, in their order."""
    counts: Counter[int] = Counter()
    characters: set[str] = set()
    batch: list[str] = []

    def count() -> None:
        for encoding in backend.encode_batch(batch, add_special_tokens=False):
            counts.update(encoding.ids)
        batch.clear()

    for text in texts:
        batch.append(text)
        characters.update(text)
        if len(batch) == BATCH:
            count()
    count()
    vocabulary = {piece: index for index, (piece, _) in enumerate(content["model"]["vocab"])}
    # A word begins with a mark, which is a token of its own before a word that has none with it.
    normalized = {piece for character in characters for piece in (backend.normalizer.normalize_str(character) or "▁")}
    needed = {token["id"] for token in content["added_tokens"]} | {content["model"]["unk_id"]}
    needed |= {vocabulary[piece] for piece in normalized | {"▁"} if piece in vocabulary}
    available = len(vocabulary) + sum(token["id"] >= len(vocabulary) for token in content["added_tokens"])
    if not len(needed) < size <= available:
        raise ValueError(
            f"vocabulary_size={size} must be more than the {len(needed)} special tokens and characters of the texts, "
            f"and at most the {available} tokens of the tokenizer."
        )
    # Unknown texts need the likeliest of the other tokens more than any rare one.
    by_use = sorted(range(len(vocabulary)), key=lambda index: (-counts[index], -content["model"]["vocab"][index][1]))
    frequent = (index for index in by_use if index not in needed)
    return sorted(needed | {index for index, _ in zip(frequent, range(size - len(needed)))})


def _renumber(content: dict[str, Any], new_ids: dict[int, int]) -> None:
    """Replaces the ids of special tokens in the description of a tokenizer."""
    for token in content["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    for token in (content["post_processor"] or {}).get("special_tokens", {}).values():
        token["ids"] = [new_ids[index] for index in token["ids"]]
    if content["padding"] is not None:
        content["padding"]["pad_id"] = new_ids[content["padding"]["pad_id"]]
