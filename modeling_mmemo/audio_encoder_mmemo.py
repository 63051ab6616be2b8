"""The Whisper encoder on a clip's true length.

Deliberate choices:
  - Whisper's own layers and parameter names, so its weights load as they are; only the frame around them is ours;
  - padding is zeroed before and after each convolution and masked in attention: a clip gives the same output alone and
    in any batch;
  - a 3 s clip costs 3 s, not 30 s; a clip longer than Whisper's 30 s is encoded in windows of 30 s.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer, sinusoids

from .configuration_mmemo import MMEmoAudioConfig


def attendable(mask: torch.Tensor) -> torch.Tensor:
    """Returns the mask with rows that hold nothing real opened whole, so that attention over them gives no NaN.

    What such a row computes is thrown away by whoever holds the true mask.
    """
    return torch.where(mask.any(dim=-1, keepdim=True), mask, torch.ones_like(mask))


class MMEmoAudioEncoder(PreTrainedModel):
    """Whisper's encoder for clips of any length, with an exact mask.

    `from_pretrained` takes an `mmemo_audio` checkpoint, a whole Whisper checkpoint (`openai/whisper-base`) or a folder
    that holds a Whisper encoder alone. `num_hidden_layers=4` keeps the first four layers.

    Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022.
    """

    config: MMEmoAudioConfig
    config_class = MMEmoAudioConfig
    base_model_prefix = "audio_encoder"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["WhisperEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _input_embed_layer = "conv1"
    # A whole Whisper has a decoder, and more layers than may have been asked for.
    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"proj_out\.", r"layers\.\d+\."]

    def __init__(self, config: MMEmoAudioConfig):
        super().__init__(config)
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.embed_positions.requires_grad_(False)
        self.layers = nn.ModuleList([WhisperEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.embed_positions:
            init.copy_(module.weight, sinusoids(*module.weight.shape))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Loads an `mmemo_audio` or Whisper checkpoint; arguments as in [`PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: If weights of the encoder are not in the checkpoint; none is left at random.
        """
        with_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", {r"^(model\.)?encoder\.": ""})
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks weights of the audio encoder: {sorted(info['missing_keys'])}. "
                "Give a Whisper or mmemo_audio checkpoint, and no more num_hidden_layers than it has."
            )
        return (model, info) if with_info else model

    def _get_feat_extract_output_lengths(self, input_lengths):
        """Positions (`int` or `torch.Tensor`) left of so many input frames once the second convolution halved them."""
        return (input_lengths + 1) // 2

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple:
        """
        Args:
            input_features (`torch.Tensor` of shape `(batch, num_mel_bins, frames)`): Log-mel frames.
            attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*): 1 for real frames, 0 for padding,
                which stands on the right. All real where absent.
            output_hidden_states (`bool`, *optional*): Return the input of every layer and the output of the last.
            return_dict (`bool`, *optional*): Return a [`BaseModelOutput`] (the default) rather than a tuple.

        Returns:
            [`BaseModelOutput`]: `last_hidden_state` of shape `(batch, (frames + 1) // 2, d_model)`, zero where padded;
            `hidden_states`, a tuple of `encoder_layers + 1` such tensors, the last one being `last_hidden_state`.

        Raises:
            ValueError: If the features have another shape than the encoder reads.
        """
        if input_features.dim() != 3 or input_features.shape[1] != self.config.num_mel_bins:
            raise ValueError(
                f"input_features has shape {tuple(input_features.shape)}, but the encoder reads "
                f"(batch, num_mel_bins={self.config.num_mel_bins}, frames)."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        batch, _, frames = input_features.shape
        # Masking what has no padding takes a twentieth of the time and changes nothing.
        if attention_mask is not None and not torch.compiler.is_compiling() and attention_mask.all():
            attention_mask = None

        # Without a branch, so that an exported graph takes clips of any length: a short one is one window of its own.
        window = torch.sym_min(frames, 2 * self.config.max_source_positions)
        num_windows = (frames + window - 1) // window
        missing = num_windows * window - frames
        if attention_mask is None and missing:
            attention_mask = input_features.new_ones(batch, frames, dtype=torch.long)
        input_features = nn.functional.pad(input_features, (0, missing)).unflatten(2, (num_windows, window))
        input_features = input_features.transpose(1, 2).flatten(0, 1)
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (0, missing)).unflatten(1, (num_windows, window))
            attention_mask = attention_mask.flatten(0, 1)

        hidden_states = self._encode(input_features, attention_mask)
        if not output_hidden_states:
            hidden_states = hidden_states[-1:]
        positions = self._get_feat_extract_output_lengths(frames)
        hidden_states = [h.unflatten(0, (batch, num_windows)).flatten(1, 2)[:, :positions] for h in hidden_states]

        output = BaseModelOutput(
            last_hidden_state=hidden_states[-1],
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()

    def _encode(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> list[torch.Tensor]:
        """Encodes one window a row and returns the layers' states, each `(rows, positions, d_model)`."""
        frame_mask = position_mask = None
        if attention_mask is not None:
            frame_mask = attention_mask.unsqueeze(1).to(input_features.dtype)
            position_mask = attention_mask[:, ::2]

        embeds = _masked(nn.functional.gelu(self.conv1(_masked(input_features, frame_mask))), frame_mask)
        embeds = nn.functional.gelu(self.conv2(embeds)).transpose(1, 2)
        # Looked up and not sliced: an exporter would take a slice of everything for no slice.
        embeds = embeds + self.embed_positions(torch.arange(embeds.shape[1], device=embeds.device))
        hidden_states = [nn.functional.dropout(embeds, p=self.config.dropout, training=self.training)]

        bias = None
        if position_mask is not None:
            bias = create_bidirectional_mask(self.config, embeds, attendable(position_mask))
            position_mask = position_mask.unsqueeze(-1).to(embeds.dtype)
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1], bias))
        hidden_states[-1] = self.layer_norm(hidden_states[-1])
        return [_masked(states, position_mask) for states in hidden_states]


def _masked(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return values if mask is None else values * mask
