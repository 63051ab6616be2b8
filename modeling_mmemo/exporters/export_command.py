"""The command `mmemo export`."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor


BATCH_SIZE = 8


def export(
    model: str,
    output: Path | None,
    int8: str,
    calibration: list[str],
    data_dir: Path,
    calibration_rows: int,
    target: str = "mmemo",
) -> list[Path]:
    """
    Exports a model to ONNX.

    Args:
        model (`str`): Folder or Hub name of a model.
        output (`Path`, *optional*):
            Output folder. Without it, an int8 graph is added to the folder of the model; it shares the weights that
            stay in floating point with the model's own file.
        int8 (`str`): How to quantize: `"none"`, `"dynamic"` or `"static"`.
        calibration (`list[str]`): With `"static"`, training data for calibration; see [`read_source`].
        data_dir (`Path`): Folder with the corpora.
        calibration_rows (`int`): Number of rows of each source.
        target (`str`, *optional*, defaults to `"mmemo"`):
            Layout of the output folder: `"mmemo"`, or `"triton"` for a model repository; see [`save_repository`].

    Returns:
        `list[Path]`: The files written that contain weights, or all files of a model repository.

    Raises:
        ValueError: If weights of the model are missing, or it cannot be exported.
    """
    from modeling_mmemo import exporters

    loaded = MMEmoForEmotionRecognition.from_pretrained(model)
    if loaded.missing_keys_on_load:
        raise ValueError(
            f"{model} lacks {len(loaded.missing_keys_on_load)} weights, such as {loaded.missing_keys_on_load[0]}; "
            "export a trained model."
        )
    processor = MMEmoProcessor.from_pretrained(model)
    batches = calibration_inputs(processor, calibration, data_dir, calibration_rows) if calibration else None
    if output is not None and target == "mmemo":
        return export_graphs(loaded, processor, output, int8, batches)
    with TemporaryDirectory() as folder:
        if output is not None:
            export_graphs(loaded, processor, folder, int8, batches)
            return exporters.save_repository(folder, output)
        exporters.export_onnx(loaded, processor, folder)
        quantizer = exporters.MMEmoQuantizer.from_pretrained(folder)
        graph = quantizer.quantize(model, approach=int8, calibration=batches, shares_weights=True)
    return [graph, *_save_analysis(processor, model)]


def export_graphs(
    model: MMEmoForEmotionRecognition,
    processor: MMEmoProcessor,
    folder: str | Path,
    int8: str = "dynamic",
    calibration: Iterator[dict[str, np.ndarray]] | None = None,
) -> list[Path]:
    """Writes the float graph, the int8 graph and the arrays of the feature extractor to a folder; see [`export`]."""
    from modeling_mmemo import exporters

    written = [exporters.export_onnx(model, processor, folder)]
    if int8 != "none":
        quantizer = exporters.MMEmoQuantizer.from_pretrained(folder)
        written.append(quantizer.quantize(folder, approach=int8, calibration=calibration))
    return written + _save_analysis(processor, folder)


def _save_analysis(processor: MMEmoProcessor, folder: str | Path) -> list[Path]:
    from modeling_mmemo.exporters.feature_analysis import can_export, save_analysis

    return [save_analysis(processor, folder)] if can_export(processor) else []


def calibration_inputs(
    processor: MMEmoProcessor, sources: list[str], data_dir: Path, rows_each: int, seed: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of graph inputs from random training rows of each source; see [`read_source`]."""
    from modeling_mmemo.data.sources import read_source

    for source in sources:
        rows = read_source(source, data_dir, allow_unknown_labels=True)
        rows = rows.filter(lambda split: split == "train", input_columns="split")
        rows = rows.shuffle(seed, keep_in_memory=True).select(range(min(rows_each, len(rows))))
        for start in range(0, len(rows), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            given = {
                modality: values
                for modality, part in (("audio", processor.feature_extractor), ("text", processor.tokenizer))
                if part is not None and any(values := batch[modality])
            }
            yield dict(processor(**given, return_tensors="np"))
