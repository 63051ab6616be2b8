"""One training run: encoders, frozen features, heads and fusion on top, a folder that `from_pretrained` loads."""

from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from modeling_mmemo import MMEmoAudioEncoder, MMEmoFeatureExtractor, MMEmoForEmotionRecognition, MMEmoProcessor
from modeling_mmemo.data.corpora import CORPORA, read_corpus
from modeling_mmemo.evaluation.metrics import emotion_metrics
from modeling_mmemo.training.arguments import DataArguments, ModelArguments
from modeling_mmemo.training.features import TowerStates, standardize, tower_states
from modeling_mmemo.training.pairs import EmotionRows, ModalityBatches, collate


def build_model(args: ModelArguments) -> tuple[MMEmoForEmotionRecognition, MMEmoProcessor]:
    """The model over frozen pretrained encoders, and its processor."""
    layers = {} if args.audio_layers is None else {"num_hidden_layers": args.audio_layers}
    model = MMEmoForEmotionRecognition.from_audio_text_pretrained(
        MMEmoAudioEncoder.from_pretrained(args.audio_encoder, **layers),
        args.text_encoder,
        fusion=args.fusion,
        fusion_hidden_size=args.fusion_hidden_size,
        fusion_dropout=args.fusion_dropout,
        modality_loss_weight=args.modality_loss_weight,
    )
    model.mmemo.audio_tower.requires_grad_(False)
    model.mmemo.text_tower.requires_grad_(False)
    extractor = MMEmoFeatureExtractor(
        preset="whisper", n_mels=model.config.audio_config.num_mel_bins, loudness_dbfs=args.loudness_dbfs
    )
    return model, MMEmoProcessor(extractor, AutoTokenizer.from_pretrained(args.text_encoder))


def build_datasets(
    args: DataArguments, model: MMEmoForEmotionRecognition, processor: MMEmoProcessor
) -> tuple[EmotionRows, dict[str, EmotionRows]]:
    """The training rows, and development rows by modality; also standardizes the model's features by the former."""
    rows: dict[str, Dataset] = {}
    states: dict[str, TowerStates] = {}
    splits: dict[str, dict[str, list[int]]] = {}
    towers = {"audio": model.mmemo.audio_tower, "text": model.mmemo.text_tower}
    repeats = dict(zip(args.corpora, args.repeats))
    branches = {"audio": model.mmemo.audio_branch, "text": model.mmemo.text_branch}
    for modality in towers:
        read = [read_corpus(name, args.data_dir) for name in args.corpora if CORPORA[name].modality == modality]
        if not read:
            raise ValueError(f"corpora={args.corpora} has none for {modality}; add one.")
        rows[modality] = concatenate_datasets(read).filter(lambda row: row["split"] != "test")
        states[modality] = tower_states(modality, towers[modality], processor, rows[modality], args.cache_dir)
        of_split: dict[str, list[int]] = {"train": [], "dev": []}
        for index, (split, corpus) in enumerate(zip(rows[modality]["split"], rows[modality]["corpus"])):
            of_split[split] += [index] * (repeats[corpus] if split == "train" else 1)
        splits[modality] = of_split
        standardize(branches[modality], states[modality], of_split["train"])

    def select(split: str, pair_probability: float, voices: bool = True, texts_alone: bool = True) -> EmotionRows:
        return EmotionRows(
            rows["audio"],
            states["audio"],
            splits["audio"][split] if voices else [],
            rows["text"],
            states["text"],
            splits["text"][split],
            pair_probability,
            texts_alone,
        )

    dev = {
        "audio": select("dev", 0.0, texts_alone=False),
        "text": select("dev", 0.0, voices=False),
        "pairs": select("dev", 1.0, texts_alone=False),
    }
    return select("train", args.pair_probability), dev


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The measures of [`emotion_metrics`] for the Trainer."""
    return emotion_metrics(prediction.label_ids.tolist(), prediction.predictions.argmax(axis=-1).tolist())


class EmotionTrainer(Trainer):
    """The `transformers` Trainer, with voices and texts in batches of their own."""

    def _get_train_sampler(self, train_dataset: EmotionRows | None = None) -> ModalityBatches:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return ModalityBatches(rows, self.args.train_batch_size, self.args.seed)


def build_trainer(
    model: PreTrainedModel, train: EmotionRows, dev: dict[str, EmotionRows], args: TrainingArguments
) -> Trainer:
    """The Trainer over rows of frozen features."""
    args.remove_unused_columns = False
    args.label_names = ["labels"]
    return EmotionTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=dev,
        data_collator=collate,
        compute_metrics=compute_metrics,
    )


def save(model: MMEmoForEmotionRecognition, processor: MMEmoProcessor, folder: str | Path) -> None:
    """Saves model and processor; towers that were not trained are rounded to half precision, and load in single.

    That halves the folder. Scores move in their fourth decimal at most, and not at all for an encoder that came in
    half precision.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    weights = {
        name: weight.half().contiguous() if name in frozen and weight.dtype == torch.float32 else weight.contiguous()
        for name, weight in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
