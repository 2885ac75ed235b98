"""A server over the model that BACKPACK_MODEL names, and a browser that looks at it."""

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
PATIENCE = 20  # seconds, on a machine that others use too
# Root has no sandbox; the others keep Chromium from asking the network for anything.
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1360,1000 --lang=en-US""".split()
# A name that an attacker would make to point here.
REBOUND = "--host-resolver-rules=MAP evil.example 127.0.0.1"
TIMINGS = {}  # milliseconds that the page waited, by question


def backpack(*arguments):
    """What a command prints as JSON."""
    command = [BINARY, *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


class Server:
    def __init__(self):
        self.process = subprocess.Popen(
            [BINARY, "serve", "--model", MODEL, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        assert "http://" in line, line
        self.url = line.split(" at ")[1].strip()
        self.port = int(self.url.rstrip("/").rsplit(":", 1)[1])

    def ask(self, path, question):
        """The API's answer, asked without the browser."""
        request = urllib.request.Request(
            f"{self.url}api/v1/{path}", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def end(self):
        self.process.terminate()
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    assert server.end() == 0


class Page:
    """The page in a browser, and short ways to look at it."""

    def __init__(self, driver, server):
        self.driver, self.server = driver, server

    def open(self, address=""):
        # The same path with another fragment would not load anew.
        self.collect()
        self.driver.get("about:blank")
        self.driver.get(f"{self.server.url}{address}")
        self.until(lambda: "parameters" in self.one("#model").text)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        # At once: elements of a list that is drawn anew go stale between two calls.
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
        return self.driver.execute_script(script, selector)

    def click(self, selector):
        self.one(selector).click()

    def type(self, selector, text):
        field = self.one(selector)
        field.clear()
        field.send_keys(text)

    def until(self, condition, message="nothing came of it"):
        def holds(_):
            try:
                return condition()
            except Exception:  # noqa: BLE001 what is not there yet
                return False

        return WebDriverWait(self.driver, PATIENCE, 0.03).until(holds, message)

    def run(self, script, *values):
        return self.driver.execute_script(script, *values)

    def screenshot(self, name):
        """The whole page, however long."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return window.outerWidth")
        self.driver.set_window_size(width, max(600, height + 150))
        self.run("return new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        self.driver.save_screenshot(f"{os.environ['SCREENSHOTS']}/{name}.png")
        self.driver.set_window_size(width, 1000)

    def collect(self):
        """Remembers how long the page's questions took."""
        script = "return performance.getEntriesByType('resource').map((entry) => [entry.name, entry.duration])"
        for name, milliseconds in self.run(script):
            if "/api/v1/" in name:
                TIMINGS.setdefault(name.split("/api/v1/")[1], []).append(milliseconds)

    def console(self):
        """What the browser complained of since it was last asked."""
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
    """The page, whose console must stay empty."""
    browser.console()
    yield browser
    browser.collect()
    assert browser.console() == []


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("question       asked  median ms  slowest ms")
    for name, times in sorted(TIMINGS.items()):
        times = sorted(times)
        terminalreporter.write_line(f"{name:<14} {len(times):>5} {times[len(times) // 2]:>10.0f} {times[-1]:>11.0f}")
