"""Fixtures of the browser test: `serve` with the model of BACKPACK_MODEL, and a page in Chromium."""

import json
import os
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
BINARY, MODEL = os.environ["BACKPACK_BINARY"], os.environ["BACKPACK_MODEL"]
TIMEOUT_SECONDS = 20  # long enough for a busy machine
# --no-sandbox is needed to run as root. The other flags disable Chromium's own network requests.
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1360,1000 --lang=en-US""".split()
# A host name of an attacker that resolves to this machine (DNS rebinding).
REBOUND = "--host-resolver-rules=MAP evil.example 127.0.0.1"
TIMINGS = {}  # milliseconds per request of the page, by endpoint


def backpack(*arguments):
    """Runs a command with --json and returns its output."""
    command = [BINARY, *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


class Server:
    """A `backpack serve` process."""

    def __init__(self):
        self.process = subprocess.Popen(
            [BINARY, "serve", "--model", MODEL, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        assert "http://" in line, line
        self.url = line.split(" at ")[1].strip()
        self.port = int(self.url.rstrip("/").rsplit(":", 1)[1])

    def ask(self, path, question):
        """Sends a request to the API without the browser and returns the response."""
        request = urllib.request.Request(
            f"{self.url}api/v1/{path}", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def end(self):
        """Stops the server and returns its exit code."""
        self.process.terminate()
        return self.process.wait(TIMEOUT_SECONDS)


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    assert server.end() == 0


class Page:
    """The page in the browser, with shortcuts to read and use it."""

    def __init__(self, driver, server):
        self.driver, self.server = driver, server

    def open(self, address=""):
        # The same path with another fragment would not reload the page.
        self.collect()
        self.driver.get("about:blank")
        self.driver.get(f"{self.server.url}{address}")
        self.until(lambda: "parameters" in self.one("#model").text)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        # One call for all elements, because a redrawn list invalidates elements between two calls.
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
        return self.driver.execute_script(script, selector)

    def click(self, selector):
        self.one(selector).click()

    def type(self, selector, text):
        field = self.one(selector)
        field.clear()
        field.send_keys(text)

    def until(self, condition, message="the condition was not met"):
        def is_met(_):
            try:
                return condition()
            except Exception:  # noqa: BLE001 the element does not exist yet
                return False

        return WebDriverWait(self.driver, TIMEOUT_SECONDS, 0.03).until(is_met, message)

    def run(self, script, *values):
        return self.driver.execute_script(script, *values)

    def screenshot(self, name):
        """Saves an image of the whole page."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return window.outerWidth")
        self.driver.set_window_size(width, max(600, height + 150))
        self.run("return new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        self.driver.save_screenshot(f"{os.environ['SCREENSHOTS']}/{name}.png")
        self.driver.set_window_size(width, 1000)

    def collect(self):
        """Records the times of the page's API requests."""
        script = "return performance.getEntriesByType('resource').map((entry) => [entry.name, entry.duration])"
        for name, milliseconds in self.run(script):
            if "/api/v1/" in name:
                TIMINGS.setdefault(name.split("/api/v1/")[1], []).append(milliseconds)

    def console(self):
        """Returns the errors in the browser's console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="session")
def browser(server, tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = os.environ["CHROMIUM"]
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in [*FLAGS, REBOUND, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(os.environ["CHROMEDRIVER"]))
        page = Page(driver, server)
        page.downloads = downloads
        yield page
        driver.quit()


@pytest.fixture
def page(browser):
    """The page. The test fails if the browser's console has errors."""
    browser.console()
    yield browser
    browser.collect()
    assert browser.console() == []


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("endpoint    requests  median ms  slowest ms")
    for name, times in sorted(TIMINGS.items()):
        times = sorted(times)
        terminalreporter.write_line(f"{name:<11} {len(times):>8} {times[len(times) // 2]:>10.0f} {times[-1]:>11.0f}")
