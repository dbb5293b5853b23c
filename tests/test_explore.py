"The page of chapter 08b in a browser: somebody types, presses, turns knobs and makes mistakes."
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest
from notebooks import ROOT
from selenium.common.exceptions import StaleElementReferenceException

TOOLS = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(TOOLS), reason=f"not installed: {', '.join(TOOLS)}")]
PLAYING = "const v = [...document.querySelectorAll('.jd-explorer video')].at(-1); return !!v && v.readyState >= 2 && !v.paused && v.currentTime > arguments[0]"
SOUND = "const v = [...document.querySelectorAll('.jd-explorer video')].at(-1); return v.webkitAudioDecodedByteCount"
PICTURES = "return [...document.querySelectorAll('.jd-shown img')].map(i => i.complete && i.naturalWidth && i.src)"
SHOW_INPUT = "HTMLInputElement.prototype.click = function () { this.style.display = 'block'; document.body.append(this) }"   # instead of the dialog for files
WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def until(what, seconds=240):
    "The first true answer of `what`."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(StaleElementReferenceException):   # the page changed between two looks
            if answer := what(): return answer
        time.sleep(0.2)
    raise AssertionError(f"nothing after {seconds} s: {what.__doc__ or what}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(port):
    with socket.socket() as s: return s.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def served(command, log):
    "The address of a page that a command serves at `--port`."
    port = free_port()
    with open(log, "w") as out: process = subprocess.Popen([*command, f"--port={port}"], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "IN_TEST": "1", "PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        until(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGINT)   # Ctrl-C
        process.wait(60)


class Page:
    "What somebody can do on the page."
    def __init__(self, driver): self.driver = driver
    def find(self, css): return self.driver.find_elements("css selector", f".jd-explorer {css}")
    def button(self, words): return next((b for b in self.find("button") if words in b.text), None)
    def ready(self): return self.button("Generate") and self.button("Generate").is_enabled()
    def press(self, words): until(lambda: (b := self.button(words)) and b.is_enabled() and (b.click() or True))
    def error(self): return "".join(e.text for e in self.find(".jd-error"))
    def text(self): return " ".join(e.text for e in self.find(".jd-shown"))
    def type(self, css, words, at=0):
        box = self.find(css)[at]
        box.send_keys("\ue009a\ue000", words, "\ue004")   # Ctrl-A, then the words, then Tab


@pytest.fixture(scope="module")
def driver():
    with loaded("check_docs").browser() as driver:
        driver.set_page_load_timeout(600)
        driver.command_executor.client_config.timeout = 600   # voila answers when all cells have run
        driver.set_window_size(1280, 1000)
        yield driver


def opened(driver, url):
    "The page, as soon as it is alive."
    driver.get(url)
    page = Page(driver)
    until(page.ready)
    return page


@pytest.fixture(scope="module")
def page(driver, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "run.py").write_text("from javisdit.explore import javisdit_explore\njavisdit_explore()\n")   # as the installed command
    with served([sys.executable, str(folder / "run.py"), "--no_browser"], folder / "log") as url: yield opened(driver, url)


def test_a_clip_plays(page):
    page.type("input[type=text]", "a green bell rings <b>twice</b>")
    page.press("Generate")
    until(lambda: page.driver.execute_script(PLAYING, 0.1))
    at = page.driver.execute_script("return [...document.querySelectorAll('.jd-explorer video')].at(-1).currentTime")
    until(lambda: page.driver.execute_script(PLAYING, at) or page.driver.execute_script(PLAYING, 0.0), 20)
    until(lambda: page.driver.execute_script(SOUND), 20)
    assert "a green bell rings <b>twice</b>" in page.text()           # as it was typed
    assert all(until(lambda: page.driver.execute_script(PICTURES)))


def test_moments_and_layers(page):
    seen = set(page.driver.execute_script(PICTURES))
    page.press("spatial prior")
    seen |= set(until(lambda: set(page.driver.execute_script(PICTURES)) - seen))
    page.find(".jd-shown .noUi-handle")[0].send_keys("\ue012")        # arrow left: an earlier moment
    until(lambda: set(page.driver.execute_script(PICTURES)) - seen)
    assert "noise level" in page.text()


def test_two_settings_side_by_side(page):
    page.press("Keep beside")
    page.type("input[type=number]", "7")
    page.press("Generate")
    until(lambda: len(page.find("video")) == 2)
    assert "seed 0 → 7" in page.text()
    left, right = page.find(".jd-shown")
    assert left.rect["y"] == right.rect["y"] and left.rect["x"] + left.rect["width"] <= right.rect["x"]
    page.press("Keep beside")
    until(lambda: len(page.find("video")) == 1)


def test_bad_values_are_explained_and_the_page_goes_on(page):
    page.type("input[type=text]", "   ")
    page.press("Generate")
    until(lambda: "say in words what is seen and heard" in page.error())
    page.type("input[type=text]", "a lamp")
    select = next(s for s in page.find("select") if "video-to-audio" in s.text)
    select.send_keys("video-to-audio")
    until(lambda: any("a file" in s.text for s in page.find("select")))
    next(s for s in page.find("select") if "a file" in s.text).send_keys("a file")
    until(lambda: page.button("choose a file"))
    page.press("Generate")
    until(lambda: "no file was chosen" in page.error())
    page.driver.execute_script(SHOW_INPUT)
    page.button("choose a file").click()
    page.driver.find_element("css selector", "body > input[type=file]").send_keys(__file__)
    until(lambda: "test_explore.py" in " ".join(e.text for e in page.find("label, .widget-label")))
    page.press("Generate")
    until(lambda: "test_explore.py: is not a media file" in page.error())
    select.send_keys("text")
    page.press("Generate")
    until(page.ready)
    assert not page.error()


def test_stop(page):
    page.find(".jd-knobs .widget-readout")[0].click()
    page.driver.switch_to.active_element.send_keys("\ue009a\ue000", "100", "\ue007")
    page.press("Generate")
    page.press("Stop")
    until(lambda: "stopped after step" in page.driver.execute_script("return document.querySelector('.jd-buttons').textContent"))
    assert page.ready()


def test_fits_a_phone(page):
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True})
    assert page.driver.execute_script(WIDE) <= 1
    for e in page.find("input, select, video, img, button"):
        if e.is_displayed(): assert e.rect["x"] >= 0 and e.rect["x"] + e.rect["width"] <= 391, e.get_attribute("outerHTML")[:200]


def test_the_chapter_is_alive_in_voila(driver, tmp_path):
    command = [sys.executable, "-m", "voila", str(ROOT / "nbs" / "08b_explore.ipynb"), "--no-browser", "--Voila.ip=127.0.0.1"]
    with served(command, tmp_path / "log") as url:
        opened(driver, url).press("Generate")
        until(lambda: driver.execute_script(PLAYING, 0.1))
