"""What `mmemo export` does."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor


BATCH_SIZE = 8


def export(
    model: str, output: Path | None, to: str, int8: str, calibration: list[str], data_dir: Path, calibration_rows: int
) -> list[Path]:
    """
    Writes a model in other forms.

    Args:
        model (`str`): Folder or Hub name of a model.
        output (`Path`, *optional*):
            The folder to write to. Without it the int8 graph is added to the folder of the model, whose weights it
            shares where they stay float.
        to (`str`): `"onnx"` or `"torch-int8"`.
        int8 (`str`): With `"onnx"`, how to add an int8 graph: `"none"`, `"dynamic"` or `"static"`.
        calibration (`list[str]`): For `"static"`, the training data to measure on; see [`read_source`].
        data_dir (`Path`): The folder that holds the corpora.
        calibration_rows (`int`): How many rows of each to take.

    Returns:
        `list[Path]`: The files with weights that were written.

    Raises:
        ValueError: If the model lacks weights, or cannot be exported.
    """
    from modeling_mmemo import exporters

    loaded = MMEmoForEmotionRecognition.from_pretrained(model)
    if loaded.missing_keys_on_load:
        raise ValueError(
            f"{model} lacks {len(loaded.missing_keys_on_load)} weights, such as {loaded.missing_keys_on_load[0]}; "
            "export a trained model."
        )
    processor = MMEmoProcessor.from_pretrained(model)
    if to == "torch-int8":
        return [exporters.save_torch_int8(loaded, processor, output)]
    batches = calibration_inputs(processor, calibration, data_dir, calibration_rows) if calibration else None
    if output is None:
        with TemporaryDirectory() as folder:
            exporters.export_onnx(loaded, processor, folder)
            quantizer = exporters.MMEmoQuantizer.from_pretrained(folder)
            written = [quantizer.quantize(model, approach=int8, calibration=batches, shares_weights=True)]
        return written + _save_analysis(processor, model)
    return export_graphs(loaded, processor, output, int8, batches)


def export_graphs(
    model: MMEmoForEmotionRecognition,
    processor: MMEmoProcessor,
    folder: str | Path,
    int8: str = "dynamic",
    calibration: Iterator[dict[str, np.ndarray]] | None = None,
) -> list[Path]:
    """Writes all graphs of a model to a folder: float, int8 and, where it can be one, that of its features."""
    from modeling_mmemo import exporters

    written = [exporters.export_onnx(model, processor, folder)]
    if int8 != "none":
        quantizer = exporters.MMEmoQuantizer.from_pretrained(folder)
        written.append(quantizer.quantize(folder, approach=int8, calibration=calibration))
    analysis = _save_analysis(processor, folder)
    return written + analysis + ([exporters.export_features(processor, folder)] if analysis else [])


def _save_analysis(processor: MMEmoProcessor, folder: str | Path) -> list[Path]:
    from modeling_mmemo.exporters.feature_graph import can_export, save_analysis

    return [save_analysis(processor, folder)] if can_export(processor) else []


def calibration_inputs(
    processor: MMEmoProcessor, sources: list[str], data_dir: Path, rows_each: int, seed: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of inputs of a graph, from the training rows of sources; see [`read_source`]."""
    from modeling_mmemo.data.sources import read_source

    for source in sources:
        rows = read_source(source, data_dir).filter(lambda split: split == "train", input_columns="split")
        rows = rows.shuffle(seed, keep_in_memory=True).select(range(min(rows_each, len(rows))))
        for start in range(0, len(rows), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            given = {
                modality: values
                for modality, part in (("audio", processor.feature_extractor), ("text", processor.tokenizer))
                if part is not None and any(values := batch[modality])
            }
            yield dict(processor(**given, return_tensors="np"))
