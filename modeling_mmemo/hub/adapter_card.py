"""Model cards of LoRA adapters."""

from huggingface_hub import ModelCardData

from mmemo.modalities import MODALITIES
from modeling_mmemo import MMEmoConfig
from modeling_mmemo.adapter_mmemo import EMBEDDED_MODEL


INPUTS = {"audio": "speech", "text": "text", "video": "faces"}
TEMPLATE = """\
# {name}

A LoRA adapter for emotion recognition from {inputs}, with {count} labels: {labels}. It was trained on {base}.

```python
from modeling_mmemo import load_pipeline  # pip install 'mmemo[train]'

emotion = load_pipeline("{name}")
```

`load_pipeline` and `MMEmoForEmotionRecognition.from_pretrained` load that model with the configuration of this
repository (labels, temperatures, quantiles of prediction sets), and merge the adapter into it.{peft}

## Licence

{license}
"""
PEFT = """

peft does not read the configuration, so pass it to the base model:

```python
from modeling_mmemo import MMEmoConfig, MMEmoForEmotionRecognition
from peft import PeftModel

config = MMEmoConfig.from_pretrained("{name}")
base = MMEmoForEmotionRecognition.from_pretrained("{base}", config=config, ignore_mismatched_sizes=True)
model = PeftModel.from_pretrained(base, "{name}")
```"""


def adapter_card(config: MMEmoConfig, name: str, base: str | None, license: str | None) -> str:
    """
    Returns the card of an adapter, without figures.

    Args:
        config (`MMEmoConfig`): Its configuration.
        name (`str`): Its Hub repository.
        base (`str`, *optional*): Name of its base model; `None` if it was trained on new encoders.
        license (`str`, *optional*): Licence identifier of the model that it was trained on.
    """
    towers = {name: getattr(config, f"{name}_config") for name in MODALITIES if config.has_encoder(name)}
    # An encoder that was trained from scratch has no name.
    sources = [tower.name_or_path for tower in towers.values() if tower.name_or_path] if base is None else [base]
    data = ModelCardData(
        license=license,
        library_name="peft",
        pipeline_tag="audio-classification",
        tags=["mmemo", "emotion-recognition", "multimodal", "lora"],
        model_name=name,
        base_model=[source for source in sources if source != EMBEDDED_MODEL] or None,
    )
    labels = [config.id2label[index] for index in range(config.num_labels)]
    described = [
        "the embedded model of mmemo" if source == EMBEDDED_MODEL else f"[{source}](https://huggingface.co/{source})"
        for source in sources
    ]
    text = TEMPLATE.format(
        name=name,
        inputs=" and ".join(INPUTS[modality] for modality in towers),
        count=len(labels),
        labels=", ".join(labels),
        base=" and ".join(described),
        peft="" if base is None else PEFT.format(name=name, base=base),
        license=f"{license}, as the model that it was trained on."
        if license
        else "The licence of the model that it was trained on applies to the adapter, too.",
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"
