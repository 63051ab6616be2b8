"""
The `transformers` Trainer with batches of similar rows, a learning rate for the heads, and DDP with missing
modalities.

Deliberate choices:
- Under FSDP the processes wait for each other in every layer, so a masked blank input replaces a modality that is
  missing from a batch. Under DDP the model itself gives its parameters gradients of zero.
- A model that is only evaluated is not sharded: FSDP and DeepSpeed shard the model that they train.
- There is one development set for each set of modalities that rows have, and for simulated pairs; `eval_mean_uar` is
  the mean of their UAR.
- The small network over blendshapes is trained from scratch, so it has the learning rate of the heads.
- Checkpoints hold the processor, so that they load in a pipeline. It is not the Trainer's `processing_class`, which
  would change special tokens in the configuration of the text encoder.
"""

import copy
import statistics

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer

from mmemo.modalities import MASKS, MODALITIES
from mmemo.video.face import FaceSequence
from mmemo.video.landmarks import BLENDSHAPES
from modeling_mmemo import MMEmoConfig, MMEmoProcessor, MMEmoVideoConfig
from modeling_mmemo.evaluation.metrics import emotion_metrics
from modeling_mmemo.towers_mmemo import num_hidden_states
from modeling_mmemo.training.adapters import frozen_towers
from modeling_mmemo.training.collator import EmotionCollator
from modeling_mmemo.training.rows import EmotionRows, LikeBatches
from modeling_mmemo.training.training_arguments import EmotionTrainingArguments


def blank_inputs(processor: MMEmoProcessor) -> dict:
    """Returns an input of each modality, long enough for every encoder: 0.1 s of audio, a token, a frame."""
    size = processor.crop_size
    face = FaceSequence(
        times=np.zeros((1, 2), np.float32),
        is_present=np.ones(1, bool),
        blendshapes=np.zeros((1, len(BLENDSHAPES)), np.float32),
        boxes=np.zeros((1, 4), np.float32),
        crops=None if size is None else np.zeros((1, size, size, 3), np.uint8),
        duration=0.0,
    )
    # A constant signal would count as silent.
    return {"audio": np.tile(np.float32([1, -1]), 800), "text": ".", "video": face}


class EmotionTrainer(Trainer):
    """Trains [`MMEmoForEmotionRecognition`]; see [`~transformers.Trainer`]."""

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        trained = self.model if model is None else model
        pretrained = tuple(
            f"{modality}_tower." for modality in MODALITIES if is_pretrained(self.model.config, modality)
        )
        towers = {
            id(parameter)
            for name, parameter in trained.named_parameters()
            if any(tower in name for tower in pretrained)
        }
        for group in list(optimizer.param_groups):
            heads = [parameter for parameter in group["params"] if id(parameter) not in towers]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) in towers]
            optimizer.add_param_group(group | {"params": heads, "lr": self.args.head_learning_rate})
        return optimizer

    def train(self, *args, **kwargs):
        """Trains like [`~transformers.Trainer`]; afterwards `model` is whole on every process, also under FSDP."""
        whole = copy.deepcopy(self.model) if self.is_fsdp_enabled else self.model
        result = super().train(*args, **kwargs)
        if self.is_fsdp_enabled:
            state = broadcast_object_list([self.accelerator.get_state_dict(self.model)])
            whole.load_state_dict(state[0])
            self.model = whole
        return result

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        # Without dropout a frozen encoder gives the same states as in evaluation, and as in the cache.
        for tower in frozen_towers(model):
            tower.eval()
        if self.is_fsdp_enabled and model.training and self.accelerator.num_processes > 1:
            inputs = self._with_blanks(inputs)
        return super().compute_loss(model, inputs, return_outputs, **kwargs)

    def _with_blanks(self, inputs: dict) -> dict:
        """Adds masked blank inputs of a modality missing from the batch, so that every process runs all layers."""
        states = self.train_dataset.states if isinstance(self.train_dataset, EmotionRows) else {}
        raw = blank_inputs(self.data_collator.processor)
        for modality, mask in MASKS.items():
            tower = getattr(self.model.config, f"{modality}_config")
            if tower is None or mask in inputs:
                continue
            blank = raw[modality]
            if modality in states:
                blank = np.zeros((num_hidden_states(tower), 1, tower.hidden_size), dtype=np.float16)
            row = {"labels": 0, "label_mask": inputs["label_mask"][0], modality: blank}
            blanks = self.data_collator([row] * len(inputs["labels"]))
            blanks[mask] = torch.zeros_like(blanks[mask])
            inputs = {**self._prepare_inputs(blanks), **inputs}
        return inputs

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and isinstance(self.data_collator, EmotionCollator):
            self.data_collator.processor.save_pretrained(output_dir or self.args.output_dir)

    def _get_train_sampler(self, train_dataset=None):
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "sequential" or not isinstance(rows, EmotionRows):
            return super()._get_train_sampler(train_dataset)
        by_length = self.args.train_sampling_strategy == "group_by_length"
        return LikeBatches(rows, self.args.train_batch_size, self.args.seed, by_length)

    def _get_eval_sampler(self, eval_dataset):
        return torch.utils.data.SequentialSampler(eval_dataset)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(sets, dict):
            uars = [metrics[f"{metric_key_prefix}_{name}_uar"] for name in sets]
            mean = {f"{metric_key_prefix}_mean_uar": statistics.mean(uars)}
            self.log(dict(mean))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, mean)
            metrics |= mean
        return metrics


def is_pretrained(config: MMEmoConfig, modality: str) -> bool:
    """Whether the encoder of a modality is a pretrained one; the network over blendshapes is not."""
    tower = getattr(config, f"{modality}_config")
    return tower is not None and tower.model_type != MMEmoVideoConfig.model_type


class EarlyStopping(EarlyStoppingCallback):
    """Checks only after the evaluation of the development set that has `metric_for_best_model`."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Returns [`emotion_metrics`] for the Trainer."""
    return emotion_metrics(prediction.label_ids.tolist(), prediction.predictions.argmax(axis=-1).tolist())


def build_trainer(
    model: torch.nn.Module,
    train: torch.utils.data.Dataset | None,
    dev: dict[str, EmotionRows],
    collator: EmotionCollator,
    args: EmotionTrainingArguments,
) -> EmotionTrainer:
    """
    Builds the Trainer.

    Args:
        model (`torch.nn.Module`): The model to train or evaluate.
        train (`torch.utils.data.Dataset`, *optional*): The training rows; without them the model is only evaluated.
        dev (`dict[str, EmotionRows]`): Development rows by name.
        collator (`EmotionCollator`): Collates rows; checkpoints hold its processor.
        args (`EmotionTrainingArguments`): Options, early stopping among them.
    """
    patience = args.early_stopping_patience
    trainer = EmotionTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=dev or None,
        data_collator=collator,
        compute_metrics=compute_metrics,
        callbacks=[EarlyStopping(patience)] if patience is not None else None,
    )
    if train is None:
        trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
        model.to(args.device)
    return trainer
