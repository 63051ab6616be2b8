from pathlib import Path

import pytest

from modeling_mmemo.training.training_arguments import parse_arguments, parse_cross_validation


ENCODERS = ["--audio_encoder", "a", "--text_encoder", "b"]
WORDS = ["--corpora", "meld"]


def write(path, text):
    path.write_text(text)
    return str(path)


def test_defaults():
    model, _, augmentation, training = parse_arguments([*ENCODERS, *WORDS])

    assert (model.audio_mode, model.text_mode) == ("lora", "lora")
    assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (16, 32, 0.1)
    assert augmentation.noise_probability == 0
    assert training.train_sampling_strategy == "group_by_length"
    assert (training.label_names, training.remove_unused_columns) == (["labels"], False)
    assert training.ddp_find_unused_parameters is False


def test_flags_override_the_file(tmp_path):
    config = write(
        tmp_path / "run.yaml",
        "audio_encoder: a\ntext_encoder: b\ncorpora: [ravdess, meld]\ncorpus_weights: [3, 0.5]\n"
        "learning_rate: 5.0e-4\nfold: null\nsnr_db: [0, 20]\nlr_scheduler_type: cosine\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\n",
    )

    model, data, augmentation, training = parse_arguments([config, "--learning_rate", "0.1", "--text_encoder", "c"])

    assert (model.audio_encoder, model.text_encoder) == ("a", "c")
    assert (data.corpora, data.corpus_weights, data.fold) == (["ravdess", "meld"], [3.0, 0.5], None)
    assert augmentation.snr_db == [0.0, 20.0]
    assert training.learning_rate == 0.1
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize("config", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid(config):
    # bf16 needs a GPU or --use_cpu.
    (_, _, _, training), _ = parse_cross_validation([str(config), "--use_cpu", "true"])

    assert training.output_dir == f"runs/{config.stem}"


def test_corpora_have_equal_weights_by_default():
    assert parse_arguments([*ENCODERS, "--corpora", "meld", "ravdess"])[1].corpus_weights == [1.0, 1.0]


def test_unknown_option_raises(tmp_path):
    config = write(tmp_path / "run.yaml", "audio_encoder: a\ncorpora: [meld]\nlearning_rat: 0.1\n")

    with pytest.raises(ValueError, match="learning_rat"):
        parse_arguments([config])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "Give one or several of audio_encoder, text_encoder, video_encoder, or a model_name_or_path"),
        ("--audio_encoder a --model_name_or_path m", r"model_name_or_path=m contradicts \{'audio_encoder': 'a'\}"),
        ("--text_encoder b --audio_layers 2", "audio_layers=2 contradicts audio_encoder=None"),
        ("--text_encoder b --trim_db 35", "trim_db=35.0 contradicts audio_encoder=None"),
        ("--audio_encoder a --text_layer_mix last", "text_layer_mix=last contradicts text_encoder=None"),
        ("--text_encoder b --text_mode LoRA", r"text_mode='LoRA' is unknown; choose one of \('frozen', 'lora'"),
        ("--text_encoder b --class_weights rare", r"class_weights='rare' is unknown; choose one of \('none'"),
        ("--model_name_or_path m --fusion late", "fusion=late contradicts model_name_or_path=m"),
        ("--model_name_or_path m --trim_db 35", "trim_db=35.0 contradicts model_name_or_path=m"),
        ("--text_encoder b --stored_dtype int8", r"stored_dtype='int8' is unknown; choose one of \('float32'"),
        ("--audio_encoder a --audio_freeze_layers 1", "audio_freeze_layers=1 contradicts audio_mode=lora"),
        (
            "--text_encoder b --text_mode frozen --text_freeze_layers 1",
            "text_freeze_layers=1 contradicts text_mode=fr",
        ),
        (
            "--audio_encoder a --audio_mode full --text_mode frozen --lora_target_modules q_proj",
            r"lora_target_modules=\['q_proj'\] contradicts audio_mode=full and text_mode=frozen",
        ),
        ("--audio_encoder a --text_layers 2", "text_layers=2 contradicts text_encoder=None"),
        ("--model_name_or_path m --vocabulary_size 9", "vocabulary_size=9 contradicts model_name_or_path=m"),
        ("--text_encoder b --vocabulary_size 9", "vocabulary_size=9 contradicts text_mode=lora"),
        (
            "--text_encoder b --text_mode full --text_head label_words --vocabulary_size 9",
            "vocabulary_size=9 contradicts text_head=label_words",
        ),
        ("--audio_encoder a --text_mode qlora", "text_mode=qlora contradicts text_encoder=None"),
        ("--audio_encoder a --text_head label_words", "text_head=label_words contradicts text_encoder=None"),
        (
            "--text_encoder b --text_head words",
            r"text_head='words' is unknown; choose one of \('linear', 'label_words'",
        ),
        ("--text_encoder b --label_words happy=glad", r"label_words=\['happy=glad'\] contradicts text_head=linear"),
        (
            "--text_encoder b --text_head label_words --label_words glad happy=joyful",
            r"label_words=\['glad'\] must be written as label=word",
        ),
        ("--audio_encoder a --prompt Emotion:", "prompt=Emotion: contradicts text_encoder=None"),
        ("--text_encoder b --audio_mode qlora", r"audio_mode='qlora' is unknown; choose one of \('frozen', 'lora'"),
        ("--text_encoder b --pair_probability 0.5", "pair_probability=0.5 contradicts audio_encoder=None"),
        ("--audio_encoder a --modality_dropout 0.5", "modality_dropout=0.5 contradicts text_encoder=None"),
        (
            "--audio_encoder a --audio_mode frozen --noise_probability 0.5",
            "noise_probability contradicts audio_mode=frozen with cache_states=True",
        ),
        (
            "--audio_encoder a --augmented_copies 2 --noise_probability 0.5",
            "augmented_copies=2 contradicts audio_mode=lora",
        ),
        (
            "--audio_encoder a --audio_mode frozen --augmented_copies 2 --noise_probability 0.5 --cache_states false",
            "augmented_copies=2 contradicts cache_states=False with streaming=False",
        ),
        (
            "--audio_encoder a --audio_mode frozen --augmented_copies 2",
            "augmented_copies=2 contradicts an augmentation whose probabilities are all 0",
        ),
        ("--audio_encoder a --augmented_copies -1", "augmented_copies=-1 must be at least 0"),
        (
            "--audio_encoder a --text_encoder b --audio_mode frozen --augmented_copies 2 --noise_probability 0.5 "
            "--blank_probability 0.5",
            "blank_probability contradicts audio_mode=frozen with cache_states=True",
        ),
        ("--text_encoder b --class_weight_power 0.5", "class_weight_power=0.5 contradicts class_weights=none"),
        (
            "--text_encoder b --class_weights corpus --class_weight_power 2",
            r"class_weight_power=2.0 must be in \[0, 1",
        ),
        ("--text_encoder b --class_weights equal", r"class_weights='equal' is unknown; choose one of .*'corpus'"),
        ("--text_encoder b --video_pooling last", "video_pooling=last contradicts video_encoder=None"),
        ("--model_name_or_path m --frames_per_second 2", "frames_per_second=2.0 contradicts model_name_or_path=m"),
        ("--video_encoder v --frames_per_second 0", r"frames_per_second=0.0 must be in \(0, 1000\]"),
        ("--video_encoder v --video_mode qlora", r"video_mode='qlora' is unknown; choose one of \(None, 'frozen'"),
        ("--video_encoder v --video_freeze_layers 1", "video_freeze_layers=1 contradicts video_mode=lora"),
        ("--video_encoder mmemo_video --video_mode frozen", "video_mode=frozen contradicts video_encoder=mmemo_video"),
        (
            "--video_encoder v --modality_dropout 0.5",
            "contradicts audio_encoder=None; it needs two",
        ),
        (
            "--audio_encoder a --video_encoder v --pair_probability 0.5",
            "pair_probability=0.5 contradicts text_encoder=None; it needs a text encoder and another one",
        ),
        (
            "--text_encoder b --video_encoder v --blank_probability 0.5",
            "blank_probability=0.5 contradicts audio_encoder=None; it needs encoders of audio and text",
        ),
        (
            "--text_encoder b --text_mode frozen --context_dropout 0.5",
            "context_dropout=0.5 contradicts text_mode=frozen with cache_states=True",
        ),
        (
            "--audio_encoder a --audio_mode frozen --text_mode frozen --activation_checkpointing",
            "activation_checkpointing=True contradicts audio_mode=frozen and text_mode=frozen",
        ),
    ],
)
def test_contradictory_model_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*WORDS, *options.split()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "corpora is empty; name a corpus"),
        (
            "--corpora meld --corpus_weights 2 2",
            r"corpus_weights=\[2.0, 2.0\] must have one number for each of",
        ),
        ("--corpora meld --corpus_weights 0", r"corpus_weights=\[0.0\] .* not all 0"),
        ("--corpora meld --pair_split test", r"pair_split='test' is unknown; choose one of \('train', 'dev'\)"),
        (
            "--corpora meld --neutral_text_probability 0.5",
            "neutral_text_probability=0.5 contradicts pair_probability=0",
        ),
        ("--corpora meld --pair_probability 2", r"pair_probability=2.0 must be in \[0, 1\]"),
        ("--corpora meld --context_dropout 2", r"context_dropout=2.0 must be in \[0, 1\]"),
        ("--corpora meld --dev_share -0.1", r"dev_share=-0.1 must be in \[0, 1\]"),
        ("--corpora meld --leak_columns words", r"leak_columns=\['words'\] is unknown; choose some of \('speaker'"),
        ("--corpora meld --columns emotion", r"columns=\['emotion'\] must be written as ours=theirs"),
        ("--corpora meld --columns label=emotion", r"columns=\['label=emotion'\] contradicts corpora=\['meld'\]"),
        ("--corpora meld calls.csv --fold 1", r"fold=1 contradicts corpora=\['meld', 'calls.csv'\]; none"),
        ("--corpora meld --labels sad happy sad", r"labels=\['sad', 'happy', 'sad'\] must not name a label twice"),
        ("--corpora meld --label_map excited", r"label_map=\['excited'\] must be written as theirs=ours"),
        ("--streaming --corpora meld", "streaming=True contradicts max_steps=-1"),
        ("--streaming --corpora meld --pair_probability 0.5", "streaming=True contradicts pair_probability=0.5"),
        ("--streaming --corpora meld --dev_share 0.5", "streaming=True contradicts dev_share=0.5"),
        ("--streaming --corpora meld --class_weights balanced", "streaming=True contradicts class_weights=balanced"),
        ("--streaming --corpora meld --eval_strategy epoch", "streaming=True contradicts eval_strategy=epoch"),
    ],
)
def test_invalid_data_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*ENCODERS, *options.split()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--early_stopping_patience 2", "early_stopping_patience=2 contradicts load_best_model_at_end=False"),
        ("--train_sampling_strategy batch_rebalance", "train_sampling_strategy='batch_rebalance' is not supported"),
        ("--label_smoothing_factor 0.1", "label_smoothing_factor=0.1 .* set label_smoothing"),
        # Other values than the defaults would break training, so these are no options.
        ("--remove_unused_columns true", "remove_unused_columns"),
        ("--label_names label", "label_names"),
        ("--ddp_find_unused_parameters true", "ddp_find_unused_parameters"),
    ],
)
def test_unsupported_training_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*ENCODERS, *WORDS, *options.split()])


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ("--video_encoder mmemo_video", "full"),
        ("--video_encoder facebook/dinov2-small", "lora"),
        ("--video_encoder facebook/dinov2-small --video_mode frozen", "frozen"),
    ],
)
def test_a_new_video_encoder_is_trained_fully_and_others_with_lora(options, mode):
    model, *_ = parse_arguments([*WORDS, *options.split()])

    assert model.mode_of("video") == mode


def test_video_combines_with_audio_or_text_alone():
    parse_arguments([*WORDS, *["--audio_encoder", "a", "--video_encoder", "v", "--modality_dropout", "0.5"]])
    parse_arguments([*WORDS, *["--text_encoder", "b", "--video_encoder", "v", "--pair_probability", "0.5"]])
