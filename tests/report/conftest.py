"""Pages of real runs, and a browser that shows them."""

import contextlib
import shutil
from pathlib import Path

import pytest

from edkd.report.analysis import Analyst
from edkd.report.page import page
from edkd.report.predictions import prediction_sections
from edkd.report.subject import subjects_of
from edkd.results.runs import read_run
from tests.html_tables import Tables
from tests.results.conftest import write_run as write_run

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="session")
def runs(digits_runs):
    """Two seeds of KD, a student alone, two students of DML."""
    return [read_run(folder) for name, folder in digits_runs.items() if name != "teacher"]


@pytest.fixture(scope="session")
def findings(runs):
    """The rows of these runs, evaluated."""
    (subject,) = subjects_of(runs)
    return Analyst("cpu", lambda line: None).findings(subject)


@pytest.fixture(scope="session")
def text(runs, findings):
    """Their page."""
    return page(runs, ["x holds no finished run"], lambda subject: prediction_sections(findings))


@pytest.fixture(scope="session")
def page_file(text, tmp_path_factory):
    """The file of that page."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tables(text):
    """The tables of the page."""
    return Tables(text).found


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium; it logs network requests and messages of the console."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver on the PATH")

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})

    service = webdriver.chrome.service.Service(DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    with contextlib.suppress(OSError):
        driver.quit()


@pytest.fixture
def show(browser):
    """show(file, width, height, theme): load a page in a window of that size."""

    def show(path, width=1280, height=900, theme="light"):
        is_phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": is_phone})
        scheme = {"name": "prefers-color-scheme", "value": theme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

        for name in ("browser", "performance"):
            browser.get_log(name)
        browser.get(Path(path).as_uri())
        return browser

    return show
