"""The page in a real browser: everything is drawn, nothing is asked for, and no name or width breaks it."""

import json
import shutil
import time

import pytest

from mmdistill.reports.answers import answers_of
from mmdistill.reports.page.document import page

DESKTOP, PHONE = (1280, 900), (360, 740)
HOSTILE = (
    "</script><script>document.title='owned'</script>{0}\"'><img src=x onerror=alert(1)> {{{{7*7}}}} "
    + "long" * 50
)


def _missing():
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)} on this machine" if absent else None


pytestmark = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


@pytest.fixture(scope="module")
def driver():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, telling):
    """Return the file of a page: plain, or of hostile names."""
    root = tmp_path_factory.mktemp("pages")
    for name, rename in (("plain", str), ("hostile", HOSTILE.format)):
        told = telling(rename)
        (root / f"{name}.html").write_text(
            page(answers_of(told.tables), lambda told=told: [told.search]), "utf-8"
        )
    return root


def opened(driver, path, size=DESKTOP, scheme="light"):
    """Open a page and wait until every chart is drawn; return what the browser logged and asked for."""
    driver.get_log("browser"), driver.get_log("performance")
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(path.as_uri())
    until = time.monotonic() + 60
    while driver.execute_script("return document.querySelector('.chart:not([data-drawn])') !== null"):
        assert time.monotonic() < until, driver.get_log("browser")
        time.sleep(0.05)
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return driver.get_log("browser"), asked


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_every_chart_is_drawn_without_an_error_or_a_request(driver, pages, name):
    path = pages / f"{name}.html"
    logged, asked = opened(driver, path)
    assert logged == []
    assert asked == [path.as_uri()]
    marks = driver.execute_script(
        "return [...document.querySelectorAll('.chart')]"
        ".map(c => c.querySelectorAll('svg path, svg line').length)"
    )
    assert len(marks) >= 20
    assert min(marks) > 3
    assert driver.execute_script("return document.querySelectorAll('.chart svg').length") == len(marks)


def test_hostile_names_are_text_and_nothing_else(driver, pages):
    opened(driver, pages / "hostile.html")
    found = driver.execute_script(
        "return [document.images.length, document.scripts.length,"
        " document.querySelectorAll('[onerror]').length, document.querySelector('h1').textContent,"
        " document.title.includes('owned\\'')]"
    )
    assert found[:3] == [0, 5, 0]
    assert found[3] == HOSTILE.format("told")
    assert found[4], "the title holds the name, and no script has replaced it"


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_a_phone_scrolls_the_tables_and_not_the_page(driver, pages, name):
    opened(driver, pages / f"{name}.html", PHONE)
    page_width, tables_scroll = driver.execute_script(
        "return [document.documentElement.scrollWidth,"
        " [...document.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth)]"
    )
    assert page_width <= PHONE[0]
    assert tables_scroll
    right = driver.execute_script(
        "return Math.max(...[...document.querySelectorAll('.chart svg')]"
        ".map(s => s.getBoundingClientRect().right))"
    )
    assert right <= PHONE[0]


CONTRAST = """
const channel = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
const page = light(getComputedStyle(document.body).backgroundColor);
const ratio = (c) => { const l = light(c); return (Math.max(l, page) + 0.05) / (Math.min(l, page) + 0.05); };
const texts = [...document.querySelectorAll('h1, h2, p, td, th, a, dt, dd, .chip, figcaption, h4')]
    .map((e) => ratio(getComputedStyle(e).color));
const labels = [...document.querySelectorAll('.chart text')].map((e) => ratio(getComputedStyle(e).fill));
const lines = [...document.querySelectorAll('.role-mark.mark-line path, .role-mark.mark-rule line')]
    .map((e) => getComputedStyle(e).stroke).filter((s) => s !== 'none').map(ratio);
return [page, Math.min(...texts), Math.min(...labels), Math.min(...lines)];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_charts_stand_out_from_the_page(driver, pages, scheme):
    opened(driver, pages / "plain.html", scheme=scheme)
    background, texts, labels, lines = driver.execute_script(CONTRAST)
    assert (background < 0.02) == (scheme == "dark")
    # WCAG 2.2: 4.5 for text, 3 for graphics.
    assert texts >= 4.5
    assert labels >= 4.5
    assert lines >= 3
