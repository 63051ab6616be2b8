"""
Compares the latency of mmemo in PyTorch and ONNX with other models, for a clip and a sentence. Linux only.

    python benchmarks/inference.py
    python benchmarks/inference.py path/to/folder --repetitions 50 --threads 1
    python benchmarks/inference.py --exported path/to/exported --profile

Every row computes scores from samples and a sentence, feature extraction included, on the same clips of 3 s. The rows
of a repetition run one after the other, so that other load on the machine affects all of them. Baselines use random
weights; latency does not depend on them. Without `--exported` the embedded model is exported first. For a text without
audio, the whole int8 graph is compared with the PyTorch text encoder alone. `--profile` shows parts of the int8 row
instead.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from functools import partial
from pathlib import Path

from feature_extraction import SAMPLING_RATE, SECONDS, load_clips


BATCH_SIZE = 32
SENTENCE = "I have been waiting for an hour and nobody answers the phone."
# Tokens of the text without audio, without feature extraction.
TOKENS = 13
NUM_LABELS = 7
INT8_FILE = "model_int8.onnx"
EMBEDDED = Path(__file__).parents[1] / "modeling_mmemo" / "default"
# Seconds before each call: the threads of the previous one keep spinning for a while, and would slow it down.
PAUSE = 0.1
# Functions of a list of items that compute the scores and only the model's inputs (optional), and the weights in MB.
Row = namedtuple("Row", ["predict", "features", "size"], defaults=[None, None])


def load_emotion(file_name, exported, threads):
    """Returns the pipeline over a file of weights: the embedded model in PyTorch, or an exported graph."""
    from modeling_mmemo import load_pipeline

    if file_name == "model.safetensors":
        return load_pipeline()
    from modeling_mmemo.exporters import MMEmoOnnxModel

    model = MMEmoOnnxModel.from_pretrained(exported, file_name=file_name, num_threads=threads)
    return load_pipeline(model, processor=str(exported))


def mmemo(file_name, exported, threads):
    emotion = load_emotion(file_name, exported, threads)

    def features(items):
        return emotion.processor(**{key: [item[key] for item in items] for key in items[0]}, return_tensors="pt")

    def predict(items):
        return emotion(items[0]) if len(items) == 1 else emotion(items, batch_size=len(items))

    path = (EMBEDDED if file_name == "model.safetensors" else exported) / file_name
    return Row(predict, features, path.stat().st_size / 1e6)


def without_torch(exported, threads):
    from mmemo import EmotionPredictor

    predictor = EmotionPredictor(exported, INT8_FILE, threads)

    def predict(items):
        return [predictor(**item) for item in items]

    return Row(predict, size=(exported / INT8_FILE).stat().st_size / 1e6)


def two_encoders(exported, threads):
    import torch
    import transformers

    audio_encoder = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config()).eval()
    text_encoder = transformers.BertModel(transformers.BertConfig()).eval()
    classifier = torch.nn.Linear(audio_encoder.config.hidden_size + text_encoder.config.hidden_size, NUM_LABELS)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    tokenizer = transformers.BertTokenizer.from_pretrained(EMBEDDED)

    def features(items):
        clips, texts = ([item[key] for item in items] for key in ("audio", "text"))
        audio = extractor(clips, sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt")
        return audio, tokenizer(texts, padding=True, return_tensors="pt")

    @torch.inference_mode()
    def predict(items):
        audio, text = features(items)
        # The mean needs no masks: all clips have the same length, and so have all texts.
        hidden_states = audio_encoder(**audio).last_hidden_state, text_encoder(**text).last_hidden_state
        return classifier(torch.cat([states.mean(dim=1) for states in hidden_states], dim=1)).softmax(dim=-1)

    return Row(predict, features, megabytes(audio_encoder, text_encoder, classifier))


def whisper(exported, threads):
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

    size = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    model = WhisperForAudioClassification(WhisperConfig(**size, num_mel_bins=80, num_labels=NUM_LABELS)).eval()
    extractor = WhisperFeatureExtractor()

    def features(items):
        return extractor([item["audio"] for item in items], sampling_rate=SAMPLING_RATE, return_tensors="pt")

    @torch.inference_mode()
    def predict(items):
        return model(**features(items)).logits.softmax(dim=-1)

    return Row(predict, features, megabytes(model))


def librosa_loop(exported, threads):
    import librosa
    import numpy as np

    weights = np.random.default_rng(0).standard_normal((2 * (128 + 13), NUM_LABELS), np.float32)

    def features(items):
        vectors = []
        for item in items:
            mel = librosa.feature.melspectrogram(y=item["audio"], sr=SAMPLING_RATE, n_mels=128)
            both = np.concatenate([mel, librosa.feature.mfcc(y=item["audio"], sr=SAMPLING_RATE, n_mfcc=13)])
            vectors.append(np.concatenate([both.mean(axis=1), both.std(axis=1)]))
        return np.stack(vectors)

    return Row(lambda items: features(items) @ weights, features)


def megabytes(*modules):
    return sum(4 * parameter.numel() for module in modules for parameter in module.parameters()) / 1e6


TORCH, INT8 = "mmemo, PyTorch fp32", "mmemo, ONNX int8"
ROWS = {
    TORCH: partial(mmemo, "model.safetensors"),
    "mmemo, ONNX fp32": partial(mmemo, "model.onnx"),
    INT8: partial(mmemo, INT8_FILE),
    "the same with EmotionPredictor": without_torch,
    "wav2vec2-base and BERT-base": two_encoders,
    "Whisper-base encoder, 30 s, no text": whisper,
    "loop over librosa.feature, no text": librosa_loop,
}
IMPORTS = "import modeling_mmemo"


def export(folder):
    """Exports the embedded model to a folder."""
    from modeling_mmemo import load_pipeline
    from modeling_mmemo.exporters.export_command import export_graphs

    emotion = load_pipeline()
    export_graphs(emotion.model, emotion.processor, folder)
    return folder


def time_calls(calls, batches):
    """Returns the milliseconds of each call by name, for all batches except the first, which is a warm-up."""
    timings = {name: [] for name in calls}
    for batch in batches:
        for name, call in calls.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            call(batch)
            timings[name].append(1000 * (time.perf_counter() - start))
    return {name: values[1:] for name, values in timings.items()}


def print_peak(name, exported, threads):
    """Prints the peak memory of this process in MiB after predictions of one row."""
    import numpy as np

    if name == IMPORTS:
        import modeling_mmemo  # noqa: F401
    else:
        # Noise instead of clips: loading those imports packages that a row may not need.
        clip = np.random.default_rng(0).uniform(-0.1, 0.1, SECONDS * SAMPLING_RATE).astype(np.float32)
        predict = ROWS[name](exported, threads).predict
        for _ in range(3):
            predict([{"audio": clip, "text": SENTENCE}])
    # `ru_maxrss` would include the memory of the parent process.
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)


def peaks_of(exported, threads):
    """Returns the peak memory in MiB of a new process for each row, and for the import alone."""
    command = [sys.executable, __file__, "--exported", exported, "--threads", str(threads), "--memory-of"]
    return {
        name: int(subprocess.run([*command, name], stdout=subprocess.PIPE, check=True, text=True).stdout)
        for name in (*ROWS, IMPORTS)
    }


def text_calls(exported, threads):
    """Returns functions that run the int8 graph and the PyTorch text encoder on the same `TOKENS` tokens."""
    import torch

    def inputs_of(emotion):
        ids = emotion.processor(text=SENTENCE, return_tensors="pt")["input_ids"][:, :TOKENS]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    quantized = load_emotion(INT8_FILE, exported, threads)
    emotion = load_emotion("model.safetensors", exported, threads)
    graph, text_tower = quantized.model.model, emotion.model.mmemo.text_tower
    arrays = {name: values.numpy() for name, values in inputs_of(quantized).items()}
    inputs = inputs_of(emotion)

    @torch.inference_mode()
    def encode(_):
        return text_tower(**inputs, output_hidden_states=True)

    return {"text alone, int8": lambda _: graph.predict(arrays), "text tower alone, PyTorch": encode}


def print_setting(args):
    import torch

    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    cpu = {name.strip(): value.strip() for name, _, value in lines}
    vnni = " and ".join(sorted({"avx512_vnni", "avx_vnni"} & set(cpu.get("flags", "").split()))) or "no VNNI"
    print(f"{cpu.get('model name', 'unnamed CPU')} with {vnni}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"torch with {torch.get_num_threads()} threads, ONNX Runtime with {args.threads}")
    batch = f"batch {args.batch_size}: {args.batch_repetitions}"
    print(f"clips of {SECONDS} s, medians of {args.repetitions} repetitions; {batch}\n")


def compare(args, exported):
    """Times all rows at batch size 1 and in a batch, and prints the table."""
    peaks = peaks_of(exported, args.threads)
    items = [{"audio": clip, "text": SENTENCE} for clip in load_clips(args.folder, args.batch_size)]
    rows = {name: build(exported, args.threads) for name, build in ROWS.items()}
    calls = {(name, "predict"): row.predict for name, row in rows.items()}
    calls |= {(name, "features"): row.features for name, row in rows.items() if row.features is not None}
    for key in ("text", "audio"):
        calls[key, "only"] = lambda batch, key=key: rows[INT8].predict([{key: batch[0][key]}])
    of_text = text_calls(exported, args.threads)
    calls |= {(name, "tokens"): call for name, call in of_text.items()}
    single = time_calls(calls, [[items[n % len(items)]] for n in range(args.repetitions + 1)])
    batches = [items[:2], *[items] * args.batch_repetitions]
    batched = time_calls({name: row.predict for name, row in rows.items()}, batches)
    print_table(rows, single, batched, peaks, args.batch_size)

    p50 = {name: statistics.median(values) for name, values in single.items()}
    fastest = min(single[TORCH, "predict"]) / min(single[INT8, "predict"])
    print(f"{INT8}: {p50['text', 'only']:.1f} ms for text only, {p50['audio', 'only']:.1f} ms for audio only")
    tokens = {name: min(single[name, "tokens"]) for name in of_text}
    lines = (f"{name}: {p50[name, 'tokens']:.2f} ms, fastest {fastest_ms:.2f}" for name, fastest_ms in tokens.items())
    int8_ms, torch_ms = tokens.values()
    print(f"{TOKENS} tokens, {'; '.join(lines)}; ratio of the fastest {torch_ms / int8_ms:.2f}")
    ratio = p50[TORCH, "predict"] / p50[INT8, "predict"]
    print(f"PyTorch fp32 / ONNX int8: {ratio:.2f}, of the fastest calls {fastest:.2f}")
    print(f"memory is at batch size 1; {IMPORTS} alone takes {peaks[IMPORTS]} MiB")


def print_table(rows, single, batched, peaks, batch_size):
    import numpy as np

    columns = {"p50": "ms", "p95": "ms", "fastest": "ms", "x": "", "RTF": "", "features": "ms"}
    columns |= {f"batch {batch_size}": "clips/s", "memory": "MiB", "size": "MB"}
    for line in (columns.keys(), columns.values()):
        print(f"{'':<36}" + "".join(f"{cell:>9}" for cell in line))
    int8 = statistics.median(single[INT8, "predict"])
    for name, row in rows.items():
        values = single[name, "predict"]
        median = statistics.median(values)
        cells = [f"{median:.1f}", f"{np.percentile(values, 95):.1f}", f"{min(values):.1f}", f"{median / int8:.2f}"]
        features = single.get((name, "features"))
        cells += [f"{median / 1000 / SECONDS:.4f}", "-" if features is None else f"{statistics.median(features):.2f}"]
        cells += [f"{1000 * batch_size / statistics.median(batched[name]):.1f}", f"{peaks[name]}"]
        cells += ["-" if row.size is None else f"{row.size:.1f}"]
        print(f"{name:<36}" + "".join(f"{cell:>9}" for cell in cells))


def profile(args, exported):
    """Times the steps of the int8 model without torch, and the operators of its graph."""
    from mmemo import EmotionPredictor

    predictor = EmotionPredictor(exported, INT8_FILE, args.threads)
    items = [{"audio": clip, "text": SENTENCE} for clip in load_clips(args.folder, args.repetitions + 1)]
    prepared = [predictor.prepare(item) for item in items]
    steps = {
        "prepare": lambda n: predictor.prepare(items[n]),
        "run: features and graph": lambda n: predictor.run([prepared[n]]),
        "whole call": lambda n: predictor(**items[n]),
    }
    timings = time_calls(steps, range(len(items)))
    operators = profile_graph(exported, items[0], args.threads, args.repetitions)

    print("the predictor, ms")
    for name, values in timings.items():
        print(f"  {name:<36}{statistics.median(values):8.2f}")
    print(f"\nthe graph, {sum(map(sum, operators.values())):.2f} ms")
    for name, values in sorted(operators.items(), key=lambda pair: -sum(pair[1])):
        print(f"  {name:<36}{sum(values):8.2f}  in {len(values)} nodes")


def profile_graph(exported, item, threads, repetitions):
    """Returns the median milliseconds of each node of the int8 graph, by operator."""
    import onnxruntime

    emotion = load_emotion(INT8_FILE, exported, threads)
    graph = emotion.model.model
    inputs = graph.complete(emotion.processor(**item, return_tensors="np"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = threads, True
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph.path, options, providers=["CPUExecutionProvider"])
        for _ in range(repetitions):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes, operators = {}, {}
    for event in events:
        # The time of a conditional node is that of its nodes.
        if event["name"].endswith("_kernel_time") and event["args"]["op_name"] != "If":
            nodes.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1000)
    for (operator, _), values in nodes.items():
        operators.setdefault(operator, []).append(statistics.median(values))
    return operators


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "examples" / "audio")
    parser.add_argument("--exported", type=Path, help="output folder of mmemo export for the embedded model")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE)
    parser.add_argument("--batch_repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--profile", action="store_true", help="show the parts of the int8 row")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    # For NumPy, and for torch in the processes of --memory-of; both read them when they are imported.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)
    if args.memory_of:
        return print_peak(args.memory_of, args.exported, args.threads)
    import torch

    torch.set_num_threads(args.threads)
    print_setting(args)
    with tempfile.TemporaryDirectory() as temporary:
        exported = args.exported or export(Path(temporary))
        return (profile if args.profile else compare)(args, exported)


if __name__ == "__main__":
    main()
