from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_inputs, make_model
from transformers import EvalPrediction

from modeling_mmemo import load_pipeline
from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.data.schema import FEATURES, as_dataset
from modeling_mmemo.evaluation.evaluation_run import model_labels
from modeling_mmemo.training.adapters import frozen_towers, set_trainable
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.collator import EmotionCollator
from modeling_mmemo.training.rows import EmotionRows, LikeBatches
from modeling_mmemo.training.trainer import blank_inputs, build_trainer, compute_metrics
from modeling_mmemo.training.training_arguments import EmotionTrainingArguments, ModelArguments
from modeling_mmemo.training.training_run import _check_resumed_labels


@pytest.fixture
def training(tmp_path):
    def make(**options):
        options = {
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "warmup_steps": 0,
            "max_grad_norm": 0,
            **options,
        }
        return EmotionTrainingArguments(output_dir=str(tmp_path), **options)

    return make


def adapt(model, **modes):
    return set_trainable(model, ModelArguments(audio_encoder="a", text_encoder="b", **modes), ("audio", "text"))


def samples(size):
    """Repeats the four samples, each with a label, as rows that `stack` collates."""
    inputs = {**make_inputs(), "labels": torch.arange(4)}
    return [{name: values[index % 4] for name, values in inputs.items()} for index in range(size)]


def stack(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(("audio", "text"), [("lora", "full"), ("full", "frozen"), ("lora", "lora")])
def test_every_parameter_has_the_learning_rate_of_its_part(training, audio, text):
    model = adapt(make_model(), audio_mode=audio, text_mode=text)
    args = training(learning_rate=0.01, head_learning_rate=0.1, weight_decay=0.5)

    optimizer = build_trainer(model, None, {}, stack, args).create_optimizer()

    settings = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert parameter not in settings
            settings[parameter] = (group["lr"], group["weight_decay"])
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert settings.keys() == set(trained.values())
    for name, parameter in trained.items():
        # Biases and norms have no weight decay.
        decays = parameter.dim() > 1
        rate, decay = settings[parameter]
        assert rate == (0.01 if "_tower." in name else 0.1), name
        assert decay == 0.5 or not decays, name
        assert decay == 0 or "bias" not in name, name


@pytest.mark.parametrize(("video", "rate"), [("mmemo_video", 0.1), ("vit", 0.01)])
def test_the_network_over_blendshapes_has_the_learning_rate_of_the_heads(training, video, rate):
    model = make_model(video=video)
    args = training(learning_rate=0.01, head_learning_rate=0.1)

    optimizer = build_trainer(model, None, {}, stack, args).create_optimizer()

    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {rates[id(parameter)] for parameter in model.mmemo.video_tower.parameters()} == {rate}
    assert {rates[id(p)] for p in model.mmemo.audio_tower.parameters() if p.requires_grad} == {0.01}


def test_blank_inputs_fit_every_encoder(processor):
    processor.frames_per_second = 5.0
    row = {"labels": 0, "label_mask": torch.ones(4), **blank_inputs(processor)}

    batch = EmotionCollator(processor)([row] * 2)

    assert batch["video_features"].shape == (2, 1, 52) and batch["video_attention_mask"].all()
    assert batch["audio_attention_mask"].any() and batch["attention_mask"].any()


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 2, [0.05, 0.1, 0.075, 0.05, 0.025, 0.0]),
        ("cosine", 1 / 3, [0.05, 0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2, 0.0]),
    ],
)
def test_learning_rate_schedules(training, schedule, warmup, expected):
    args = training(
        learning_rate=0.1, head_learning_rate=0.2, warmup_steps=warmup, lr_scheduler_type=schedule, max_steps=6
    )
    trainer = build_trainer(make_model(), None, {}, stack, args)
    trainer.create_optimizer_and_scheduler(6)

    rates = []
    for _ in range(6):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])

    assert [rate[0] for rate in rates] == pytest.approx(expected)
    for tower, _, head, _ in rates:
        assert head == pytest.approx(2 * tower)


@pytest.mark.slow
@pytest.mark.parametrize("modes", [{"audio_mode": "full", "text_mode": "full"}, {"lora_dropout": 0.0}])
def test_gradient_accumulation_equals_one_large_batch(training, modes):
    trained = []
    for size, steps in ((8, 1), (2, 4)):
        model = make_model(fusion_dropout=0.0, label_smoothing=0.1, focal_gamma=1.0)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.text_config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
        torch.manual_seed(0)
        args = training(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            # A step is the gradient times the learning rate.
            optim="sgd",
            learning_rate=0.1,
            head_learning_rate=0.1,
            max_steps=2,
            logging_steps=1,
            train_sampling_strategy="sequential",
        )
        trainer = build_trainer(adapt(model, **modes), samples(16), {}, stack, args)
        trainer.train()
        trained.append(
            ([log["loss"] for log in trainer.state.log_history if "loss" in log], trainer.model.state_dict())
        )

    (losses, weights), (accumulated_losses, accumulated) = trained
    assert len(losses) == 2
    assert accumulated_losses == pytest.approx(losses, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(accumulated[name], weight, atol=1e-6, rtol=1e-4, msg=name)


def test_frozen_encoder_has_no_dropout_in_training(training):
    model = adapt(make_model(), audio_mode="frozen", text_mode="full")
    trainer = build_trainer(model, samples(4), {}, stack, training(max_steps=1))

    trainer.train()

    assert frozen_towers(model) == [model.mmemo.audio_tower]
    assert not model.mmemo.audio_tower.training
    assert model.mmemo.text_tower.training


@pytest.fixture
def rows(processor):
    table = [{**dict.fromkeys(FEATURES), "text": "a" * n, "label": "sad", "corpus": "x"} for n in range(1, 9)]
    return EmotionRows(as_dataset(table), range(8), ("happy", "sad"), {}, processor)


@pytest.mark.parametrize(("strategy", "by_length"), [("group_by_length", True), ("random", False)])
def test_training_rows_are_batched_by_kind(training, rows, strategy, by_length):
    trainer = build_trainer(make_model(), rows, {}, stack, training(train_sampling_strategy=strategy))

    sampler = trainer._get_train_sampler()

    assert isinstance(sampler, LikeBatches)
    assert sampler.by_length == by_length


def test_sequential_sampling_keeps_the_order(training, rows):
    trainer = build_trainer(make_model(), rows, {}, stack, training(train_sampling_strategy="sequential"))

    assert list(trainer._get_train_sampler()) == list(range(8))


def test_mean_uar_over_the_development_sets_is_logged(training):
    dev = {"audio": samples(4), "text": samples(8)}
    trainer = build_trainer(make_model(), None, dev, stack, training())

    scores = trainer.evaluate()

    assert scores["eval_mean_uar"] == pytest.approx((scores["eval_audio_uar"] + scores["eval_text_uar"]) / 2)
    assert trainer.state.log_history[-1]["eval_mean_uar"] == scores["eval_mean_uar"]


@pytest.mark.parametrize("metric", ["eval_mean_uar", "eval_text_wa"])
def test_early_stopping_keeps_the_best_checkpoint(training, caplog, metric):
    args = training(
        num_train_epochs=9,
        per_device_train_batch_size=4,
        learning_rate=0.0,
        head_learning_rate=0.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        early_stopping_patience=2,
    )
    trainer = build_trainer(make_model(), samples(4), {"text": samples(4), "audio": samples(4)}, stack, args)

    trainer.train()

    assert trainer.state.epoch == 3
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert "early stopping" not in caplog.text


def test_metrics_equal_those_of_the_evaluation():
    logits = np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.0]])

    scores = compute_metrics(EvalPrediction(predictions=logits, label_ids=np.array([0, 1, 1])))

    assert scores["wa"] == pytest.approx(2 / 3)
    assert scores["uar"] == pytest.approx(3 / 4)


def test_a_checkpoint_of_an_adapter_loads_as_the_whole_model(training, trained, processor):
    args = ModelArguments(model_name_or_path=str(trained), lora_dropout=0.0)
    model, _, new_branches = build_model(args)
    trainer = build_trainer(set_trainable(model, args, new_branches), samples(4), {}, stack, training(max_steps=1))
    trainer.data_collator = EmotionCollator(processor, Augmentation())

    checkpoint = Path(trainer.args.output_dir) / "checkpoint-1"
    trainer.save_model(str(checkpoint))

    loaded = load_pipeline(checkpoint)
    inputs = loaded.processor(text="i am so happy !", return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits
        torch.testing.assert_close(loaded.model(**inputs).logits, expected, atol=1e-5, rtol=0)
    labels = model_labels(model.config)
    _check_resumed_labels(str(checkpoint), labels)
    with pytest.raises(ValueError, match=r"contradicts resume_from_checkpoint=.*checkpoint-1, whose labels are"):
        _check_resumed_labels(str(checkpoint), labels[::-1])
