"""Signals that end a job, while libsndfile reads from Python."""

import io
import os
import signal
import time

import pytest
import soundfile

from mmemo.archives.archive_job import ArchiveSummary
from mmemo.archives.commands import predict_into_folder
from mmemo.archives.interrupts import outside_callbacks


class Ended(BaseException):
    """Raised by a signal."""


@pytest.fixture
def ending():
    """Handles SIGUSR1 by raising `Ended`."""

    def end(number, frame):
        raise Ended

    handler = signal.signal(signal.SIGUSR1, outside_callbacks(end))
    yield
    signal.signal(signal.SIGUSR1, handler)


def test_a_signal_ends_the_job_at_once(ending):
    with pytest.raises(Ended):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(2)


@pytest.mark.parametrize("method", ["readinto", "seek", "tell"])
def test_a_signal_within_a_callback_waits_for_its_end(ending, example_audio, method, capfd):
    expected, _ = soundfile.read(example_audio)
    found = []

    class Stream(io.BytesIO):
        sent = 0

    def send(self, *arguments):
        if not self.sent:
            self.sent += 1
            os.kill(os.getpid(), signal.SIGUSR1)
        return getattr(io.BytesIO, method)(self, *arguments)

    setattr(Stream, method, send)
    stream = Stream(example_audio.read_bytes())
    with pytest.raises(Ended):
        with soundfile.SoundFile(stream) as file:
            # It may be raised here already, between two callbacks.
            found.append(file.read())
        time.sleep(2)

    assert stream.sent
    assert all((samples == expected).all() for samples in found)
    assert "SoundFile" not in capfd.readouterr().err


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_a_job_in_the_background_of_a_shell_keeps_ignoring_ctrl_c(handler, monkeypatch, tmp_path):
    during = []

    def score(*arguments, **options):
        during.append(signal.getsignal(signal.SIGINT))
        return ArchiveSummary(0, 0, 0, ())

    monkeypatch.setattr("mmemo.archives.archive_job.score", score)
    before = signal.signal(signal.SIGINT, handler)
    try:
        predict_into_folder([], str(tmp_path), {})
        after = signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)

    assert after == handler
    assert (during == [signal.SIG_IGN]) == (handler == signal.SIG_IGN)
