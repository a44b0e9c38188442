"""The page of `stvid demo` as a browser shows it, on a model that knows levels of grey; and the copies it plays."""

import asyncio
import contextlib
import dataclasses
import json
import re
import tempfile
import threading
import urllib.parse

import av
import numpy as np
import pytest
import torch
from chromium import CONTRAST, DARK, FAKE_CAMERA, LIGHT, NO_MOTION, open_browser, press, show_as, wait
from conftest import break_half_way
from loopback import mpegts
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from starlette.testclient import TestClient

from stvid.commands import demo
from stvid.deploy.segments import Segment
from stvid.deploy.subtitles import subtitles
from stvid.models.base import VideoModel
from stvid.recognizer import Recognizer
from stvid.run.checkpoint import load_checkpoint
from stvid.serve.demo import _TemporaryFile, create_demo
from stvid.serve.options import MIB, ServeOptions, address_text, bind_port
from stvid.serve.server import Server
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.writer import write_video

FPS, K = 12, 12
HTML, LONG, REVERSED = "<img src=x onerror=\"document.title='hacked'\">", "bright " * 28, "\u202egnp.exe"
NAMES = (HTML, *(f"grey {i}" for i in range(1, K - 2)), REVERSED, LONG)
FILE = "<b onmouseover=alert(1)>&amp;\u202e.mp4"
THRESHOLD = 0.9


class Brightness(VideoModel):
    """Class i is the grey level i / (K - 1) of a clip's last frame; between two levels no class is sure.

    Attributes:
        gate: the model answers only while it is set.
    """

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, clips_BCTHW, lengths_B=None):
        self.gate.wait()
        level_B = (clips_BCTHW[:, 0, -1] * 0.229 + 0.485).mean(dim=(1, 2))
        return -800 * (level_B[:, None] - torch.linspace(0, 1, K, device=clips_BCTHW.device)) ** 2


def video_of(path, *levels, seconds=2):
    """Grey pictures, one level after the other."""
    pictures = [np.full((48, 64, 3), round(255 * level), np.uint8) for level in levels]
    write_video(path, np.stack(pictures).repeat(seconds * FPS, axis=0), fps=FPS)
    return path


def avi_of(path, *, num_frames=12):
    """MPEG-4 Part 2 in AVI, which browsers do not play: grey pictures, each brighter than the one before."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            picture = np.full((48, 64, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@contextlib.contextmanager
def serving(app):
    """Yields the address of an application that answers in a thread."""
    started = threading.Event()
    server, listener = Server(app, on_start=started.set), bind_port("127.0.0.1", 0)
    listener.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert started.wait(60)
    yield address_text(listener)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def recognizer(run_folder):
    trained = load_checkpoint(run_folder)
    clip = dataclasses.replace(trained.clip, normalize="fixed")
    changes = {"model": Brightness(), "clip": clip, "class_names": NAMES, "threshold": THRESHOLD}
    return Recognizer(dataclasses.replace(trained, **changes), device="cpu")


@pytest.fixture(scope="module")
def app(recognizer):
    return create_demo(recognizer, ServeOptions(max_upload=MIB))


@pytest.fixture(scope="module")
def address(app):
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Paths by name: `long` is dark, between two levels, and bright, 2 s each; `short`, `avi`, `text`, `large`."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "notes.txt").write_text("no video")
    (folder / "large.mp4").write_bytes(bytes(2 * MIB))
    return {
        "long": video_of(folder / FILE, 0, 6.5 / (K - 1), 1),
        "short": video_of(folder / "short.mp4", 1, seconds=1),
        "avi": avi_of(folder / "old.avi"),
        "text": folder / "notes.txt",
        "large": folder / "large.mp4",
    }


@pytest.fixture(scope="module")
def browser():
    with open_browser(*FAKE_CAMERA) as driver:
        yield driver


@pytest.fixture
def page(browser, address):
    """Opens the page, and uploads videos: `page(path, ..., width=1280, features=(DARK,))`."""

    def open_page(*paths, width=1280, features=()):
        show_as(browser, width, *features)
        browser.get(address)
        wait(browser, lambda b: find(b, "#choose").is_enabled())
        if paths:
            upload(browser, *paths)
            wait(browser, lambda b: find(b, "#result").is_displayed())
        return browser

    return open_page


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def find_all(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def upload(browser, *paths):
    find(browser, "#files").send_keys("\n".join(map(str, paths)))


def text(browser, selector):
    return find(browser, selector).get_attribute("textContent").replace("\u00a0", " ")


def video_time(browser):
    return browser.execute_script("return document.getElementById('video').currentTime")


def is_loaded(browser):
    return browser.execute_script("return document.getElementById('video').readyState >= 2")


def bars(browser, root="#bars"):
    """Name -> percent of the rows that are shown."""
    rows = find_all(browser, f"{root} .bars li")
    return {row.find_element(By.TAG_NAME, "bdi").get_property("textContent"): share(row) for row in rows}


def share(row):
    return float(row.find_element(By.CLASS_NAME, "number").text.split()[0])


def states(browser):
    return [item.get_attribute("class") for item in find_all(browser, "#videos li")]


def test_a_video_is_shown_with_its_segments_on_a_timeline(page, recognizer, videos):
    browser = page(videos["long"])
    expected = recognizer.segments(videos["long"])
    assert [segment.label for segment in expected] == [HTML, "unknown", LONG]
    assert "2 segments of 2 classes in 6 s" in text(browser, "#result-text")
    buttons = find_all(browser, ".track button")
    for button, segment in zip(buttons, expected, strict=True):
        style = {name: float(button.value_of_css_property(name)[:-2]) for name in ("left", "width")}
        whole = find(browser, ".track").size["width"]
        assert style["left"] == pytest.approx(whole * segment.start / 6, abs=1)
        assert style["width"] == pytest.approx(whole * (segment.end - segment.start) / 6, abs=1)
    assert ["pause" in button.get_attribute("class") for button in buttons] == [False, True, False]
    assert buttons[0].value_of_css_property("background-color") != buttons[2].value_of_css_property("background-color")
    browser.execute_script("document.querySelector('details').open = true")
    rows = [
        [cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in find_all(browser, "#segments tbody tr")
    ]
    assert [row[0] for row in rows] == [f"{segment.start:.1f} s" for segment in expected]


def test_a_click_on_a_segment_jumps_and_moves_the_bars(page, recognizer, videos):
    browser = page(videos["long"])
    wait(browser, is_loaded)
    bright = recognizer.segments(videos["long"])[2]
    find_all(browser, ".track button")[2].click()
    wait(browser, lambda b: video_time(b) == pytest.approx(bright.start, abs=0.01))
    assert text(browser, "#bars .panel-time") == f"at {bright.start:.1f} s"
    windows = list(recognizer.windows(videos["long"]))
    centres = [(window.start + window.end) / 2 for window in windows]
    for seconds in (0.0, 1.8, 2.1, 3.9, 5.9):
        browser.execute_script("document.getElementById('video').currentTime = arguments[0]", seconds)
        wait(browser, lambda b, seconds=seconds: text(b, "#bars .panel-time") == f"at {seconds:.1f} s")
        time = video_time(browser)
        for name, percent in bars(browser).items():
            index = [n if n != REVERSED else "\\u202egnp.exe" for n in NAMES].index(name)
            p = np.interp(time, centres, [window.probabilities_K[index] for window in windows])
            assert percent == pytest.approx(100 * p, abs=0.06), (seconds, name)


def test_the_bars_move_while_the_video_plays(page, videos):
    browser = page(videos["long"])
    wait(browser, is_loaded)
    browser.execute_script("const v = document.getElementById('video'); v.muted = true; v.playbackRate = 4; v.play()")
    best = "#bars .best bdi"
    assert text(browser, best) == HTML
    wait(browser, lambda b: text(b, best) == LONG)
    wait(browser, lambda b: find_all(b, ".track button")[2].get_attribute("aria-current") == "true")


def test_the_timeline_of_a_longer_video_is_zoomed(page, tmp_path):
    browser = page(video_of(tmp_path / "longer.mp4", 0, 1, seconds=12), width=390)
    width = find(browser, ".track").size["width"]
    find(browser, "#zoom-in").click()
    assert find(browser, ".track").size["width"] == pytest.approx(2 * width, abs=2)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert not find(browser, "#zoom-in").is_enabled()
    find(browser, "#zoom-out").click()
    assert find(browser, ".track").size["width"] == width


def test_everything_works_by_keyboard(page, recognizer, videos):
    browser = page(videos["long"])
    wait(browser, is_loaded)
    browser.execute_script("document.querySelector('#bars input').focus()")
    active = lambda name: browser.execute_script("return document.activeElement.getAttribute(arguments[0])", name)  # noqa: E731
    expected = recognizer.segments(videos["long"])
    press(browser, Keys.TAB)  # the zoom buttons are disabled for so short a video
    assert active("aria-label").startswith(f"{HTML}, 0.0\u00a0s to ")
    press(browser, Keys.ARROW_RIGHT)
    assert active("aria-label").startswith("unknown, ")
    press(browser, Keys.END)
    assert active("aria-label").startswith(LONG.strip())
    press(browser, Keys.ENTER)
    wait(browser, lambda b: video_time(b) == pytest.approx(expected[2].start, abs=0.01))
    assert text(browser, "#spoken").startswith("bright bright")
    press(browser, Keys.TAB)
    assert active("aria-pressed") == "true", "the track is one stop; the legend comes next"
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_every_control_has_a_name(page, videos):
    browser = page(videos["long"])
    for control in find_all(browser, "button, input, video, summary, [role=region]"):
        assert not control.is_displayed() or control.accessible_name, control.get_attribute("outerHTML")
    assert find(browser, "#spoken").get_attribute("aria-live") == "polite"
    assert "segments of 2 classes" in text(browser, "#spoken")


def test_names_of_classes_and_files_stay_text(page, videos):
    browser = page(videos["long"])
    assert find_all(browser, "img, main b[onmouseover]") == []
    assert browser.title.endswith("stvid demo")
    shown = FILE.replace("\u202e", "\\u202e")
    assert text(browser, "#result-title") == text(browser, "#videos .opener") == shown
    assert [text_of.get_property("textContent") for text_of in find_all(browser, ".legend bdi")] == [HTML, LONG]
    assert "\u202e" not in browser.page_source


def test_a_class_becomes_a_pause(page, videos):
    browser = page(videos["long"])
    find(browser, ".legend button").click()
    assert ["pause" in b.get_attribute("class") for b in find_all(browser, ".track button")] == [True, True, False]
    assert "1 segment of 1 class" in text(browser, "#result-text")
    find(browser, ".legend button").click()
    assert "2 segments of 2 classes" in text(browser, "#result-text")


def test_subtitles_are_those_of_predict(page):
    browser = page()
    parts = [(0.0, 2.04, "a", 0.995), (2.04, 3.9999, "unknown", 0.3), (3.9999, 4000.5, "b <i>", 0.5049)]
    listed = [Segment(start=a, end=b, label=label, probability=p) for a, b, label, p in parts]
    answers = [{"start": a, "end": b, "class": label, "probability": p} for a, b, label, p in parts]
    script = """
        const [segments, start, done] = arguments;
        import("/subtitles.js").then((module) => done(module.subtitles(segments, start)));
    """
    for start in (0.0, 1.4):
        assert browser.execute_async_script(script, answers, start) == subtitles(listed, kind="srt", offset=start)


def test_downloads_hold_the_answer(page, videos, tmp_path):
    browser = page(videos["short"])
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    find(browser, "#save-json").click()
    wait(browser, lambda _: (tmp_path / "short.json").is_file())
    answer = json.loads((tmp_path / "short.json").read_text())
    assert answer["path"] == "short.mp4"
    assert answer["top"][0]["class"] == LONG


def test_a_short_video_has_one_answer(page, recognizer, videos):
    browser = page(videos["short"])
    expected = recognizer.predict(videos["short"])
    assert text(browser, "#answer b") == expected.label
    assert text(browser, "#answer span") == f"{100 * expected.probability:.1f} %"
    assert not find(browser, "#over-time").is_displayed()
    assert bars(browser)[LONG] == pytest.approx(100 * expected.probability, abs=0.06)


def test_only_the_most_probable_classes_are_shown_and_others_are_found(page, videos):
    browser = page(videos["short"])
    assert len(bars(browser)) == 8
    assert text(browser, "#bars .more") == f"and {K - 8} less probable"
    field = find(browser, "#bars input")
    field.send_keys("GREY 3")
    assert list(bars(browser)) == ["grey 3"]
    field.send_keys("x")
    assert bars(browser) == {}
    assert text(browser, "#bars .more") == "No class has such a name."


def test_several_videos_one_after_another(page, videos):
    browser = page(videos["text"], videos["short"], videos["large"], videos["long"])
    wait(browser, lambda b: states(b) == ["failed", "done", "failed", "done"])
    messages = [item.text for item in find_all(browser, "#videos .failed .state")]
    assert messages[0].startswith("notes.txt: ")
    assert messages[1] == "The video is too large: 2 MiB, and the limit is 1 MiB."
    assert text(browser, "#result-title") == "short.mp4", "the first answer stays"
    find_all(browser, ".opener")[3].click()
    wait(browser, lambda b: find(b, "#timeline").is_displayed())
    assert [item.get_attribute("aria-current") for item in find_all(browser, ".opener")] == [None, None, None, "true"]


def test_a_video_that_breaks_half_way_shows_what_was_read(page, tmp_path):
    path = video_of(tmp_path / "broken.mp4", 0, 1, seconds=4)
    break_half_way(path)
    browser = page(path)
    assert "could not be read to its end: truncated" in text(browser, "#result-text")
    assert find(browser, ".track button").get_attribute("title").startswith(HTML)


def test_a_video_is_dropped(page):
    browser = page()
    browser.execute_script("""
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["no video"], "dropped.mp4"));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
    """)
    wait(browser, lambda b: states(b) == ["failed"])
    assert find(browser, "#videos .state").text.startswith("dropped.mp4: ")


def test_a_video_is_cancelled_and_tried_again(page, videos, recognizer, app):
    gate = recognizer.trained.model.gate
    browser = page()
    gate.clear()
    upload(browser, videos["short"])
    wait(browser, lambda b: states(b) == ["working"])
    find(browser, "#videos li .button").click()
    wait(browser, lambda b: states(b) == ["cancelled"])
    gate.set()
    find(browser, "#videos li .button").click()
    wait(browser, lambda b: states(b) == ["done"])
    wait(browser, lambda _: list(app.state.service.folder.iterdir()) == [])


def test_a_format_that_no_browser_plays_is_played_as_a_copy(page, videos, app):
    browser = page(videos["avi"])
    wait(browser, is_loaded)
    size = browser.execute_script("const v = document.getElementById('video'); return [v.videoWidth, v.videoHeight]")
    assert size == [64, 48]
    assert not find(browser, "#video-text").is_displayed()
    wait(browser, lambda _: list(app.state.service.folder.iterdir()) == [])


@pytest.mark.parametrize("mode", [LIGHT, DARK], ids=lambda mode: mode["value"])
def test_text_has_enough_contrast_in_light_and_dark_mode(page, videos, mode):
    browser = page(videos["long"], videos["text"], features=(mode, NO_MOTION))
    wait(browser, lambda b: states(b) == ["done", "failed"])
    selectors = "body, .over, .note, #choose, #camera, .failed .state, .best bdi, .number, .track bdi, .legend bdi"
    for element in find_all(browser, selectors):
        assert browser.execute_script(CONTRAST, element) >= 4.5, element.get_attribute("outerHTML")


def test_dark_mode_changes_the_colours(page):
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert len({page(features=(mode,)).execute_script(colour) for mode in (LIGHT, DARK)}) == 2


def test_a_phone_scrolls_only_vertically(page, videos):
    browser = page(videos["long"], videos["text"], width=390)
    wait(browser, lambda b: states(b) == ["done", "failed"])
    browser.execute_script("document.querySelector('details').open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    find(browser, "#camera").click()
    wait(browser, lambda b: find(b, "#live").is_displayed())
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    find(browser, "#camera").click()


def test_the_page_asks_only_the_service_and_logs_no_errors(page, browser, address, videos):
    browser.get_log("browser")
    browser.get_log("performance")
    page(videos["long"])
    wait(browser, is_loaded)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert f"{address}/segments?windows=true" in sent
    own = (f"{address}/", f"blob:{address}/", "data:")  # the controls of the browser's player have data: pictures
    assert [url for url in sent if not url.startswith(own)] == []
    assert browser.get_log("browser") == []


def test_the_webcam_is_answered_live(page):
    browser = page()
    find(browser, "#camera").click()
    names = [LONG, "unknown", "\\u202egnp.exe", HTML, *NAMES[1 : K - 2]]
    wait(browser, lambda b: text(b, "#live-answer b") in names)
    assert len(bars(browser, "#live-bars")) == 8
    assert re.search(r"^\d+ frames/s, latency \d+ ms", text(browser, "#live-numbers"))
    assert find(browser, "#camera").text == "Stop the webcam"
    find(browser, "#camera").click()
    assert not find(browser, "#live").is_displayed()
    assert browser.execute_script("return document.getElementById('live-video').srcObject") is None


def test_a_camera_that_is_refused_is_told(page):
    browser = page()
    refuse = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError'))"
    browser.execute_script(refuse)
    find(browser, "#camera").click()
    wait(browser, lambda b: find(b, "#live-error").is_displayed())
    assert find(browser, "#live-error").text.startswith("The browser was not allowed to use the camera.")
    assert find(browser, "#camera").text == "Use the webcam"


def test_the_page_takes_its_token_from_the_address(browser, recognizer, videos):
    token = "a/token+with=signs"
    with serving(create_demo(recognizer, ServeOptions(token=token))) as address:
        browser.get(f"{address}/")
        wait(browser, lambda b: find(b, "#page-error").is_displayed())
        assert "token" in find(browser, "#page-error").text
        browser.get(f"{address}/?token={urllib.parse.quote(token, safe='')}")
        wait(browser, lambda b: find(b, "#choose").is_enabled())
        assert browser.current_url == f"{address}/"
        upload(browser, videos["short"])
        wait(browser, lambda b: find(b, "#answer").is_displayed())


def test_the_page_alone_needs_no_token(recognizer):
    with TestClient(create_demo(recognizer, ServeOptions(token="12345678")), base_url="http://127.0.0.1") as client:
        assert client.get("/").headers["content-security-policy"].startswith("default-src 'self'; ")
        assert client.get("/demo.js").headers["content-type"].startswith("text/javascript")
        assert client.get("/demo.css").status_code == 200
        assert [client.get(path).status_code for path in ("/model", "/index.html", "/../demo.py")] == [401, 401, 401]
        assert client.post("/playable").status_code == 401


@pytest.fixture
def client(recognizer):
    with TestClient(create_demo(recognizer, ServeOptions()), base_url="http://127.0.0.1") as client:
        yield client


def test_a_playable_copy_has_the_same_frames_at_the_same_times(client, videos, tmp_path):
    answer = client.post("/playable", files={"file": ("old.avi", videos["avi"].read_bytes())})
    assert answer.status_code == 200
    (tmp_path / "copy.mp4").write_bytes(answer.content)
    source, copy = probe(videos["avi"]), probe(tmp_path / "copy.mp4")
    assert (copy.codec, copy.num_frames, copy.fps) == ("h264", source.num_frames, source.fps)
    frames = read_frames(tmp_path / "copy.mp4", range(copy.num_frames)).float().mean(dim=(1, 2, 3))
    assert frames.tolist() == pytest.approx([20 * i for i in range(12)], abs=3)
    assert float(answer.headers["Stvid-Offset"]) == source.start - copy.start == 0
    assert list(client.app.state.service.folder.iterdir()) == []


def test_a_clock_that_does_not_start_at_0_is_told(client):
    content, start = mpegts(first=100, fps=25), 4.0
    answer = client.post("/playable", files={"file": ("stream.ts", content)})
    assert float(answer.headers["Stvid-Offset"]) == pytest.approx(start, abs=1e-3)
    segments = client.post("/segments?windows=true", files={"file": ("stream.ts", content)}).json()
    assert segments["clock_start"] == pytest.approx(start, abs=1e-3)


def test_what_is_no_video_has_no_copy(client):
    answer = client.post("/playable", files={"file": ("notes.mp4", b"no video")})
    assert answer.status_code == 415
    assert answer.json()["detail"].startswith("notes.mp4: ")
    assert list(client.app.state.service.folder.iterdir()) == []


def test_a_copy_is_deleted_when_the_client_goes_away(tmp_path):
    folder = tempfile.TemporaryDirectory(dir=tmp_path)
    copy = tmp_path / folder.name / "copy.mp4"
    copy.write_bytes(bytes(1000))

    async def send(message):
        raise OSError("the client has gone")

    async def receive():
        await asyncio.Event().wait()

    response = _TemporaryFile(copy, folder, headers={})
    with pytest.raises(OSError, match="gone"):
        asyncio.run(response({"type": "http", "method": "GET", "headers": []}, receive, send))
    assert list(tmp_path.iterdir()) == []


def test_the_command_opens_the_page(monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    monkeypatch.setattr(demo, "can_open_browser", lambda: True)
    monkeypatch.setattr(demo.threading, "Thread", lambda target, args, daemon: Started(target, args))
    demo.start("http://0.0.0.0:8000", "a+b", browser=True)
    demo.start("http://127.0.0.1:8000", None, browser=False)
    assert opened == ["http://127.0.0.1:8000/?token=a%2Bb"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the page is http://0.0.0.0:8000/?token=a%2Bb; Ctrl-C stops"
    assert lines[1] == "the page is http://127.0.0.1:8000/; Ctrl-C stops"


class Started:
    """A thread that is done when it has started."""

    def __init__(self, target, args):
        self.start = lambda: target(*args)
