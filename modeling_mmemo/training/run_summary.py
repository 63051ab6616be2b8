"""What a training run prints at its end: scores, held-out rows, calibration, and the commands that follow."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from modeling_mmemo.data.corpora import CORPORA
from modeling_mmemo.training.rows import EmotionRows
from modeling_mmemo.training.training_arguments import DataArguments


# Number of speakers that a line names.
NAMED = 12


def run_summary(
    folder: Path,
    args: DataArguments,
    dev: Mapping[str, EmotionRows],
    tested: Sequence[str],
    metrics: Mapping[str, float],
    calibration: Mapping[str, str],
    license: str | None = None,
) -> str:
    """
    Describes a finished run.

    Args:
        folder (`Path`): The output folder.
        args (`DataArguments`): The sources of the rows.
        dev (`Mapping[str, EmotionRows]`): The development rows by name.
        tested (`Sequence[str]`): The sources that have test rows, which were not used.
        metrics (`Mapping[str, float]`): The final scores, `eval_audio_wa` and so on.
        calibration (`Mapping[str, str]`): What was fitted, or why not, for each set of modalities.
        license (`str`, *optional*): Licence of the weights that the run started from, which the model inherits.
    """
    adapter = f", its adapter to {folder / 'adapter'}" if (folder / "adapter").is_dir() else ""
    parts = [f"Saved the model to {folder}{adapter}."]
    if dev:
        scores = [
            f"  {name}: WA {100 * metrics[f'eval_{name}_wa']:.1f}, UAR {100 * metrics[f'eval_{name}_uar']:.1f} "
            f"({len(rows)} rows)"
            for name, rows in dev.items()
        ]
        fitted = [f"  {presence}: {text}" for presence, text in calibration.items()]
        parts += ["Development scores:", *scores, "Held out for development:", *_held_out(dev)]
        parts += ["Calibration on the development rows:", *fitted]
    else:
        parts.append(
            "There were no development rows: nothing was scored, and the scores of the model are its uncalibrated "
            "softmax. --dev_share 0.1 sets speakers aside."
        )
    return "\n".join(
        [*parts, "Next:", *(f"  {command}" for command in _next_commands(folder, args, dev, tested, license))]
    )


def _held_out(dev: Mapping[str, EmotionRows]) -> list[str]:
    """Returns a line for each corpus with its development rows and their speakers."""
    rows = next(iter(dev.values())).rows
    corpora, speakers = list(rows["corpus"]), list(rows["speaker"])
    indices = {index for part in dev.values() for index in part.indices}
    lines = []
    for corpus in dict.fromkeys(corpora[index] for index in sorted(indices)):
        chosen = [index for index in sorted(indices) if corpora[index] == corpus]
        # A speaker is stored with the corpus before it.
        known = sorted({str(speakers[index]).removeprefix(f"{corpus}-") for index in chosen if speakers[index]})
        names = ", ".join(known[:NAMED]) + (f" and {len(known) - NAMED} more" if len(known) > NAMED else "")
        unknown = sum(speakers[index] is None for index in chosen)
        who = [f"of {len(known)} speaker(s): {names}"] if known else []
        who += [f"{unknown} without a known speaker"] if unknown else []
        lines.append(f"  {corpus}: {len(chosen)} of {corpora.count(corpus)} rows, {'; '.join(who)}")
    return lines


def _next_commands(
    folder: Path, args: DataArguments, dev: Mapping[str, EmotionRows], tested: Sequence[str], license: str | None
) -> list[str]:
    """Returns the commands that evaluate, describe, use and share the model."""
    results = folder / "results"
    evaluated = {"corpora": tested} if tested else {"corpora": args.corpora, "split": ["dev"]} if dev else None
    evaluate = ["python", "eval.py", "--model", str(folder)]
    if evaluated is None:
        evaluate += ["--corpora", "HELD_OUT_TABLE"]
    else:
        if not tested and args.dev_share > 0:
            evaluated["dev_share"] = [str(args.dev_share)]
        evaluated |= _reading_options(args, evaluated["corpora"])
        for name, values in evaluated.items():
            evaluate += [f"--{name}", *values]
    evaluate += ["--output_dir", str(results)]
    licensed = [] if license is None else ["--license", license]
    return [
        shlex.join(evaluate),
        shlex.join(["mmemo", "card", str(folder), "--results", str(results), *licensed]),
        f'pipeline("multimodal-emotion", model={str(folder)!r})    # from modeling_mmemo import pipeline',
        shlex.join(["mmemo", "push", str(folder), "--repo", "OWNER/NAME"]),
    ]


def _reading_options(args: DataArguments, sources: Sequence[str]) -> dict[str, list[str]]:
    """Returns the options other than their defaults with which the sources were read, for a command line."""
    own = any(source not in CORPORA for source in sources)
    options = {
        "data_dir": [args.data_dir] if any(source in CORPORA for source in sources) else [],
        "columns": args.columns if own else [],
        "encoding": [args.encoding] if own and args.encoding else [],
        "label_map": args.label_map,
        "allow_unknown_labels": ["true"] if args.allow_unknown_labels else [],
    }
    return {name: values for name, values in options.items() if values}
