"""Text files in other encodings than UTF-8."""

import sys

import pytest

from mmemo.words.decoding import decode_text, read_text_file


def srt(*lines):
    return "".join(
        f"{number}\r\n00:00:0{number},000 --> 00:00:0{number},500\r\n{line}\r\n\r\n"
        for number, line in enumerate(lines)
    )


ENGLISH = srt("I have been waiting for an hour!")
FRENCH = srt("Je vous ai attendu pendant une heure, c'était très désagréable.", "À bientôt, mon ami.")
GERMAN = srt("Schön", "Grüße an Jürgen!")
CHINESE = srt("你好", "我已经等了一个小时了。")


@pytest.mark.parametrize("text", [ENGLISH, FRENCH, CHINESE])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_unicode_is_read_with_and_without_a_mark(text, encoding, caplog):
    assert decode_text(text.encode(encoding)) == text == decode_text(bytearray(text.encode(encoding)))
    assert decode_text(("\ufeff" + text).encode("utf-16-be")) == text
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (FRENCH, "cp1252"),
        (GERMAN, "cp1252"),
        (srt("It’s “fine” – really…"), "cp1252"),  # noqa: RUF001
        (CHINESE, "gb18030"),
        (srt("OK，没问题。", "Bye bye!"), "gb18030"),  # noqa: RUF001
        (srt("我已經等了一個小時了。", "請問您什麼時候可以來？"), "big5"),  # noqa: RUF001
        (srt("もう一時間も待っています。", "とても怒っています。"), "cp932"),
        (srt("한 시간 동안 기다렸어요.", "정말 화가 나요."), "cp949"),
        (srt("Я жду уже целый час! Это очень плохо."), "cp1251"),
        (srt("Czekam już godzinę! Źle się czuję, proszę pomóżcie."), "cp1250"),
    ],
)
def test_legacy_encodings_are_detected_with_a_warning(text, encoding, tmp_path, caplog):
    path = tmp_path / "call.srt"
    path.write_bytes(text.encode(encoding))
    assert read_text_file(path) == text == read_text_file(str(path))
    assert f"call.srt is not UTF-8 and was decoded as {encoding}, which is a guess" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe1", "call.srt is not UTF-16-LE, which its first bytes indicate .truncated data at byte 0"),
        (b"1\x002", "call.srt is not UTF-16-LE"),
        (bytes(range(128, 256)) * 2, "call.srt is not UTF-8 .* at byte 0.*could not be detected; .*iconv"),
    ],
)
def test_text_in_no_encoding_raises(data, message):
    with pytest.raises(ValueError, match=message):
        decode_text(data, "call.srt")


def test_missing_files_and_packages_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Cannot read .*call\.srt: No such file"):
        read_text_file(tmp_path / "call.srt")
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)
    with pytest.raises(ValueError, match="pip install charset-normalizer"):
        decode_text(FRENCH.encode("cp1252"))
    assert decode_text(FRENCH.encode("utf-16")) == FRENCH
