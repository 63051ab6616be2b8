"""
Archive jobs: predicts any number of recordings into one folder, on this machine or on a cluster.

Deliberate choices:
- One process, the driver, lists the inputs and writes the output; workers only predict. So workers need no access to
  the output, and every row is written once, whatever happens to them.
- Inputs are listed as the job proceeds, and outcomes are written as they come: memory does not grow with the archive,
  except for 16 bytes of each id.
- A job never starts with options that fail every input: the model and the options are checked first.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmemo.answers import AnswerFormatter
from mmemo.archives.archive_items import ArchiveSource, read_archive
from mmemo.archives.archive_output import ArchiveOutput
from mmemo.archives.engines import Outcomes, run_local, run_processes
from mmemo.archives.job_manifest import JobManifest, model_hash
from mmemo.archives.scorer import Scorer
from mmemo.archives.sections import SectionJoiner, plan_sections
from mmemo.archives.tasks import Outcome, ScoringOptions, Task


try:
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise ImportError("Archives need tqdm and pyarrow: pip install 'mmemo[archives]'.") from error

logger = logging.getLogger(__name__)
ENGINES = ("local", "processes", "ray")


@dataclass(frozen=True)
class ArchiveSummary:
    """
    What a run of an archive job did.

    Args:
        predicted (`int`): Inputs that this run predicted.
        failed (`int`): Inputs that this run could not predict; their rows have an `error`.
        skipped (`int`): Inputs that earlier runs had finished.
        problems (`tuple[str, ...]`): Folders that cannot be read, and pipes in them, one sentence each.
    """

    predicted: int
    failed: int
    skipped: int
    problems: tuple[str, ...]


def score(
    source: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    format: str = "parquet",
    partition_by: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    recursive: bool = True,
    srt: str | Path | None = None,
    retry_failed: bool = False,
    progress: bool = False,
    **options: Any,
) -> ArchiveSummary:
    """
    Predicts the emotions of an archive into a folder, and skips what the folder already contains.

    Args:
        source (`str`, `Path` or a sequence of them):
            Folders, files, globs and URLs of recordings, tables of them, or a dataset of the Hub; see
            [`read_archive`].
        output (`str` or `Path`): The folder, or its URL in a remote storage; see [`ArchiveOutput`] for its content.
        engine (`str`, *optional*, defaults to `"local"`):
            Where to predict: `"local"` in this process, `"processes"` on the cores of this machine, `"ray"` on a Ray
            cluster.
        workers (`int`, *optional*): Number of processes or Ray actors; all cores by default.
        address (`str`, *optional*): Address of the Ray cluster, such as `"auto"`; a local one is started by default.
        format (`str`, *optional*, defaults to `"parquet"`): `"parquet"`, `"json"` (lines) or `"csv"`.
        partition_by (`Sequence[str]`, *optional*): Columns of the source by whose values the output is divided.
        columns, split, recursive, srt (*optional*): See [`read_archive`].
        retry_failed (`bool`, *optional*, defaults to `False`): Whether to predict failed inputs again.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar on standard error.
        options: See [`ScoringOptions`].

    Returns:
        [`ArchiveSummary`]: What this run did.

    Raises:
        ImportError: If a package is missing.
        TypeError: If an option is unknown.
        ValueError: If an option, the source or the model is invalid, the output belongs to another job, or the cluster
            cannot be used.

    Example:

    ```python
    >>> from mmemo.archives import score

    >>> score("calls.csv", "predictions", engine="processes", timeline=True)
    ArchiveSummary(predicted=98213, failed=12, skipped=0, problems=())
    ```
    """
    scoring = ScoringOptions(**options)
    _check_engine(engine, workers, address)
    places = [source] if isinstance(source, (str, Path)) else list(source)
    archive = read_archive(
        list(map(str, places)),
        recursive=recursive,
        columns=columns,
        split=split,
        video=scoring.video,
        srt=None if srt is None else Path(srt),
    )
    for warning in archive.warnings:
        logger.warning(warning)
    run, answers = _load_engine(engine, workers, address, scoring)
    manifest = JobManifest.create(
        scoring,
        answers.labels,
        answers.modalities,
        {name: str(kind) for name, kind in archive.columns.items()},
        format,
        partition_by,
        map(str, places),
        None if srt is None else str(srt),
    )
    with ArchiveOutput.open(output, manifest, retry_failed=retry_failed) as written:
        job = _Job(archive, written, SectionJoiner(answers, scoring), scoring)
        with closing(run(job.tasks())) as outcomes, _progress_bar(archive.count, progress) as bar:
            for outcome in outcomes:
                job.add(outcome)
                bar.update(job.finished - bar.n)
    return ArchiveSummary(job.predicted, job.failed, job.skipped, tuple(archive.problems))


class _Job:
    """
    The tasks of a job, and the output of their outcomes.

    Args:
        archive ([`ArchiveSource`]): The items.
        written ([`ArchiveOutput`]): The output.
        joiner ([`SectionJoiner`]): Joins the sections of long recordings.
        options ([`ScoringOptions`]): How the job predicts.
    """

    def __init__(self, archive: ArchiveSource, written: ArchiveOutput, joiner: SectionJoiner, options: ScoringOptions):
        self._archive, self._written, self._joiner, self._options = archive, written, joiner, options
        self.predicted = self.failed = self.skipped = 0

    @property
    def finished(self) -> int:
        """Number of items that need no more work."""
        return self.predicted + self.failed + self.skipped

    def tasks(self) -> Iterator[Task]:
        """Yields the tasks of all items that the output lacks."""
        for item in self._archive:
            if self._written.is_done(item.id):
                self.skipped += 1
                continue
            attempts = self._written.attempts(item.id) + 1
            for task in plan_sections(item, self._options):
                yield replace(task, attempts=attempts)

    def add(self, outcome: Outcome) -> None:
        """Adds the outcome of a task to the output, once the whole item is predicted."""
        whole = self._joiner.add(outcome)
        if whole is None:
            return
        self._written.add(whole)
        if whole.error is None:
            self.predicted += 1
        else:
            self.failed += 1


def _check_engine(name: str, workers: int | None, address: str | None) -> None:
    """Raises a `ValueError` for an unknown engine, or an option that it does not have."""
    if name not in ENGINES:
        raise ValueError(f"engine={name!r} is unknown; choose one of {list(ENGINES)}.")
    if address is not None and name != "ray":
        raise ValueError(f"address={address!r} is that of a Ray cluster; set engine='ray', or leave it out.")
    if name == "local" and workers not in (None, 1):
        raise ValueError(f"workers={workers} needs engine='processes' or 'ray'; engine='local' is one worker.")


def _load_engine(
    name: str, workers: int | None, address: str | None, options: ScoringOptions
) -> tuple[Callable[[Iterable[Task]], Outcomes], AnswerFormatter]:
    """
    Loads the model, which checks it and the options, and returns the function that runs tasks, and what formats
    scores. Only the local engine keeps the model in this process.
    """
    scorer = Scorer(options)
    if name == "local":
        return partial(run_local, options=options, load=lambda _: scorer), scorer.answers
    if name == "processes":
        return partial(run_processes, options=options, workers=workers), scorer.answers
    from mmemo.archives.ray_engine import run_ray, worker_versions

    fingerprint = partial(worker_versions, partial(model_hash, options.model, options.revision))
    run = partial(run_ray, options=options, workers=workers, address=address, fingerprint=fingerprint)
    return run, scorer.answers


def _progress_bar(total: int | None, is_shown: bool) -> Any:
    """Returns a progress bar on standard error; in a log, a line a minute."""
    interval = 0.5 if sys.stderr.isatty() else 60.0
    return tqdm(total=total, unit=" files", mininterval=interval, maxinterval=interval, disable=not is_shown)
