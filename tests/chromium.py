"""Headless Chromium, driven by selenium; a test file that imports this is skipped where either is missing."""

import contextlib
import json
import shutil

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    reason = "no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
    pytest.skip(reason, allow_module_level=True)

FLAGS = ("--headless=new", "--hide-scrollbars", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
NO_MOTION = {"name": "prefers-reduced-motion", "value": "reduce"}
DARK = {"name": "prefers-color-scheme", "value": "dark"}
LIGHT = {"name": "prefers-color-scheme", "value": "light"}
# contrast of two colours as WCAG 2 has it; a canvas turns whatever CSS may say into numbers
CONTRAST = """
const [element] = arguments, canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgb = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                          return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
const light = (colour) => rgb(colour).map((v) => v / 255)
  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const clear = (one) => /rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(one).backgroundColor);
let behind = element;
while (behind && clear(behind)) behind = behind.parentElement;
const pair = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
"""


@contextlib.contextmanager
def open_browser(*flags):
    """Yields a driver that logs the console and all requests."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*FLAGS, *flags):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def show_as(browser, width, *features):
    """Sets the width of the window and media features, such as DARK."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": list(features)})


def wait(browser, condition):
    return WebDriverWait(browser, 30, poll_frequency=0.05).until(condition)


def press(browser, *keys):
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def find_all(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def text(browser, selector):
    return find(browser, selector).get_attribute("textContent").replace("\u00a0", " ")


def run(browser, script, *arguments):
    """What a script returns; in it, `video` is the element `#video` and `active` the element with the focus."""
    names = "const video = document.querySelector('#video'), active = document.activeElement; "
    return browser.execute_script(names + script, *arguments)


def requests(browser):
    """Method and address of all requests since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [(request["method"], request["url"]) for request in sent]
