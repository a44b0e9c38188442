"""The report as a browser shows it: headless Chromium, driven by selenium; skipped where either is missing."""

import json

import pytest
from chromium import CONTRAST, DARK, LIGHT, NO_MOTION, open_browser, press, show_as, wait
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_report import NASTY, NUM_FRAMES, make_evaluation, make_report

from stvid.evaluation.compare import compare_runs
from stvid.report.report import MAX_BYTES, write_comparison, write_report


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A report of 200 videos with markup in the class names."""
    path = tmp_path_factory.mktemp("browser") / "report.html"
    names = (*NASTY, *(f"a class with quite a long name, number {i}" for i in range(7)))
    write_report(make_report(names, per_class=20), path)
    assert path.stat().st_size < MAX_BYTES
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with open_browser() as driver:
        yield driver


@pytest.fixture
def opened(browser, address):
    """Opens the page: `opened(width, *media features)`."""

    def open_page(width=1280, *features):
        show_as(browser, width, *features)
        browser.get(address)
        return browser

    return open_page


def drawn(browser, number):
    """Waits until so many more pictures of the page were drawn; a playing clip changes within a few."""
    script = """
        const [number, done] = arguments;
        let n = 0;
        const next = () => (n++ < number ? requestAnimationFrame(next) : done());
        next();
    """
    browser.execute_async_script(script, number)


def focused(browser, name):
    return browser.execute_script("return document.activeElement.getAttribute(arguments[0])", name)


def screen(browser):
    """The first clip, in sight."""
    return in_sight(browser, "#mistakes .screen")


def in_sight(browser, selector):
    """What it finds, in the middle of the window, where nothing covers it."""
    found = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    return found


def place(element):
    return element.value_of_css_property("background-position-x")


def open_cell(browser):
    return browser.find_elements(By.CSS_SELECTOR, "dialog[open]")


def test_the_page_sends_no_requests_and_logs_no_errors(opened):
    browser = opened()
    browser.get_log("browser")
    browser.get_log("performance")
    browser.refresh()
    wait(browser, lambda b: b.execute_script("return document.readyState") == "complete")
    screen(browser).click()
    in_sight(browser, ".matrix button").click()
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") for url in sent)
    assert [url for url in sent if not url.startswith(("file:", "data:"))] == []
    assert [url for url in sent if url.startswith("file:") and not url.endswith("report.html")] == []
    assert browser.get_log("browser") == []


def test_names_with_markup_stay_text(opened):
    browser = opened()
    assert browser.find_elements(By.TAG_NAME, "img") == []
    heads = [head.get_attribute("textContent") for head in browser.find_elements(By.CSS_SELECTOR, ".matrix tbody th")]
    assert NASTY[0] in heads
    in_sight(browser, '.matrix [data-cell="0-0"]').click()
    assert NASTY[0] in browser.find_element(By.ID, "cell-title").text
    assert browser.find_elements(By.TAG_NAME, "img") == []


def test_a_click_on_a_cell_opens_its_clips(opened):
    browser = opened()
    button = in_sight(browser, '.matrix [data-cell="0-1"]')
    number = int(button.text)
    button.click()
    (dialog,) = open_cell(browser)
    assert len(dialog.find_elements(By.CSS_SELECTOR, ".card .screen")) == number
    assert f"{number} videos" in dialog.text
    assert NASTY[1] in dialog.find_element(By.CSS_SELECTOR, ".said").text
    assert "0.mp4" in dialog.text
    browser.find_element(By.ID, "cell-close").click()
    assert not open_cell(browser)


def test_the_keyboard_opens_a_cell_and_returns_to_it(opened):
    browser = opened()
    browser.execute_script("document.querySelector('.pairs li:last-child button').focus()")
    press(browser, Keys.TAB)
    assert focused(browser, "data-cell") == "0-0"
    press(browser, Keys.ARROW_RIGHT)
    assert focused(browser, "data-cell") == "0-1"
    press(browser, Keys.ARROW_DOWN)
    assert focused(browser, "data-cell") == "1-1"
    press(browser, Keys.END)
    assert focused(browser, "data-cell") == "1-2"
    assert not open_cell(browser)
    press(browser, Keys.ENTER)
    assert open_cell(browser)
    assert focused(browser, "id") == "cell-close"
    press(browser, Keys.TAB)
    assert "screen" in focused(browser, "class")
    press(browser, Keys.ESCAPE)
    wait(browser, lambda b: not open_cell(b))
    assert focused(browser, "data-cell") == "1-2"
    press(browser, Keys.TAB)
    assert "matrix" not in (focused(browser, "class") or "")
    assert focused(browser, "data-cell") is None


def test_a_clip_plays_pauses_and_steps_by_frame(opened):
    browser = opened()
    clip = screen(browser)
    first = place(clip)
    wait(browser, lambda _: place(clip) != first)
    clip.click()
    stopped = place(clip)
    assert clip.get_attribute("aria-label").startswith("Play the clip of ")
    seen = {stopped}
    for _ in range(NUM_FRAMES - 1):
        press(browser, Keys.ARROW_RIGHT)
        seen.add(place(clip))
    assert len(seen) == NUM_FRAMES
    press(browser, Keys.ARROW_RIGHT)
    assert place(clip) == stopped
    press(browser, Keys.HOME)
    assert place(clip) == "0%"


def test_heat_map_and_evidence_are_shown(opened):
    browser = opened(1280, NO_MOTION)
    clip = screen(browser)
    card = clip.find_element(By.XPATH, "./ancestor::figure")
    plain = clip.value_of_css_property("background-image")
    look = card.find_element(By.CSS_SELECTOR, ".look")
    look.click()
    assert look.get_attribute("aria-pressed") == "true"
    assert clip.value_of_css_property("background-image") != plain
    bars = card.find_elements(By.CSS_SELECTOR, ".evidence span")
    assert [bar.get_attribute("class") for bar in bars] == ["now", "against", "", ""]
    assert card.find_element(By.CSS_SELECTOR, ".evidence").get_attribute("aria-label") == (
        "Evidence for the predicted class, 1.25 in all: most in frame 3 (1.00), least in frame 2 (-0.25)"
    )
    browser.execute_script("arguments[0].focus()", clip)
    press(browser, Keys.ARROW_RIGHT)
    assert bars[1].get_attribute("class") == "against now"


def test_clips_are_paused_with_prefers_reduced_motion(opened):
    browser = opened(1280, NO_MOTION)
    clip = screen(browser)
    before = place(clip)
    drawn(browser, 60)
    assert place(clip) == before
    assert "paused" in clip.get_attribute("class")
    every = browser.find_element(By.ID, "pause-all")
    assert every.text == "Play all clips"
    browser.execute_script("arguments[0].click()", every)
    wait(browser, lambda _: place(clip) != before)


@pytest.mark.parametrize("mode", [LIGHT, DARK], ids=lambda mode: mode["value"])
def test_text_has_enough_contrast_in_light_and_dark_mode(opened, mode):
    browser = opened(1280, mode)
    for selector in ("body", ".lead", ".big", ".note", ".entry dt", ".entry span", ".contents a", ".said b", ".path"):
        found = browser.find_element(By.CSS_SELECTOR, selector)
        assert browser.execute_script(CONTRAST, found) >= 4.5, selector
    for cell in browser.find_elements(By.CSS_SELECTOR, ".key, .tag, .matrix td button, .heat td[class*=h]"):
        assert browser.execute_script(CONTRAST, cell) >= 4.5, cell.get_attribute("outerHTML")


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_texts_of_charts_do_not_overlap(opened, tmp_path, page):
    """As the browser's own font has them; models of nearly the same cost and accuracy."""
    browser = opened(1280)
    if page == "comparison":
        runs = [make_evaluation(f"2024-05-01_12-00-00_conv3d_{i}", i % 2)(tmp_path) for i in range(5)]
        write_comparison(compare_runs(runs), tmp_path / "comparison.html")
        browser.get((tmp_path / "comparison.html").as_uri())
    overlaps = browser.execute_script("""
        const found = [];
        for (const svg of document.querySelectorAll("svg.chart")) {
          const whole = svg.getBoundingClientRect();
          const texts = [...svg.querySelectorAll("text")].map((one) => [one.getBoundingClientRect(), one.textContent]);
          for (const [a, text] of texts) {
            if (a.left < whole.left - 1 || a.right > whole.right + 1 || a.bottom > whole.bottom) found.push(text);
            for (const [b, other] of texts) {
              const aside = a.right <= b.left || b.right <= a.left;
              const above = a.bottom <= b.top + 3 || b.bottom <= a.top + 3;
              if (a !== b && !aside && !above) found.push(`${text} and ${other}`);
            }
          }
        }
        return found;
    """)
    assert overlaps == []


def test_dark_mode_changes_page_and_charts(opened):
    colours = []
    for mode in (LIGHT, DARK):
        browser = opened(1280, mode)
        bar = browser.find_element(By.CSS_SELECTOR, "svg[aria-labelledby^=audit] rect")
        colours.append((browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"),
                        bar.value_of_css_property("fill")))  # fmt: skip
    assert colours[0][0] != colours[1][0]
    assert colours[0][1] != colours[1][1]


def test_a_phone_scrolls_only_vertically(opened):
    browser = opened(360)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    box = browser.find_element(By.CSS_SELECTOR, ".matrix-box")
    assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", box)


def test_a_click_on_a_column_head_sorts_the_table(opened):
    browser = opened()

    def recalls():
        cells = browser.find_elements(By.CSS_SELECTOR, "#classes tbody td:nth-child(3)")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    head = browser.find_element(By.CSS_SELECTOR, "#classes thead th:nth-child(3)")
    button = head.find_element(By.TAG_NAME, "button")
    for direction in ("descending", "ascending"):
        browser.execute_script("arguments[0].click()", button)
        assert head.get_attribute("aria-sort") == direction
        assert recalls() == sorted(recalls(), reverse=direction == "descending")
    assert len(set(recalls())) > 1
