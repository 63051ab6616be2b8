"""Whisper's encoder for clips of their true length.

Deliberate choices:
  - layers and parameter names are Whisper's, so its weights load unchanged; only the code around the layers is new;
  - padding is zeroed before and after each convolution and masked in attention: a clip has the same output alone and
    in any batch;
  - a 3 s clip costs 3 s of computation, not 30 s; a clip longer than Whisper's 30 s is encoded in windows of 30 s.
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
    """Returns the mask as `bool`, with rows of zeros replaced by rows of ones, so that attention gives no NaN.

    The caller masks the output of those rows with the original mask.
    """
    return mask.bool() | ~mask.any(dim=-1, keepdim=True)


class MMEmoAudioEncoder(PreTrainedModel):
    """Whisper's encoder for clips of any length, with an exact mask.

    `from_pretrained` takes an `mmemo_audio` checkpoint, a complete Whisper checkpoint (`openai/whisper-base`) or a
    folder with a Whisper encoder alone. `num_hidden_layers=4` keeps the first four layers.

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
    # A Whisper checkpoint has a decoder, and may have more layers than requested.
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
            ValueError: If the checkpoint lacks weights of the encoder; none is left newly initialised.
        """
        with_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", {r"^(model\.)?encoder\.": ""})
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks weights of the audio encoder: {sorted(info['missing_keys'])}. "
                "Give a Whisper or mmemo_audio checkpoint, and at most as many num_hidden_layers as it has."
            )
        return (model, info) if with_info else model

    def _get_feat_extract_output_lengths(self, input_lengths):
        """Returns the number of positions (`int` or `torch.Tensor`) of a number of frames: the second convolution
        halves them."""
        return (input_lengths + 1) // 2

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple:
        """
        Args:
            input_features (`torch.Tensor` of shape `(batch, num_mel_bins, frames)`): Log-mel frames.
            attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*): 1 for real frames, 0 for padding on
                the right. Defaults to all ones.
            output_attentions (`bool`, *optional*): Return the attention weights of every layer.
            output_hidden_states (`bool`, *optional*): Return the input of every layer and the output of the last.
            return_dict (`bool`, *optional*): Return a [`BaseModelOutput`] (the default) rather than a tuple.

        Returns:
            [`BaseModelOutput`]: `last_hidden_state` of shape `(batch, (frames + 1) // 2, d_model)`, zero where padded;
            `hidden_states`, a tuple of `encoder_layers + 1` such tensors, the last one being `last_hidden_state`;
            `attentions`, a tuple of `encoder_layers` tensors of shape `(batch, heads, positions, positions)`, zero
            where padded and from one window to another.

        Raises:
            ValueError: If the features have another shape, or if attention weights are requested from an
                implementation of attention that does not compute them.
        """
        if input_features.dim() != 3 or input_features.shape[1] != self.config.num_mel_bins:
            raise ValueError(
                f"input_features has shape {tuple(input_features.shape)}, but the encoder takes "
                f"(batch, num_mel_bins={self.config.num_mel_bins}, frames)."
            )
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions=True needs eager attention, but this encoder uses "
                f'{self.config._attn_implementation!r}; call set_attn_implementation("eager") first.'
            )
        batch, _, frames = input_features.shape
        windows, window_mask = self._split_windows(input_features, attention_mask)
        hidden_states, attentions = self._encode_windows(windows, window_mask, output_attentions)
        if not output_hidden_states:
            hidden_states = hidden_states[-1:]
        positions = self._get_feat_extract_output_lengths(frames)
        hidden_states = [h.unflatten(0, (batch, -1)).flatten(1, 2)[:, :positions] for h in hidden_states]
        attentions = [_join_windows(weights, batch)[..., :positions, :positions] for weights in attentions]
        output = BaseModelOutput(
            last_hidden_state=hidden_states[-1],
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def _split_windows(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Splits clips into windows of the encoder's maximum length, or of the clip's if that is shorter.

        Returns:
            The features `(batch * windows, num_mel_bins, window)`, and their mask `(batch * windows, window)` or
            `None` if there is no padding.
        """
        batch, _, frames = input_features.shape
        # Masking without padding changes nothing and takes a twentieth of the time.
        if attention_mask is not None and not torch.compiler.is_compiling() and attention_mask.all():
            attention_mask = None
        # Without a branch, so that an exported graph takes clips of any length.
        window = torch.sym_min(frames, 2 * self.config.max_source_positions)
        num_windows = (frames + window - 1) // window
        padding = num_windows * window - frames
        if attention_mask is None and padding:
            attention_mask = input_features.new_ones(batch, frames, dtype=torch.long)
        input_features = nn.functional.pad(input_features, (0, padding)).unflatten(2, (num_windows, window))
        input_features = input_features.transpose(1, 2).flatten(0, 1)
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (0, padding)).unflatten(1, (num_windows, window))
            attention_mask = attention_mask.flatten(0, 1)
        return input_features, attention_mask

    def _encode_windows(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None, output_attentions: bool
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Encodes windows.

        Returns:
            The states of all layers, each `(windows, positions, d_model)`, and on request the attention weights, each
            `(windows, heads, positions, positions)`.
        """
        frame_mask = position_mask = None
        if attention_mask is not None:
            frame_mask = attention_mask.unsqueeze(1).to(input_features.dtype)
            position_mask = attention_mask[:, ::2]

        embeds = _masked(nn.functional.gelu(self.conv1(_masked(input_features, frame_mask))), frame_mask)
        embeds = nn.functional.gelu(self.conv2(embeds)).transpose(1, 2)
        # Looked up rather than sliced: an exporter would drop a slice that takes everything.
        embeds = embeds + self.embed_positions(torch.arange(embeds.shape[1], device=embeds.device))
        hidden_states = [nn.functional.dropout(embeds, p=self.config.dropout, training=self.training)]

        bias = None
        if position_mask is not None:
            bias = create_bidirectional_mask(self.config, embeds, attendable(position_mask))
            position_mask = position_mask.unsqueeze(-1).to(embeds.dtype)
        attentions: list[torch.Tensor] = []
        for layer in self.layers:
            if not output_attentions:
                hidden_states.append(layer(hidden_states[-1], bias))
                continue
            # The layer does not return its attention weights.
            attention = layer.get_submodule("self_attn")
            with attention.register_forward_hook(lambda module, inputs, output: attentions.append(output[1])):
                hidden_states.append(layer(hidden_states[-1], bias))
        hidden_states[-1] = self.layer_norm(hidden_states[-1])
        query_mask = None if position_mask is None else position_mask.unsqueeze(1)
        return (
            [_masked(states, position_mask) for states in hidden_states],
            [_masked(weights, query_mask) for weights in attentions],
        )


def _masked(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return values if mask is None else values * mask


def _join_windows(weights: torch.Tensor, batch: int) -> torch.Tensor:
    """Places the attention weights of each window on the diagonal of its clip's.

    Args:
        weights (`torch.Tensor` of shape `(batch * windows, heads, positions, positions)`): Of each window.

    Returns:
        `torch.Tensor` of shape `(batch, heads, windows * positions, windows * positions)`.
    """
    windows = weights.unflatten(0, (batch, -1)).unbind(dim=1)
    _, heads, positions, _ = weights.shape
    joined = weights.new_zeros(batch, heads, len(windows), positions, len(windows), positions)
    for index, window in enumerate(windows):
        joined[:, :, index, :, index] = window
    return joined.flatten(4, 5).flatten(2, 3)
