"""What a SOURCE of `stvid stream` stands for, and which mistakes are found before it is opened."""

import pytest

from stvid.errors import InputError
from stvid.video.sources import check_source, kind_of, size_of, without_password


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("0", "camera"),
        ("12", "camera"),
        ("-", "stdin"),
        ("./0", "file"),
        ("walk.mp4", "file"),
        ("C:/walk.mp4", "file"),
        ("12:30.avi", "file"),
        ("rtsp://host/stream", "url"),
        ("HTTPS://me:secret@[::1]:8080/a?b=c", "url"),
        ("udp://:1234", "url"),
    ],
)
def test_a_source_is_a_camera_a_url_a_file_or_stdin(source, kind):
    assert kind_of(source) == kind


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("htp://host/x", "did you mean 'http'?"),
        ("file:///etc/passwd", "file is no stream"),
        ("concat://a|b", "concat is no stream"),
        ("http:///x", "names no host"),
        ("rtsp://[::1", "names no host"),
    ],
)
def test_other_urls_are_refused(source, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        kind_of(source)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://me:se:cr@et@host/x", "rtsp://me:***@host/x"),
        ("rtsp://:secret@host", "rtsp://:***@host"),
        ("http://host/a:b@c", "http://host/a:b@c"),
        ("http://me@host/x", "http://me@host/x"),
    ],
)
def test_passwords_are_not_shown(url, shown):
    assert without_password(url) == shown


def test_sizes_are_width_x_height():
    assert size_of("640x480") == (480, 640)
    for text in ("640", "640x", "0x480", "640x99999", "-1x5", "６40x480"):
        with pytest.raises(InputError, match="WIDTHxHEIGHT"):
            size_of(text)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("/nowhere.mp4", {}, "/nowhere.mp4 does not exist"),
        ("-", {}, "add --size WxH --fps F"),
        ("-", {"size": "4x4"}, "add --fps F"),
        ("-", {"size": "4", "fps": 5.0}, "WIDTHxHEIGHT"),
        ("-", {"size": "4x4", "fps": 0.0}, "--fps (=0)"),
        ("-", {"size": "4x4", "fps": float("nan")}, "--fps (=nan)"),
        ("http://host", {"size": "4x4"}, "states its size"),
        ("/", {"fps": 5.0}, "states its rate"),
        ("0", {"realtime": True}, "own pace"),
        ("ftp://host", {"fps": -1.0}, "ftp is no stream"),
    ],
)
def test_mistakes_are_found_before_a_source_is_opened(source, options, message):
    mistakes = check_source(source, **{"size": None, "fps": None, "realtime": False, **options})
    assert len(mistakes) == 1
    assert message in mistakes[0]


def test_options_that_fit_are_accepted():
    assert check_source("-", size="640x480", fps=25.0, realtime=True) == []
    assert check_source("0", size="640x480", fps=25.0, realtime=False) == []
    assert check_source("rtsp://host", size=None, fps=25.0, realtime=False) == []
