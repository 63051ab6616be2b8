"""Configurations of the mmemo audio and video encoders, and of the emotion model with up to three encoders.

Deliberate choices:
  - the composite stores complete sub-configurations, each rebuilt by its own `model_type`: any encoder plugs in;
  - any encoder may be absent, but not all; contradictory fields raise here, before any weight is allocated;
  - label names and their order are part of the contract of every released model.
"""

from itertools import permutations
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from mmemo.modalities import MODALITIES, PRESENCES


CUSTOM_PIPELINES = {
    "multimodal-emotion": {
        "impl": "multimodal_emotion.MultimodalEmotionPipeline",
        "pt": ["AutoModelForAudioClassification"],
    }
}
EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
FUSIONS = ("early", "late", "cross_attention", "hybrid")
POOLINGS = ("mean", "mean_std", "cls", "last", "attention")
LAYER_MIXES = ("weighted_sum", "concat", "last")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# The modalities that every model has weights for; a model with a `video_config` has a third.
BASE_MODALITIES = ("audio", "text")

_WHISPER_FIELDS = (
    "num_mel_bins",
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "max_source_positions",
    "scale_embedding",
    "activation_function",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "init_std",
)


@strict
class MMEmoAudioConfig(PreTrainedConfig):
    """Configuration of [`MMEmoAudioEncoder`]; its fields are named as in [`WhisperConfig`].

    Args:
        num_mel_bins (`int`, defaults to 80): Number of mel bands per frame (`feature_size` of the extractor).
        d_model (`int`, defaults to 512): Width of the layers.
        encoder_layers (`int`, defaults to 6): Number of Transformer layers; with fewer than the checkpoint has, its
            first ones are kept.
        encoder_attention_heads (`int`, defaults to 8): Attention heads of a layer.
        encoder_ffn_dim (`int`, defaults to 2048): Width of a layer's feed-forward part.
        max_source_positions (`int`, defaults to 1500): Positions of one window, after the convolutions have halved
            the frames; a longer clip is encoded window by window.
        scale_embedding (`bool`, defaults to `False`): For compatibility with Whisper; must be `False`.
        activation_function (`str`, defaults to `"gelu"`): Activation of the feed-forward parts.
        dropout, attention_dropout, activation_dropout (`float`, default to 0): Dropout probabilities.
        init_std (`float`, defaults to 0.02): Standard deviation of newly initialised weights.
        frame_seconds (`float`, defaults to 0.01): Seconds between two input frames (hop / sampling rate).

    Raises:
        ValueError: If `d_model` is odd or not a multiple of the number of heads, or `scale_embedding` is set.
    """

    model_type = "mmemo_audio"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_dim",
    }

    num_mel_bins: int = 80
    d_model: int = 512
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    max_source_positions: int = 1500
    scale_embedding: bool = False
    activation_function: str = "gelu"
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    init_std: float = 0.02
    frame_seconds: float = 0.01

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.d_model % 2 or self.d_model % self.encoder_attention_heads:
            raise ValueError(
                f"d_model={self.d_model} must be even and a multiple of "
                f"encoder_attention_heads={self.encoder_attention_heads}."
            )
        if self.scale_embedding:
            raise ValueError("scale_embedding=True is not supported: no released Whisper encoder uses it.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration to save, including the pipeline that is saved with it."""
        return super().to_dict() | {"custom_pipelines": CUSTOM_PIPELINES}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads a `config.json`; a Whisper configuration is reduced to the fields of its encoder."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == "whisper":
            config_dict = {key: config_dict[key] for key in (*_WHISPER_FIELDS, "dtype") if key in config_dict}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs


@strict
class MMEmoVideoConfig(PreTrainedConfig):
    """Configuration of [`MMEmoVideoEncoder`], a small temporal network over the blendshapes of a face in each frame.

    Args:
        num_features (`int`, defaults to 52): Blendshapes per frame.
        hidden_size (`int`, defaults to 64): Width of the layers.
        num_hidden_layers (`int`, defaults to 2): Number of convolutional layers.
        kernel_size (`int`, defaults to 5): Frames that a convolution sees; odd.
        hidden_dropout_prob (`float`, defaults to 0): Dropout probability after every layer.
        initializer_range (`float`, defaults to 0.02): Standard deviation of newly initialised weights.

    Raises:
        ValueError: If `kernel_size` is even, or a size is not positive.
    """

    model_type = "mmemo_video"

    num_features: int = 52
    hidden_size: int = 64
    num_hidden_layers: int = 2
    kernel_size: int = 5
    hidden_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("num_features", "hidden_size", "num_hidden_layers", "kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size} must be odd, so that frames keep their positions.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration to save, including the pipeline that is saved with it."""
        return super().to_dict() | {"custom_pipelines": CUSTOM_PIPELINES}


_OWN_ENCODERS = {config.model_type: config for config in (MMEmoAudioConfig, MMEmoVideoConfig)}


@strict
class MMEmoConfig(PreTrainedConfig):
    """Configuration of [`MMEmoModel`] and [`MMEmoForEmotionRecognition`].

    Args:
        audio_config, text_config, video_config (`PreTrainedConfig` or `dict`, *optional*): The encoders ("towers"):
            any configuration that `AutoConfig` knows, [`MMEmoAudioConfig`] or [`MMEmoVideoConfig`]. The video encoder
            is that one or an image encoder, which encodes each frame. At least one of the three is needed.
        fusion (`str`, defaults to `"hybrid"`): `"early"` concatenates the pooled features; `"cross_attention"` does so
            after each modality attends to the others; `"late"` averages the log-probabilities of one head per modality
            with weights; `"hybrid"` adds the head of the cross-attended features to that average.
        fusion_hidden_size (`int`, defaults to 256): Width of each branch after its encoder.
        fusion_num_layers (`int`, defaults to 1): Cross-modal attention layers.
        num_attention_heads (`int`, defaults to 4): Heads of each cross-modal attention.
        audio_pooling, text_pooling, video_pooling (`str`, default to `"mean_std"`, `"mean"` and `"mean_std"`): Pooling
            of a sequence into one vector, over its real positions: `"mean"`, `"mean_std"` (mean and standard
            deviation), `"cls"` (the first), `"last"`, `"attention"` (learned weights).
        audio_layer_mix, text_layer_mix, video_layer_mix (`str`, default to `"weighted_sum"`): The layers of an encoder
            that are used: their sum by learned weights (`"weighted_sum"`), each pooled separately and concatenated
            (`"concat"`), or the last one (`"last"`).
        label_token_ids (`list[int]`, *optional*): One token per label. The text encoder is then a language model, and
            its logits of these tokens after the text are the text logits; by default a head is trained instead.
        segment_seconds (`float`, defaults to 0.5): Length of a segment, the unit of the distance in time between
            positions of two modalities, such as a word and an audio position.
        fusion_dropout (`float`, defaults to 0.1): Dropout after the encoders.
        modality_dropout (`float`, defaults to 0): Probability, in training, that a sample with several modalities
            keeps only some of them, each proper subset being equally likely.
        late_fusion_weights (`list[float]`, *optional*): Fixed weights of the heads in `"late"` fusion, in the order of
            [`~MMEmoConfig.modalities`]; by default they are computed per sample by a learned gate.
        modality_loss_weight (`float`, defaults to 0.3): Weight of the loss of each head, added to that of the
            prediction.
        class_weights (`list[float]`, *optional*): Weight of each label in the single-label loss.
        label_smoothing (`float`, defaults to 0): Share of the target that is spread over all labels.
        focal_gamma (`float`, defaults to 0): Exponent of the focal loss, which reduces the weight of samples that are
            predicted well; 0 is cross-entropy.
        temperature (`float` or `dict`, defaults to 1): Divisor of the logits, fitted on development data; a dict has
            one per set of modalities present, named as by [`presence_of`]: `{"audio": 1.1, "text": 1.3, "both": 1.2}`.
        conformal_quantiles (`dict`, *optional*): For each set of modalities present, the quantiles at 0, 1, ..., 100 %
            of 1 minus the score of the true label on development data. They determine the prediction sets.
        projection_dim (`int`, *optional*): Width of the space into which contrastive pre-training projects all
            modalities; by default the model has no such space.
        logit_scale_init_value (`float`, defaults to 2.6592): Initial logarithm of the learned inverse temperature of
            the similarities in that space, as in [`CLIPConfig`].
        zero_shot_calibration (`dict`, *optional*): For each set of modalities present, named as by [`presence_of`],
            the factor and the addend that turn cosines of items and candidate labels into logits, fitted on
            development data; a logit of 0 is as likely as "none of these".
        audio_frame_seconds (`float`, *optional*): Seconds between two outputs of the audio encoder. Only needed for
            encoders whose configuration does not define it.
        initializer_range (`float`, defaults to 0.02): Standard deviation of newly initialised weights.

    Raises:
        ValueError: If a value is unknown, or if values contradict each other.

    Example:

    ```python
    >>> from transformers import BertConfig
    >>> from modeling_mmemo import MMEmoAudioConfig, MMEmoConfig

    >>> config = MMEmoConfig(audio_config=MMEmoAudioConfig(), text_config=BertConfig(), fusion="late")
    ```"""

    model_type = "mmemo"
    # The default model types are never used: an absent encoder stays absent.
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper", optional=True),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
        "video_config": SubConfigSpec(config_class=AutoConfig, model_type="vit", optional=True),
    }
    attribute_map = {"hidden_size": "fusion_hidden_size", "num_hidden_layers": "fusion_num_layers"}
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference = [
        *(f"{modality}_logits" for modality in MODALITIES),
        "modality_weights",
        "segment_logits",
        "segment_modality_weights",
        *(f"{modality}_embeds" for modality in (*MODALITIES, "fused")),
        *(f"{modality}_projection" for modality in MODALITIES),
        *(f"segment_{modality}_projection" for modality in MODALITIES),
        *(f"{query}_to_{context}_attentions" for query, context in permutations(MODALITIES, 2)),
        *(f"{modality}_hidden_states" for modality in MODALITIES),
    ]

    audio_config: PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    video_config: PreTrainedConfig | dict | None = None
    fusion: str = "hybrid"
    fusion_hidden_size: int = 256
    fusion_num_layers: int = 1
    num_attention_heads: int = 4
    audio_pooling: str = "mean_std"
    text_pooling: str = "mean"
    video_pooling: str = "mean_std"
    audio_layer_mix: str = "weighted_sum"
    text_layer_mix: str = "weighted_sum"
    video_layer_mix: str = "weighted_sum"
    label_token_ids: list[int] | tuple[int, ...] | None = None
    segment_seconds: float | int = 0.5
    fusion_dropout: float | int = 0.1
    modality_dropout: float | int = 0.0
    late_fusion_weights: list[float | int] | tuple[float | int, ...] | None = None
    modality_loss_weight: float | int = 0.3
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    label_smoothing: float | int = 0.0
    focal_gamma: float | int = 0.0
    temperature: float | int | dict[str, float | int] = 1.0
    conformal_quantiles: dict[str, list[float | int]] | None = None
    projection_dim: int | None = None
    logit_scale_init_value: float | int = 2.6592
    zero_shot_calibration: dict[str, list[float | int]] | None = None
    audio_frame_seconds: float | None = None
    initializer_range: float = 0.02
    id2label: dict[int, str] | dict[str, str] | None = None
    label2id: dict[str, int] | dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in (f"{modality}_config" for modality in MODALITIES):
            tower_config = getattr(self, name)
            if isinstance(tower_config, dict) and tower_config.get("model_type") in _OWN_ENCODERS:
                setattr(self, name, _OWN_ENCODERS[tower_config["model_type"]](**tower_config))
        if self.id2label is None and self.label2id is not None:
            self.id2label = {int(index): label for label, index in self.label2id.items()}
        if self.id2label is None and "num_labels" not in kwargs:
            self.id2label = dict(enumerate(EMOTIONS))
        if self.label2id is None and self.id2label is not None:
            self.label2id = {label: int(index) for index, label in self.id2label.items()}
        if not __name__.startswith("transformers_modules."):
            # With this entry of a saved model, `pipeline` would require `trust_remote_code`, although this package
            # registers the task.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        self._validate()

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration to save, including the pipeline that is saved with it."""
        return super().to_dict() | {"custom_pipelines": CUSTOM_PIPELINES}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads a `config.json`.

        Raises:
            ValueError: If it belongs to another type of model, about which transformers only warns.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {model_type!r} model, not {cls.model_type!r}; "
                "MMEmoForEmotionRecognition.from_pretrained_towers builds one from encoders."
            )
        return config_dict, kwargs

    def _validate(self) -> None:
        if not any(map(self.has_encoder, MODALITIES)):
            raise ValueError("MMEmoConfig needs an audio_config, a text_config or a video_config; none was given.")
        self._validate_choices()
        self._validate_numbers()
        self._validate_late_fusion_weights()
        self._validate_class_weights()
        self._validate_labels()
        self._validate_label_tokens()
        self._validate_quantiles()
        self._validate_zero_shot_calibration()

    def _validate_choices(self) -> None:
        choices = {
            "fusion": FUSIONS,
            **{f"{modality}_pooling": POOLINGS for modality in MODALITIES},
            **{f"{modality}_layer_mix": LAYER_MIXES for modality in MODALITIES},
            "problem_type": (None, *PROBLEM_TYPES),
        }
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {valid}.")

    def _validate_numbers(self) -> None:
        if self.fusion_hidden_size % self.num_attention_heads:
            raise ValueError(
                f"fusion_hidden_size={self.fusion_hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.fusion in ("cross_attention", "hybrid") and self.fusion_num_layers < 1:
            raise ValueError(
                f'fusion="{self.fusion}" needs fusion_num_layers of at least 1, got {self.fusion_num_layers}; '
                'use fusion="early" or "late" for a model without cross-modal attention.'
            )
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"projection_dim={self.projection_dim} must be at least 1, or None for no shared space.")
        if self.segment_seconds <= 0:
            raise ValueError(f"segment_seconds must be positive, got {self.segment_seconds}.")
        for name in ("fusion_dropout", "modality_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        for name in ("modality_loss_weight", "focal_gamma"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for presence in PRESENCES:
            if not self.temperature_of(presence) > 0:
                raise ValueError(f"temperature must be positive, got {self.temperature}.")

    def _validate_late_fusion_weights(self) -> None:
        weights = self.late_fusion_weights
        if weights is None:
            return
        if self.fusion != "late":
            raise ValueError(f'late_fusion_weights={weights} contradicts fusion="{self.fusion}"; use fusion="late".')
        if len(weights) != len(self.modalities) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"late_fusion_weights={weights} must be one weight for each of {', '.join(self.modalities)}, none "
                "negative and not all 0."
            )

    def _validate_class_weights(self) -> None:
        weights = self.class_weights
        if weights is not None and (len(weights) != self.num_labels or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(
                f"class_weights={weights} must be one weight for each of the {self.num_labels} labels, none negative "
                "and not all 0."
            )

    def _validate_labels(self) -> None:
        if self.id2label is None:
            return
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"The keys of id2label must be 0, 1, 2, ...; got {sorted(self.id2label)}.")
        inverse = {label: index for index, label in self.id2label.items()}
        if len(inverse) != len(self.id2label):
            raise ValueError(f"id2label has a label twice: {list(self.id2label.values())}.")
        if self.label2id is not None and {k: int(v) for k, v in self.label2id.items()} != inverse:
            raise ValueError(f"label2id={self.label2id} contradicts id2label={self.id2label}; give one of them.")

    def _validate_label_tokens(self) -> None:
        tokens = self.label_token_ids
        if tokens is None:
            return
        if self.text_config is None:
            raise ValueError(
                f"label_token_ids={tokens} contradicts text_config=None; they are tokens of a text encoder."
            )
        if len(tokens) != self.num_labels or len(set(tokens)) != len(tokens) or min(tokens) < 0:
            raise ValueError(
                f"label_token_ids={tokens} must be one token for each of the {self.num_labels} labels, none twice."
            )

    def _validate_quantiles(self) -> None:
        for presence, quantiles in (self.conformal_quantiles or {}).items():
            if presence not in PRESENCES:
                raise ValueError(f"conformal_quantiles has the unknown key {presence!r}; valid keys are {PRESENCES}.")
            if len(quantiles) != 101 or list(quantiles) != sorted(quantiles):
                raise ValueError(
                    f"conformal_quantiles[{presence!r}] must be 101 numbers in ascending order, for 0 to 100 %; got "
                    f"{len(quantiles)}."
                )

    def _validate_zero_shot_calibration(self) -> None:
        for presence, values in (self.zero_shot_calibration or {}).items():
            if presence not in PRESENCES:
                raise ValueError(
                    f"zero_shot_calibration has the unknown key {presence!r}; valid keys are {PRESENCES}."
                )
            if len(values) != 2 or not values[0] > 0:
                raise ValueError(
                    f"zero_shot_calibration[{presence!r}]={values} must be a positive factor and an addend."
                )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities in the order of masks and weights: audio, text and, with a `video_config`, video. The model
        may lack an encoder for audio or text."""
        return (*BASE_MODALITIES, "video") if self.has_encoder("video") else BASE_MODALITIES

    def has_encoder(self, modality: str) -> bool:
        """Whether the model has an encoder for a modality."""
        return getattr(self, f"{modality}_config") is not None

    @property
    def is_multimodal(self) -> bool:
        """Whether the model has several encoders."""
        return sum(map(self.has_encoder, MODALITIES)) > 1

    @property
    def attends_across(self) -> bool:
        """Whether the modalities attend to each other."""
        return self.is_multimodal and self.fusion in ("cross_attention", "hybrid")

    def temperature_of(self, presence: str) -> float:
        """Returns the temperature for predictions from `presence`, a set of modalities named as by [`presence_of`].

        Raises:
            ValueError: If the configuration has temperatures for other keys.
        """
        if not isinstance(self.temperature, dict):
            return float(self.temperature)
        if unknown := set(self.temperature) - set(PRESENCES):
            raise ValueError(f"temperature has unknown keys {sorted(unknown)}; valid keys are {PRESENCES}.")
        return float(self.temperature.get(presence, 1.0))
