"""The TensorBoard tree of a study in a real browser."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mmdistill.cli.reading import MEANS_FIRST
from mmdistill.records.study import StudyFolder

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
# What TensorBoard's own scripts, and a browser without a graphics card, say of themselves.
KNOWN = ("Multiple instances of Three.js", "WebGL", "GPU stall", "paper-header-panel", "paper-toolbar")
# Elements hide what is in them from plain queries: this looks into every one of them.
TEXT = """
function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.textContent;
  if (['STYLE', 'SCRIPT', 'NOSCRIPT', 'TEMPLATE'].includes(node.nodeName)) return '';
  const inside = node.shadowRoot ? [node.shadowRoot, ...node.childNodes] : [...node.childNodes];
  return inside.map(text).join(' ');
}
return text(document.body).replace(/\\s+/g, ' ');
"""
FOUND = """
function found(node, tag) {
  const here = node.nodeName === tag ? [node] : [];
  const inside = node.shadowRoot ? [node.shadowRoot, ...node.childNodes] : [...node.childNodes];
  return here.concat(...inside.map(child => found(child, tag)));
}
return found(document.body, arguments[0]).map(%s);
"""


@pytest.fixture(scope="module")
def served(finished):
    """Return the address of a server over the study of these tests, as `mmdistill tensorboard` starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "import sys; from mmdistill.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    command = [sys.executable, "-c", code, "tensorboard", str(finished), "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        wait(lambda: runs_of(address) is not None, "TensorBoard serves the runs")
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def runs_of(address):
    try:
        with urllib.request.urlopen(f"{address}data/runs", timeout=5) as answer:
            return json.load(answer) or None
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def wait(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium with its driver on this machine")
    options = webdriver.ChromeOptions()
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1500,1000",
    ):
        options.add_argument(f"--{flag}")
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, served):
    """Return ``page(name, *words)``: open a page with the filter that the command prints, await words."""

    def _page(name, *words):
        browser.get("about:blank")
        browser.get(served + MEANS_FIRST.replace("custom_scalars", name))
        wait(lambda: all(word in browser.execute_script(TEXT) for word in words), f"{words} on {name}")
        return browser

    yield _page
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert [line for line in said if not any(known in line for known in KNOWN)] == []
    asked = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert {url[: len(served)] for url in browser.execute_script(asked)} == {served}


def test_the_page_it_opens_draws_the_means_of_all_arms_in_their_bands(page):
    browser = page("custom_scalars", "Student on validation rows", "Losses of the terms", "Matches (2)")
    shown = browser.execute_script(TEXT)
    assert "means/hinton" in shown
    assert "means/student_only" in shown
    assert "confirm-000" not in shown
    # Neither has a teacher that trains along, several teachers, or transport.
    assert "Teacher that trains along" not in shown
    width = FOUND % "x => x.getBBox().width"
    wait(lambda: sum(w > 100 for w in browser.execute_script(width, "path")) >= 4, "two lines in two bands")


def test_the_time_series_show_the_means_with_their_pictures(page):
    groups = ("structure", "term", "term_low", "validation", "validation_low", "validation_high")
    browser = page("timeseries", "means/hinton", "means/student_only", *groups)
    assert "confirm-000" not in browser.execute_script(TEXT)


def test_the_pictures_appear(page):
    browser = page("images", "means/hinton", "structure")
    size = FOUND % "x => x.naturalWidth"
    wait(lambda: sum(width > 500 for width in browser.execute_script(size, "IMG")) == 2, "two pictures")


def test_the_hparams_page_has_a_column_per_setting_and_a_row_per_proposal(page, finished):
    rows = {f"{arm}/{phase}" for arm in ("student_only", "hinton") for phase in ("confirm", "test")}
    rows |= {f"{arm}/search-{n:03d}" for arm in ("student_only", "hinton") for n in range(2)}
    browser = page("hparams", "optimiser.learning_rate", "terms.softened_logits.weight", *rows)
    shown = browser.execute_script(TEXT)
    assert all(name in shown for name in ("accuracy", "log_loss", "validate", "TABLE VIEW"))


def test_a_text_says_what_is_there(page, finished):
    planned = json.loads(StudyFolder.open(finished).row.arms_json)
    runs = sum(sum(arm["planned"].values()) for arm in planned)
    page("text", "95 % Student t interval over repetitions", f"Every one of up to {runs} runs is shown")
