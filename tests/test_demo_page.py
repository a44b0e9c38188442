"""The page of `stvid demo` as a browser shows it, on a model that knows levels of grey."""

import json
import re
import urllib.parse

import numpy as np
import pytest
from chromium import (
    CONTRAST,
    DARK,
    FAKE_CAMERA,
    LIGHT,
    NO_MOTION,
    find,
    find_all,
    open_browser,
    press,
    requests,
    run,
    show_as,
    text,
    wait,
)
from conftest import break_half_way
from grey_demo import FILE, HTML, LONG, NAMES, K, grey_recognizer, grey_videos, serving, video_of
from selenium.webdriver.common.keys import Keys

import stvid.serve.app
from stvid.deploy.segments import Segment
from stvid.deploy.subtitles import subtitles
from stvid.serve.demo import create_demo
from stvid.serve.options import MIB, ServeOptions

SHOWN_NAMES = [name.replace("\u202e", "\\u202e") for name in NAMES]


@pytest.fixture(scope="module")
def recognizer(run_folder):
    return grey_recognizer(run_folder)


@pytest.fixture(scope="module")
def app(recognizer):
    return create_demo(recognizer, ServeOptions(max_upload=MIB))


@pytest.fixture(scope="module")
def address(app):
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return grey_videos(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def browser():
    with open_browser(*FAKE_CAMERA) as driver:
        yield driver


@pytest.fixture
def page(browser, address):
    """Opens the page, and uploads videos: `page(path, ..., width=1280)`."""

    def open_page(*paths, width=1280):
        show_as(browser, width)
        browser.get(address)
        wait(browser, lambda b: find(b, "#choose").is_enabled())
        if paths:
            upload(browser, *paths)
            wait(browser, lambda b: find(b, "#result").is_displayed())
        return browser

    return open_page


def upload(browser, *paths):
    find(browser, "#files").send_keys("\n".join(map(str, paths)))


def video_time(browser):
    return run(browser, "return video.currentTime")


def is_loaded(browser):
    return run(browser, "return video.readyState >= 2")


def bars(browser, root="#bars"):
    """Name -> percent of the rows that are shown."""
    script = "return [...document.querySelectorAll(arguments[0])].map((row) => row.innerText.split('\\n'))"
    return {name: float(percent.split("\u00a0")[0]) for name, percent in run(browser, script, f"{root} .bars li")}


def states(browser):
    return [item.get_attribute("class") for item in find_all(browser, "#videos li")]


def are_background(elements):
    return ["background" in element.get_attribute("class") for element in elements]


def test_a_video_is_shown_with_its_segments_on_a_timeline(page, recognizer, videos):
    browser = page(videos["long"])
    expected = recognizer.segments(videos["long"])
    assert [segment.label for segment in expected] == [HTML, "unknown", LONG]
    assert "2 segments of 2 classes in 6 s" in text(browser, "#result-text")
    buttons = find_all(browser, ".track button")
    for button, segment in zip(buttons, expected, strict=True):
        style = {name: float(button.value_of_css_property(name)[:-2]) for name in ("left", "width")}
        width = find(browser, ".track").size["width"]
        assert style["left"] == pytest.approx(width * segment.start / 6, abs=1)
        assert style["width"] == pytest.approx(width * (segment.end - segment.start) / 6, abs=1)
    assert are_background(buttons) == [False, True, False]
    assert buttons[0].value_of_css_property("background-color") != buttons[2].value_of_css_property("background-color")
    run(browser, "document.querySelector('#over-time details').open = true")
    starts = [cell.text for cell in find_all(browser, "#segments tbody td:first-child")]
    assert starts == [f"{segment.start:.1f} s" for segment in expected]


def test_a_click_on_a_segment_jumps_and_moves_the_bars(page, recognizer, videos):
    browser = page(videos["long"])
    wait(browser, is_loaded)
    bright = recognizer.segments(videos["long"])[2]
    find_all(browser, ".track button")[2].click()
    wait(browser, lambda b: video_time(b) == pytest.approx(bright.start, abs=0.01))
    assert text(browser, "#bars .panel-time") == f"at {bright.start:.1f} s"
    windows = list(recognizer.windows(videos["long"]))
    centres = [(window.start + window.end) / 2 for window in windows]
    for seconds in (0.0, 1.8, 2.1, 5.9):
        run(browser, "video.currentTime = arguments[0]", seconds)
        wait(browser, lambda b, seconds=seconds: text(b, "#bars .panel-time") == f"at {seconds:.1f} s")
        time = video_time(browser)
        for name, percent in bars(browser).items():
            p = np.interp(time, centres, [window.probabilities_K[SHOWN_NAMES.index(name)] for window in windows])
            assert percent == pytest.approx(100 * p, abs=0.06), (seconds, name)
    run(browser, "video.currentTime = 0; video.muted = true; video.playbackRate = 4; video.play()")
    wait(browser, lambda b: text(b, "#bars .best bdi") == HTML)
    wait(browser, lambda b: text(b, "#bars .best bdi") == LONG)
    wait(browser, lambda b: find_all(b, ".track button")[2].get_attribute("aria-current") == "true")


def test_the_timeline_of_a_longer_video_is_zoomed(page, tmp_path):
    browser = page(video_of(tmp_path / "longer.mp4", 0, 1, seconds=12), width=390)
    width = find(browser, ".track").size["width"]
    find(browser, "#zoom-in").click()
    assert find(browser, ".track").size["width"] == pytest.approx(2 * width, abs=2)
    assert run(browser, "return document.documentElement.scrollWidth") == 390
    assert not find(browser, "#zoom-in").is_enabled()
    find(browser, "#zoom-out").click()
    assert find(browser, ".track").size["width"] == width


def test_everything_works_by_keyboard_and_has_a_name(page, recognizer, videos):
    browser = page(videos["long"])
    wait(browser, is_loaded)
    assert "segments of 2 classes" in text(browser, "#spoken")
    run(browser, "document.querySelector('.opener').focus()")
    press(browser, Keys.ENTER)
    assert run(browser, "return active.id") == "result-title"
    run(browser, "document.querySelector('#bars input').focus()")
    label = "return active.getAttribute('aria-label')"
    press(browser, Keys.TAB)  # the zoom buttons are disabled for so short a video
    assert run(browser, label).startswith(f"{HTML}, 0.0\u00a0s to ")
    press(browser, Keys.ARROW_RIGHT)
    assert run(browser, label).startswith("unknown, ")
    press(browser, Keys.END)
    assert run(browser, label).startswith(LONG)
    press(browser, Keys.ENTER)
    start = recognizer.segments(videos["long"])[2].start
    wait(browser, lambda b: video_time(b) == pytest.approx(start, abs=0.01))
    assert text(browser, "#spoken").startswith("bright bright")
    press(browser, Keys.TAB)
    assert run(browser, "return active.ariaPressed") == "true", "the track is one stop; the legend comes next"
    assert run(browser, "return getComputedStyle(active).outlineStyle") == "solid"
    for control in find_all(browser, "button, input, video, summary, [role=region]"):
        assert not control.is_displayed() or control.accessible_name, control.get_attribute("outerHTML")


def test_names_stay_text_and_a_class_becomes_background(page, videos):
    browser = page(videos["long"])
    assert find_all(browser, "img, main b[onmouseover]") == []
    assert browser.title.endswith("stvid demo")
    assert text(browser, "#result-title") == text(browser, "#videos .opener") == FILE.replace("\u202e", "\\u202e")
    assert [name.get_property("textContent") for name in find_all(browser, ".legend bdi")] == [HTML, LONG]
    assert [name.get_property("textContent") for name in find_all(browser, "#class-names bdi")] == SHOWN_NAMES
    assert "up to 1 MiB" in text(browser, "#source-text")
    assert "\u202e" not in browser.page_source
    find(browser, ".legend button").click()
    assert are_background(find_all(browser, ".track button")) == [True, True, False]
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
        import("/page/subtitles.js").then((module) => done(module.subtitles(segments, start)));
    """
    for start in (0.0, 1.4):
        assert browser.execute_async_script(script, answers, start) == subtitles(listed, kind="srt", offset=start)


def test_a_short_video_has_one_answer_from_one_upload(page, browser, recognizer, videos, tmp_path):
    requests(browser)
    page(videos["short"])
    posts = [url.rsplit("/", 1)[1] for method, url in requests(browser) if method == "POST"]
    assert posts == ["segments?windows=true"]
    expected = recognizer.predict(videos["short"])
    assert text(browser, "#answer b") == expected.label == LONG
    assert text(browser, "#answer span") == f"{100 * expected.probability:.1f} %"
    assert not find(browser, "#over-time").is_displayed()
    assert len(bars(browser)) == 8
    assert bars(browser)[LONG] == pytest.approx(100 * expected.probability, abs=0.06)
    assert text(browser, "#bars .more") == f"and {K - 8} less probable"
    field = find(browser, "#bars input")
    field.send_keys("GREY 3")
    assert list(bars(browser)) == ["grey 3"]
    field.send_keys("x")
    assert bars(browser) == {}
    assert text(browser, "#bars .more") == "No class has such a name."
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    find(browser, "#save-json").click()
    wait(browser, lambda _: (tmp_path / "short.json").is_file())
    answer = json.loads((tmp_path / "short.json").read_text())
    assert (answer["path"], answer["top"][0]["class"]) == ("short.mp4", LONG)


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
    run(
        browser,
        """
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["no video"], "dropped.mp4"));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
        """,
    )
    wait(browser, lambda b: states(b) == ["failed"])
    assert find(browser, "#videos .state").text.startswith("dropped.mp4: ")


def test_a_video_is_cancelled_and_tried_again(page, videos, recognizer, app):
    browser = page()
    with recognizer.trained.model.held():
        upload(browser, videos["short"])
        wait(browser, lambda b: states(b) == ["working"])
        find(browser, "#videos li .button").click()
        wait(browser, lambda b: states(b) == ["cancelled"])
        find(browser, "#videos li .button").click()
        wait(browser, lambda b: states(b) == ["working"])
        assert run(browser, "return active.textContent") == "Cancel"
    wait(browser, lambda b: states(b) == ["done"])
    assert run(browser, "return active.className") == "opener", "the focus stays in the list"
    wait(browser, lambda _: list(app.state.service.folder.iterdir()) == [])


def test_a_format_that_no_browser_plays_is_played_as_a_copy(page, videos, app):
    browser = page(videos["avi"])
    wait(browser, is_loaded)
    assert run(browser, "return [video.videoWidth, video.videoHeight]") == [64, 48]
    assert not find(browser, "#video-text").is_displayed()
    wait(browser, lambda _: list(app.state.service.folder.iterdir()) == [])


def test_text_has_enough_contrast_in_light_and_dark_mode(page, videos):
    browser = page(videos["long"], videos["text"])
    wait(browser, lambda b: states(b) == ["done", "failed"])
    selectors = "body, .over, .note, #choose, #camera, .failed .state, .best bdi, .number, .track bdi, .legend bdi"
    elements = find_all(browser, selectors)
    colours = set()
    for mode in (LIGHT, DARK):
        show_as(browser, 1280, mode, NO_MOTION)
        script = f"const contrast = function() {{{CONTRAST}}}; return arguments[0].map((element) => contrast(element))"
        for contrast, element in zip(run(browser, script, elements), elements, strict=True):
            assert contrast >= 4.5, (mode, element.get_attribute("outerHTML"))
        colours.add(elements[0].value_of_css_property("background-color"))
    assert len(colours) == 2


def test_a_phone_scrolls_only_vertically(page, videos):
    browser = page(videos["long"], videos["text"], width=390)
    wait(browser, lambda b: states(b) == ["done", "failed"])
    run(browser, "document.querySelector('#over-time details').open = true")
    assert run(browser, "return document.documentElement.scrollWidth") == 390
    find(browser, "#camera").click()
    wait(browser, lambda b: find(b, "#live").is_displayed())
    assert run(browser, "return document.documentElement.scrollWidth") == 390
    find(browser, "#camera").click()


def test_the_page_asks_only_the_service_and_logs_no_errors(page, browser, address, videos):
    browser.get_log("browser")
    requests(browser)
    page(videos["long"])
    wait(browser, is_loaded)
    sent = [url for _, url in requests(browser)]
    assert f"{address}/segments?windows=true" in sent
    own = (f"{address}/", f"blob:{address}/", "data:")  # the controls of the browser's player have data: pictures
    assert [url for url in sent if not url.startswith(own)] == []
    assert browser.get_log("browser") == []


def test_the_webcam_is_answered_live(page):
    browser = page()
    find(browser, "#camera").click()
    wait(browser, lambda b: text(b, "#live-answer b") in (*SHOWN_NAMES, "unknown"))
    assert len(bars(browser, "#live-bars")) == 8
    assert re.search(r"^\d+ frames/s, latency \d+ ms", text(browser, "#live-numbers"))
    assert find(browser, "#camera").text == "Stop the webcam"
    find(browser, "#camera").click()
    assert not find(browser, "#live").is_displayed()
    assert run(browser, "return document.getElementById('live-video').srcObject") is None


REFUSED = {
    "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError'))": (
        "The browser was not allowed to use the camera."
    ),
    "HTMLVideoElement.prototype.requestVideoFrameCallback = undefined": "This browser is too old for the webcam",
    "HTMLVideoElement.prototype.play = () => Promise.reject(new DOMException('it is broken'))": (
        "The camera cannot be opened: it is broken"
    ),
}


def test_a_camera_that_cannot_be_used_is_explained(page):
    browser = page()
    for script, message in REFUSED.items():
        run(browser, f"window.undo = [{script.split(' = ')[0]}]; {script}")
        find(browser, "#camera").click()
        wait(browser, lambda b: find(b, "#live-error").is_displayed())
        assert find(browser, "#live-error").text.startswith(message)
        assert find(browser, "#camera").text == "Use the webcam"
        run(browser, f"{script.split(' = ')[0]} = window.undo[0]")


def test_the_page_takes_its_token_from_the_address(browser, recognizer, videos, monkeypatch):
    monkeypatch.setattr(stvid.serve.app, "stream_mode", lambda recognizer: None)
    token = "a/token+with=signs"
    with serving(create_demo(recognizer, ServeOptions(token=token))) as address:
        browser.get(f"{address}/")
        wait(browser, lambda b: find(b, "#page-error").is_displayed())
        assert "token" in find(browser, "#page-error").text
        browser.get(f"{address}/?token={urllib.parse.quote(token, safe='')}")
        wait(browser, lambda b: find(b, "#choose").is_enabled())
        assert browser.current_url == f"{address}/"
        assert not find(browser, "#camera").is_enabled()
        assert find(browser, "#source-text").text.endswith("This model reads whole videos: no webcam.")
        upload(browser, videos["short"])
        wait(browser, lambda b: find(b, "#answer").is_displayed())
