"""
Times emotions from a clip and its words: mmemo in PyTorch and ONNX against what one would write otherwise. On Linux.

    python benchmarks/inference.py
    python benchmarks/inference.py path/to/folder --repetitions 50 --threads 1
    python benchmarks/inference.py --exported path/to/exported --profile

Every row takes samples and a sentence and gives scores, feature extraction included, on the same clips of 3 s. The
rows of a repetition run one after the other, so that other load on the machine falls on all of them. Weights of others
are random: what they cost does not depend on their values. Without `--exported` the embedded model is exported first.
`--profile` shows where the time of the int8 row goes instead.
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


BATCH = 32
BATCH_REPETITIONS = 3
SENTENCE = "I have been waiting for an hour and nobody answers the phone."
NUM_LABELS = 7
INT8_FILE, TORCH_INT8_FILE = "model_int8.onnx", "model_int8.safetensors"
EMBEDDED = Path(__file__).parents[1] / "modeling_mmemo" / "default"
# Before each call, seconds: the threads of the one before spin on for a while, and would be in its way.
PAUSE = 0.1
# Functions of a list of items, to the scores and to the model's inputs alone, and the weights' size in MB.
Row = namedtuple("Row", ["answer", "features", "size"], defaults=[None])


def load_emotion(file_name, exported, threads):
    from modeling_mmemo import load_pipeline

    if file_name == "model.safetensors":
        return load_pipeline()
    if file_name == TORCH_INT8_FILE:
        return load_pipeline(exported, backend="torch-int8")
    from modeling_mmemo.exporters import MMEmoOnnxModel

    model = MMEmoOnnxModel.from_pretrained(exported, file_name=file_name, num_threads=threads)
    return load_pipeline(model, processor=str(exported))


def mmemo(file_name, exported, threads):
    emotion = load_emotion(file_name, exported, threads)

    def features(items):
        return emotion.processor(**{key: [item[key] for item in items] for key in items[0]}, return_tensors="pt")

    def answer(items):
        return emotion(items[0]) if len(items) == 1 else emotion(items, batch_size=len(items))

    path = (EMBEDDED if file_name == "model.safetensors" else exported) / file_name
    return Row(answer, features, path.stat().st_size / 1e6)


def without_torch(exported, threads):
    from mmemo import EmotionPredictor

    predict = EmotionPredictor(exported, INT8_FILE, threads)

    def answer(items):
        return [predict(item.get("audio"), item.get("text")) for item in items]

    def features(items):
        for item in items:
            predict._hear(item["audio"], None), predict._read(item["text"])

    return Row(answer, features, (exported / INT8_FILE).stat().st_size / 1e6)


def two_towers(exported, threads):
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
    def answer(items):
        audio, text = features(items)
        # The mean needs no masks: the clips are of one length, and so are the texts.
        hidden_states = audio_encoder(**audio).last_hidden_state, text_encoder(**text).last_hidden_state
        return classifier(torch.cat([states.mean(dim=1) for states in hidden_states], dim=1)).softmax(dim=-1)

    return Row(answer, features, megabytes(audio_encoder, text_encoder, classifier))


def whisper(exported, threads):
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

    size = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    model = WhisperForAudioClassification(WhisperConfig(**size, num_mel_bins=80, num_labels=NUM_LABELS)).eval()
    extractor = WhisperFeatureExtractor()

    def features(items):
        return extractor([item["audio"] for item in items], sampling_rate=SAMPLING_RATE, return_tensors="pt")

    @torch.inference_mode()
    def answer(items):
        return model(**features(items)).logits.softmax(dim=-1)

    return Row(answer, features, megabytes(model))


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
    "mmemo, PyTorch int8": partial(mmemo, TORCH_INT8_FILE),
    "mmemo, ONNX fp32": partial(mmemo, "model.onnx"),
    INT8: partial(mmemo, INT8_FILE),
    "the same by EmotionPredictor": without_torch,
    "wav2vec2-base and BERT-base": two_towers,
    "Whisper-base encoder, 30 s, no text": whisper,
    "loop over librosa.feature, no text": librosa_loop,
}
IMPORTS = "import modeling_mmemo"


def export(folder):
    from modeling_mmemo import load_pipeline
    from modeling_mmemo.exporters import MMEmoQuantizer, export_features, export_onnx, save_torch_int8

    emotion = load_pipeline()
    export_onnx(emotion.model, emotion.processor, folder)
    MMEmoQuantizer.from_pretrained(folder).quantize(folder)
    export_features(emotion.processor, folder)
    save_torch_int8(emotion.model, emotion.processor, folder)
    return folder


def time_calls(calls, batches):
    """Returns by name the milliseconds of the calls on each batch but the first, which warms up."""
    timings = {name: [] for name in calls}
    for batch in batches:
        for name, call in calls.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            call(batch)
            timings[name].append(1000 * (time.perf_counter() - start))
    return {name: values[1:] for name, values in timings.items()}


def print_peak(name, exported, threads):
    import numpy as np

    if name == IMPORTS:
        import modeling_mmemo  # noqa: F401
    else:
        # Noise in place of clips: to load those imports what a row may do without.
        clip = np.random.default_rng(0).uniform(-0.1, 0.1, SECONDS * SAMPLING_RATE).astype(np.float32)
        answer = ROWS[name](exported, threads).answer
        for _ in range(3):
            answer([{"audio": clip, "text": SENTENCE}])
    # `ru_maxrss` would start at what the process held that started this one.
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)


def print_setting(args):
    import torch

    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    cpu = {name.strip(): value.strip() for name, _, value in lines}
    vnni = " and ".join(sorted({"avx512_vnni", "avx_vnni"} & set(cpu.get("flags", "").split()))) or "no VNNI"
    print(f"{cpu.get('model name', 'unnamed CPU')} with {vnni}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"torch with {torch.get_num_threads()} threads, ONNX Runtime with {args.threads}")
    print(f"clips of {SECONDS} s, medians of {args.repetitions} repetitions; batch {BATCH}: {BATCH_REPETITIONS}\n")


def compare(args, exported):
    command = [sys.executable, __file__, "--exported", exported, "--threads", str(args.threads), "--memory-of"]
    peaks = {
        name: int(subprocess.run([*command, name], stdout=subprocess.PIPE, check=True, text=True).stdout)
        for name in (*ROWS, IMPORTS)
    }
    items = [{"audio": clip, "text": SENTENCE} for clip in load_clips(args.folder)[:BATCH]]
    rows = {name: build(exported, args.threads) for name, build in ROWS.items()}
    calls = {(name, part): getattr(row, part) for name, row in rows.items() for part in ("answer", "features")}
    for key in ("text", "audio"):
        calls[key, "alone"] = lambda batch, key=key: rows[INT8].answer([{key: batch[0][key]}])
    single = time_calls(calls, [[items[n % BATCH]] for n in range(args.repetitions + 1)])
    batched = time_calls({name: row.answer for name, row in rows.items()}, [items[:2], *[items] * BATCH_REPETITIONS])

    p50 = {name: statistics.median(values) for name, values in single.items()}
    int8 = p50[INT8, "answer"]
    columns = {"p50": "ms", "p95": "ms", "fastest": "ms", "x": "", "RTF": "", "features": "ms"}
    columns |= {f"batch {BATCH}": "clips/s", "memory": "MiB", "size": "MB"}
    for line in (columns.keys(), columns.values()):
        print(f"{'':<36}" + "".join(f"{cell:>9}" for cell in line))
    for name, row in rows.items():
        values, median = single[name, "answer"], p50[name, "answer"]
        p95 = statistics.quantiles(values, n=20, method="inclusive")[18]
        cells = [f"{median:.1f}", f"{p95:.1f}", f"{min(values):.1f}", f"{median / int8:.2f}"]
        cells += [f"{median / 1000 / SECONDS:.4f}", f"{p50[name, 'features']:.2f}"]
        cells += [f"{1000 * BATCH / statistics.median(batched[name]):.1f}", f"{peaks[name]}"]
        cells += ["-" if row.size is None else f"{row.size:.1f}"]
        print(f"{name:<36}" + "".join(f"{cell:>9}" for cell in cells))
    fastest = min(single[TORCH, "answer"]) / min(single[INT8, "answer"])
    print(f"{INT8}: {p50['text', 'alone']:.1f} ms for text alone, {p50['audio', 'alone']:.1f} ms for audio alone")
    print(f"PyTorch fp32 / ONNX int8: {p50[TORCH, 'answer'] / int8:.2f}, of the fastest calls {fastest:.2f}")
    print(f"memory is at batch 1; {IMPORTS} alone takes {peaks[IMPORTS]} MiB")


def profile(args, exported):
    import onnxruntime

    emotion = load_emotion(INT8_FILE, exported, args.threads)
    items = [{"audio": clip, "text": SENTENCE} for clip in load_clips(args.folder)[: args.repetitions + 1]]
    steps = {
        "preprocess": emotion.preprocess,
        "features": lambda prepared: emotion._collate([prepared]),
        "graph": emotion.forward,
        "postprocess": emotion.postprocess,
    }
    timings = {name: [] for name in steps}
    for value in items:
        for name, step in steps.items():
            start = time.perf_counter()
            value = step(value)
            timings[name].append(1000 * (time.perf_counter() - start))

    graph = emotion.model.model
    inputs = graph.complete(emotion.processor(**items[0], return_tensors="np"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = args.threads, True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph.path, options, providers=["CPUExecutionProvider"])
        for _ in range(args.repetitions):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes, operators = {}, {}
    for event in events:
        if event["name"].endswith("_kernel_time"):
            nodes.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1000)
    for (operator, _), values in nodes.items():
        operators.setdefault(operator, []).append(statistics.median(values))

    print("the pipeline, ms")
    for name, values in timings.items():
        print(f"  {name:<36}{statistics.median(values[1:]):8.2f}")
    print(f"\nthe graph, {sum(map(sum, operators.values())):.2f} ms")
    for name, values in sorted(operators.items(), key=lambda pair: -sum(pair[1]))[:10]:
        print(f"  {name:<36}{sum(values):8.2f}  in {len(values)} nodes")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "examples" / "audio")
    parser.add_argument("--exported", type=Path, help="the embedded model exported, to onnx and torch-int8")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--profile", action="store_true", help="show where the time of the int8 row goes")
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
