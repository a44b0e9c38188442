import re

import pytest

from stvid.deploy.segments import UNKNOWN, Segment
from stvid.deploy.subtitles import subtitles

SEGMENTS = [
    Segment(start=0.0, end=2.5, label="idle", probability=0.9),
    Segment(start=2.5, end=3661.0625, label="run <fast> & far", probability=0.934),
    Segment(start=3661.0625, end=3700.0, label=UNKNOWN, probability=0.3),
    Segment(start=3700.0, end=3701.0, label="jump", probability=1.0),
]


def test_subrip_has_a_block_for_each_segment_that_is_known_and_no_background():
    text = subtitles(SEGMENTS, kind="srt", background=["idle"])
    assert text == (
        "1\n00:00:02,500 --> 01:01:01,062\nrun <fast> & far 93%\n\n2\n01:01:40,000 --> 01:01:41,000\njump 100%\n"
    )


def test_webvtt_has_its_header_and_escapes_markup():
    text = subtitles(SEGMENTS, kind="vtt")
    header, *blocks = text.split("\n\n")
    assert header == "WEBVTT"
    assert blocks[1] == "2\n00:00:02.500 --> 01:01:01.062\nrun &lt;fast&gt; &amp; far 93%"


def test_times_are_those_that_players_show():
    text = subtitles(SEGMENTS[3:], kind="srt", offset=3699.25)
    assert "00:00:00,750 --> 00:00:01,750" in text


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_a_class_name_cannot_break_a_block(kind):
    hostile = Segment(start=0, end=1, label="a\n\n2\n00:00 --> 01:00\nb", probability=0.5)
    assert len(re.findall(r"^\d\d:\d\d:.* -->", subtitles([hostile], kind=kind), re.M)) == 1
