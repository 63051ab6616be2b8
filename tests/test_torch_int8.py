import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.ao.nn.quantized import dynamic

from modeling_mmemo import MultimodalEmotionPipeline, load_pipeline
from modeling_mmemo.exporters import load_torch_int8, quantize_torch, save_torch_int8
from modeling_mmemo.exporters.torch_int8 import FORMAT, HEADS, TORCH_INT8_FILE


@pytest.fixture
def item(make_clip):
    return {"audio": make_clip(0.9, 4), "text": "you are not happy"}


def test_linear_layers_are_int8_but_for_the_heads(model):
    quantized = quantize_torch(model)

    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear:
            assert isinstance(quantized.get_submodule(name), dynamic.Linear) == (name not in HEADS), name
    assert not any(isinstance(module, dynamic.Linear) for module in model.modules())


def test_answers_change_little(model, emotion, processor, item):
    int8 = MultimodalEmotionPipeline(model=quantize_torch(model), processor=processor, task="multimodal-emotion")

    expected = {entry["label"]: entry["score"] for entry in emotion(item)}
    answer = {entry["label"]: entry["score"] for entry in int8(item)}
    assert answer == pytest.approx(expected, abs=0.05) and answer != expected


def test_saved_and_loaded_it_answers_the_same(model, processor, item, tmp_path):
    quantized = quantize_torch(model)

    save_torch_int8(quantized, processor, tmp_path)

    int8 = MultimodalEmotionPipeline(model=quantized, processor=processor, task="multimodal-emotion")
    assert load_pipeline(tmp_path, backend="torch-int8")(item) == int8(item)
    codes = [tensor for name, tensor in load_file(tmp_path / TORCH_INT8_FILE).items() if name.endswith(".codes")]
    assert len(codes) >= 24 and all(tensor.dtype == torch.int8 for tensor in codes)


def test_a_model_in_full_precision_is_quantized_as_it_is_saved(model, processor, tmp_path):
    save_torch_int8(model, processor, tmp_path)

    loaded, expected = load_torch_int8(tmp_path).state_dict(), quantize_torch(model).state_dict()
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(loaded[name], value)


def test_files_that_are_not_whole_are_refused(model, processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model_int8.safetensors. Export the model: mmemo export"):
        load_torch_int8(tmp_path)
    path = save_torch_int8(model, processor, tmp_path)
    tensors = load_file(path)

    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"is not of the format {FORMAT}; export the model again"):
        load_torch_int8(tmp_path)
    less = {name: value for name, value in tensors.items() if name != "fused_classifier.bias"}
    save_file(less | {"other": torch.zeros(1)}, path, metadata={"format": FORMAT})
    with pytest.raises(ValueError, match=r"lacks \['fused_classifier.bias'\] and has too many \['other'\]"):
        load_torch_int8(tmp_path)
    less = {name: value for name, value in tensors.items() if not name.endswith("layer.0.output.dense.codes")}
    save_file(less, path, metadata={"format": FORMAT})
    with pytest.raises(ValueError, match=r"lacks '.*layer.0.output.dense.codes'; export the model again"):
        load_torch_int8(tmp_path)
