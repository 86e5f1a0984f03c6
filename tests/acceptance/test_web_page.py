"""The page of the installed command in a real browser: pictures, a camera that goes and comes, hostile names.

Needs Debian's chromium and chromium-driver, which are not downloaded from here.
"""

import json
import os
import re
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

CHROMIUM = Path("/usr/bin/chromium")
DRIVER = Path("/usr/bin/chromedriver")
HOSTILE = "<img src=x onerror=document.title='broken'>"
SECRET = "hunter22"
SHOWN_WITHIN = 60.0  # seconds; a few on an idle machine
NOWHERE = "http://127.0.0.1:1"

if not (CHROMIUM.exists() and DRIVER.exists()):
    REASON = "no chromium and chromedriver in /usr/bin; Debian: chromium, chromium-driver"
    if os.environ.get("CI"):
        pytest.fail(REASON, pytrace=False)
    pytest.skip(REASON, allow_module_level=True)


class HttpCamera:
    """Serves a transport stream at its own pace until it is switched off."""

    def __init__(self, clip, seconds):
        self._data = clip.read_bytes()
        self._rate = len(self._data) / seconds
        self._off = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]
        self.switch_on()

    def switch_on(self):
        self._off = threading.Event()
        door = socket.create_server(("127.0.0.1", self.port))
        door.settimeout(0.1)
        self._thread = threading.Thread(target=self._serve, args=(door, self._off), daemon=True)
        self._thread.start()

    def switch_off(self):
        self._off.set()
        self._thread.join(10)

    def _serve(self, door, off):
        with door:
            while not off.is_set():
                with suppress(TimeoutError):
                    line, _ = door.accept()
                    with line, suppress(OSError):
                        self._play(line, off)

    def _play(self, line, off):
        line.settimeout(10)
        line.recv(65536)
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nConnection: close\r\n\r\n")
        begun, sent = time.monotonic(), 0
        while sent < len(self._data) and not off.is_set():
            due = int((0.5 + time.monotonic() - begun) * self._rate)
            if due > sent:
                line.sendall(self._data[sent:due])
                sent = due
            off.wait(0.1)


@pytest.fixture
def camera(ffmpeg, tmp_path):
    clip = tmp_path / "clip.ts"
    pattern = "testsrc2=size=320x180:rate=10:duration=120"
    options = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-pix_fmt", "yuv420p"]
    command = [ffmpeg, "-nostdin", "-v", "error", "-f", "lavfi", "-i", pattern, *options, clip]
    subprocess.run(command, check=True, timeout=60)
    camera = HttpCamera(clip, 120)
    yield camera
    camera.switch_off()


@pytest.fixture
def relay(start, camera, tmp_path):
    (tmp_path / "relay.toml").write_text(f"""
        [defaults]
        segment_seconds = 1
        [cameras.gate]
        name = "North gate"
        source = "http://user:{SECRET}@127.0.0.1:{camera.port}/live.ts"
        [cameras.yard]
        name = "{HOSTILE}"
        source = "test:320x180@10"
        """)
    settings = {"RELAY_CLOUD": NOWHERE, "RELAY_TOKEN": SECRET, "RELAY_DRAIN_TIMEOUT": "0"}
    settings |= {"RELAY_BROKER": "redis://127.0.0.1:1/0", "RELAY_SPOOL": str(tmp_path / "spool")}
    relay = start("run", "--config", tmp_path / "relay.toml", "--web", "0", "--json", env=settings)
    found = relay.wait_for(lambda: re.search(r'"url": "(http://127[^"]+)"', relay.log), "the page's address")
    relay.url = found[1]
    return relay


@pytest.fixture
def browser(tmp_path):
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield browser
    browser.quit()


def show(browser, url, *, width, height):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < height}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(url)


def tile(browser, camera):
    return browser.find_element(By.CSS_SELECTOR, f"[data-camera={camera}]")


def state(browser, camera):
    found = browser.find_elements(By.CSS_SELECTOR, f"[data-camera={camera}] .state")
    return found[0].text if found else None


def pictures(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('.tile img')].map((image) => image.naturalWidth)"
    )


def requests(browser, page):
    """Return the addresses that a page asked for, without pictures that it had already."""
    lines = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [line["params"] for line in lines if line["method"] == "Network.requestWillBeSent"]
    asked = [each["request"]["url"] for each in sent if each["documentURL"].startswith(page)]
    return [url for url in asked if not url.startswith(("blob:", "data:"))]


def test_the_page_shows_both_cameras_and_one_that_goes_and_comes(relay, camera, browser):
    show(browser, relay.url, width=1280, height=800)

    def wait_for(condition, what):
        return relay.wait_for(condition, what, deadline=SHOWN_WITHIN)

    wait_for(lambda: [state(browser, each) for each in ("gate", "yard")] == ["recording"] * 2, "recording")
    wait_for(lambda: pictures(browser) == [320, 320], "a decoded picture of each")

    heading = tile(browser, "yard").find_element(By.TAG_NAME, "h2")
    assert heading.text.startswith(HOSTILE)
    assert "broken" not in browser.title
    assert browser.find_elements(By.CSS_SELECTOR, "img[src=x]") == []
    image = tile(browser, "gate").find_element(By.TAG_NAME, "img")
    assert image.get_attribute("alt") == "Latest picture of North gate"
    assert tile(browser, "gate").find_element(By.CSS_SELECTOR, ".day svg").get_attribute("aria-label")
    assert SECRET not in browser.page_source

    camera.switch_off()
    wait_for(lambda: state(browser, "gate") == "retrying", "the camera that went away")
    assert state(browser, "yard") == "recording"
    assert "1 camera in trouble" in browser.title
    browser.find_element(By.ID, "ill").click()
    assert not tile(browser, "yard").is_displayed()
    assert tile(browser, "gate").is_displayed()
    browser.find_element(By.ID, "all").click()

    wait_for(lambda: '"failures": 3' in relay.log, "a few tries")
    camera.switch_on()
    wait_for(lambda: state(browser, "gate") == "recording", "the camera that came back")
    wait_for(
        lambda: "1 gap" in tile(browser, "gate").find_element(By.CSS_SELECTOR, ".day").text, "the gap it left"
    )

    asked = requests(browser, relay.url)
    assert any(url.endswith("/picture/gate.jpg") for url in asked)
    assert [url for url in asked if not url.startswith(relay.url)] == []
    assert browser.get_log("browser") == []


def test_the_page_fits_a_phone_and_says_when_the_agent_is_gone(relay, browser):
    show(browser, relay.url, width=390, height=844)
    relay.wait_for(lambda: state(browser, "yard") == "recording", "a camera", deadline=SHOWN_WITHIN)

    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    small = browser.execute_script(
        "return [...document.querySelectorAll('button')].filter((each) => each.offsetHeight < 40).length"
    )
    assert small == 0
    assert browser.get_log("browser") == []

    relay.signal()
    relay.exit_code()
    end = time.monotonic() + SHOWN_WITHIN
    lost = browser.find_element(By.ID, "lost")
    while not lost.is_displayed():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert re.match(r"No contact with the agent since \d\d:\d\d:\d\d", lost.text)
