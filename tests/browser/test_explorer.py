"""Tests every view of the page as a user operates it, and compares it with the output of the program's commands."""

import http.server
import json
import threading
import time
import urllib.parse

from conftest import MODEL, Server, backpack
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

TEXT = "She was very glad that the government of the United States"
EDIT = {"word": "government", "sense": 3, "op": "scale", "factor": 2.5}


def displayed(word):
    """The text that the page displays for a token: no leading space, and escapes for invisible characters."""
    text = word["word"]
    bare = text[1:] if text.startswith(" ") and len(text) > 1 else text
    for character, escape in [("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")]:
        bare = bare.replace(character, escape)
    if bare and not bare.strip(" "):
        return "(space)"
    return f"#{word['token']}" if not bare or "\ufffd" in bare else bare


def fragment(**state):
    """The URL fragment for a state of the page."""
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in state.items()}
    return "#" + urllib.parse.urlencode(values)


def test_word_view_shows_senses_as_clouds_and_as_bars(page):
    page.open()
    assert page.until(lambda: len(page.all("#words .card")) == 16)
    page.type("#word", "house" + Keys.ENTER)
    page.until(lambda: page.one("#words .about strong").text == "house")
    printed = backpack("senses", "--model", MODEL, "house", "--top", 12)
    for sense, cloud in zip(printed["senses"], page.all("#words .cloud")):
        words = {button.text for button in cloud.find_elements("css selector", "button")}
        raised = [displayed(word) for word in sense["raises"]]
        # A few of the weakest words may not fit.
        assert len(words & set(raised)) >= 9, (sense["sense"], raised, words)
    page.screenshot("word-clouds")

    page.click("#words .choice button[data-value=bars]")
    bars = [li.text.split("\n") for li in page.all("#words .card:first-child .bars.raised li")]
    expected = [[displayed(word), f"{word['logit']:+.2f}"] for word in printed["senses"][0]["raises"][:8]]
    assert bars == expected
    assert page.texts("#words .norm")[5] == f"norm {printed['senses'][5]['norm']:.2f}"
    page.screenshot("word-bars")

    # A click on a word opens it, and "back" restores the previous word and its display as bars.
    first = page.one("#words .bars.raised .token")
    target = first.text
    first.click()
    page.until(lambda: page.one("#words .about strong").text == target)
    page.driver.back()
    page.until(lambda: page.one("#words .about strong").text == "house")
    assert page.one("#word").get_attribute("value") == "house"


def test_word_of_several_tokens_shows_error_and_its_tokens(browser):
    browser.open()
    browser.type("#word", "antidisestablishmentarianism" + Keys.ENTER)
    browser.until(lambda: "is not one token" in browser.one("#words .error").text)
    pieces = browser.texts("#words .about .token")
    assert "".join(pieces) == "antidisestablishmentarianism"
    browser.click("#words .about .token:last-child")
    browser.until(lambda: browser.one("#words .about strong").text == pieces[-1])
    assert not browser.one("#words .error").is_displayed()
    # The console has only the failed request.
    messages = browser.console()
    assert len(messages) == 1 and "422" in messages[0], messages


def test_sentence_view_shows_weights_by_sense_and_by_position(page):
    page.open("#view=sentence")
    page.type("#sentence-text", TEXT)
    page.until(lambda: page.texts("#sentence .strip .token") == TEXT.split())
    weights = page.server.ask("weights", {"text": TEXT})["senses"]
    page.until(lambda: len(page.all("#sentence .thumbnails canvas")) == 16)

    # Sense 5, read with the arrow keys: the first cell of the last row, then one up and one to the right.
    # The thumbnails are drawn again when the weights of the new text arrive: repeat the click until it succeeds.
    page.until(lambda: page.click("#sentence .thumbnails button[data-sense='5']") or True)
    page.until(lambda: "Sense 5:" in page.one("#sentence .panel .hint").text)
    canvas = page.one("#sentence .heatmap canvas")
    page.run("arguments[0].focus()", canvas)
    canvas.send_keys(Keys.ARROW_UP, Keys.ARROW_RIGHT)
    number = f"{weights[5]['weights'][9][1]:.4f}"
    readout = page.one("#sentence .readout").text
    assert readout == f'After "United": sense 5 of "was" has weight {number}', readout
    colors = "const c = arguments[0]; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; "
    colors += "return new Set(new Uint32Array(d.buffer)).size"
    assert page.run(colors, canvas) > 20
    page.screenshot("sentence-by-sense")

    # Another position, selected by its token: all senses of all words up to that position.
    page.click("#sentence .strip .token:nth-child(7)")
    page.click("#sentence .choice button[data-value=word]")
    page.until(lambda: 'After "government"' in page.one("#sentence .panel .hint").text)
    reading = page.server.ask("reading", {"text": TEXT, "position": 6, "top": 12})
    page.until(lambda: page.texts("#sentence .next .token") == [displayed(word) for word in reading["next"]])
    by_position = page.all("#sentence .heatmap canvas")[1]
    ActionChains(page.driver).move_to_element(by_position).perform()
    page.until(lambda: page.texts("#sentence .readout")[1].startswith('After "government": sense '))
    readout = page.texts("#sentence .readout")[1]
    sense, word = int(readout.split("sense ")[1].split(" ")[0]), readout.split('"')[3]
    column = TEXT.split().index(word)
    assert readout.endswith(f"has weight {reading['weights'][sense][column]:.4f}"), readout


def test_contributions_sum_to_the_logit(page):
    page.open(fragment(view="sentence", text=TEXT))
    page.until(lambda: len(page.all("#sentence .next li")) == 12)
    # The list is drawn again when the weights arrive.
    page.until(lambda: len(page.all("#sentence .thumbnails canvas")) == 16)
    page.click("#sentence .next li:nth-child(2) .token")
    page.until(lambda: page.one("#sentence .sum").is_displayed())
    token = page.server.ask("reading", {"text": TEXT})["next"][1]
    answer = page.server.ask("contributions", {"text": TEXT, "token": token["token"]})
    assert page.one("#sentence .stack .panel:nth-child(2) h2").text == f'Contributions to "{displayed(token)}"'
    summed = page.one("#sentence .sum").text
    logit = f"{token['logit']:.4f}"
    start = f"16 senses of {len(TEXT.split())} words contribute {logit} in total. Logit: {logit}."
    assert summed.startswith(start), summed
    flat = [(part, sense, at) for sense, row in enumerate(answer["contributions"]) for at, part in enumerate(row)]
    largest, sense, at = max(flat, key=lambda part: abs(part[0]))
    first = page.texts("#sentence .parts li")[0]
    sign = "\u2212" if largest < 0 else "+"
    assert first.startswith(f"{sign}{abs(largest):.3f} sense {sense} of {TEXT.split()[at]}"), first
    page.screenshot("sentence-attribution")

    page.type("#other-word", "house" + Keys.ENTER)
    page.until(lambda: page.one("#sentence .stack .panel:nth-child(2) h2").text == 'Contributions to "house"')
    answer = page.server.ask("contributions", {"text": TEXT, "word": "house"})
    assert f"Logit: {answer['next']['logit']:.4f}." in page.one("#sentence .sum").text


def test_slider_changes_next_words_and_double_click_resets_it(page):
    page.open(fragment(view="edit", text=TEXT, word="States"))
    page.until(lambda: len(page.all("#edit .slider")) == 16)
    page.until(lambda: "No edits." in page.one("#edit .effect.hint, #edit .panel .hint[aria-live]").text)
    slider = page.one("#sense-5")
    # Dragged from 1, at a third of the width, to the right end.
    ActionChains(page.driver).drag_and_drop_by_offset(slider, 200, 0).perform()
    page.until(lambda: page.one("#edit .slider.changed input[type=number]").get_attribute("value") == "3")
    page.until(lambda: "Kullback" in page.one("#edit .panel .hint[aria-live]").text)
    edits = json.loads(page.one("#edit-json").get_attribute("value"))
    assert edits == {"edits": [{"word": "States", "sense": 5, "op": "scale", "factor": 3}]}

    def rows():
        return [row.split("\t") for row in page.run(
            "return [...document.querySelectorAll('#edit tbody tr')].map((row) => "
            "[...row.children].map((cell) => cell.textContent).join('\\t'))")]

    def percent(share):
        return f"{100 * share:.1f}%" if share >= 0.0995 else f"{100 * share:.2f}%"

    def expected():
        words = page.server.ask("next", {"text": TEXT, "top": 14, **edits})["words"]
        words.sort(key=lambda w: -max(w["before"]["probability"], w["after"]["probability"]))
        sides = ("before", "after")
        return [[displayed(w), *(percent(w[side]["probability"]) for side in sides)] for w in words[:14]]

    page.until(lambda: rows() == expected(), "the table differs from the API")
    assert page.one("#edit .strip .token:last-child").get_attribute("class").endswith("edited")
    page.screenshot("edit")

    # A factor outside the range of the slider, typed into the number field; then a reset by double click.
    number = page.one("#edit .slider.changed input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("-2" + Keys.TAB)
    edits["edits"][0]["factor"] = -2
    page.until(lambda: json.loads(page.one("#edit-json").get_attribute("value")) == edits)
    page.until(lambda: rows() == expected(), "the table differs from the API")
    ActionChains(page.driver).double_click(slider).perform()
    page.until(lambda: page.all("#edit .slider.changed") == [])
    page.until(lambda: "No edits." in page.one("#edit .panel .hint[aria-live]").text)
    assert json.loads(page.one("#edit-json").get_attribute("value")) == {"edits": []}


def test_edits_are_downloaded_and_opened_again(page):
    page.open(fragment(view="edit", text=TEXT, word="government", edits=[EDIT]))
    page.until(lambda: page.one("#edit .slider.changed input[type=number]").get_attribute("value") == "2.5")
    buttons = {button.text: button for button in page.all("#edit .panel .row button")}
    buttons["Download"].click()
    file = page.downloads / "edits.json"
    page.until(file.is_file)
    assert json.loads(file.read_text()) == {"edits": [EDIT]}
    buttons["Remove all"].click()
    page.until(lambda: page.all("#edit .slider.changed") == [])
    page.one("#edit-file").send_keys(str(file))
    page.until(lambda: len(page.all("#edit .slider.changed")) == 1)
    assert page.texts("#edit .edits li") == ["government sense 3 \u00d7 2.5 remove"]
    # The URL contains the edits after a short delay.
    page.until(lambda: "2.5" in page.run("return location.hash"))
    page.driver.refresh()
    page.until(lambda: page.texts("#edit .edits li") == ["government sense 3 \u00d7 2.5 remove"])
    # The list is drawn again when the senses arrive.
    page.until(lambda: len(page.all("#edit .slider")) == 16)
    page.click("#edit .edits li button.quiet")
    page.until(lambda: page.all("#edit .edits li") == [])


def test_generation_with_and_without_edits(page, tmp_path):
    page.open(fragment(view="generate", text=TEXT, edits=[EDIT], length=12, seed=3))
    page.click("#generate button.main")
    file = tmp_path / "edits.json"
    file.write_text(json.dumps({"edits": [EDIT]}))
    command = ["generate", "--model", MODEL, "--prompt", TEXT, "--max-new-tokens", 12, "--seed", 3, "--top-k", 50]
    original, edited = backpack(*command)["text"], backpack(*command, "--edit", file)["text"]
    page.until(lambda: page.texts("#original .text") == [original])
    page.until(lambda: page.texts("#edited .text") == [edited])
    page.screenshot("generate")
    page.click("#generate-greedy")
    page.click("#generate button.main")
    greedy = backpack(*command[:-4], "--greedy")["text"]
    page.until(lambda: page.texts("#original .text") == [greedy])


def test_characters_of_several_tokens_are_displayed_whole(page):
    text = "\u201cIt\u2019s a truth universally acknowledged,\u201d she said"
    page.open(fragment(view="generate", text=text, length=8, greedy=True))
    page.click("#generate button.main")
    printed = backpack("generate", "--model", MODEL, "--prompt", text, "--max-new-tokens", 8, "--greedy")["text"]
    page.until(lambda: page.texts("#original .text") == [printed])
    assert page.texts("#original .prompt") == [text]


def test_sliders_with_edits_of_other_kinds(page):
    zero = {"word": "States", "sense": 3, "op": "zero"}
    page.open(fragment(view="edit", text=TEXT, word="States", edits=[zero]))
    page.until(lambda: page.one("#edit .slider.changed input[type=number]").get_attribute("value") == "0")
    everything = {"word": "States", "sense": "all", "op": "scale", "factor": 0.5}
    page.open(fragment(view="edit", text=TEXT, word="States", edits=[everything]))
    page.until(lambda: len(page.all("#edit .slider input[type=range]:disabled")) == 16)
    page.click("#edit .edits li button.quiet")
    page.until(lambda: page.all("#edit .slider input[type=range]:disabled") == [])
    # An invalid edit in the URL is ignored.
    page.open(fragment(view="edit", text=TEXT, word="States", edits=[None]))
    page.until(lambda: len(page.all("#edit .slider")) == 16)
    assert page.texts("#edit .edits li") == []


def test_views_keep_state_and_fit_dark_and_narrow_pages(page):
    page.open(fragment(view="sentence", text=TEXT, at=6, lens="word"))
    page.until(lambda: page.one("#sentence .strip .token:nth-child(7)").get_attribute("aria-pressed") == "true")
    page.click("nav a[data-view=edit]")
    page.until(lambda: page.one("#edit .strip .token:nth-child(7)").get_attribute("aria-pressed") == "true")
    page.driver.back()
    page.until(lambda: page.one("#sentence").is_displayed())
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert page.run("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(20, 23, 26)"
    page.screenshot("sentence-dark")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for view in ["words", "sentence", "edit", "generate"]:
        page.open(fragment(view=view, text=TEXT))
        page.driver.set_window_size(520, 1000)
        page.until(lambda: page.run("return !document.querySelector('[aria-busy]')"))
        time.sleep(0.2)
        wider = page.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"{view} is {wider} pixels wider than the window"
    page.screenshot("generate-narrow")
    page.driver.set_window_size(1360, 1000)


def test_every_control_has_an_accessible_name(page):
    unnamed = """return [...document.querySelectorAll('button, input, textarea, canvas[tabindex]')].filter((element) =>
        !(element.textContent.trim() || element.getAttribute('aria-label') || element.labels?.length))
        .map((element) => element.outerHTML)"""
    for view in ["words", "sentence", "edit", "generate"]:
        page.open(fragment(view=view, text=TEXT))
        page.until(lambda: len(page.all(f"#{view} button")) > 1)
        assert page.run(unnamed) == [], view


def test_too_long_text_shows_error(browser):
    browser.open("#view=sentence")
    browser.run(
        "const area = document.getElementById('sentence-text'); area.value = arguments[0];"
        "area.dispatchEvent(new Event('input'))",
        "word " * 600,
    )
    browser.until(lambda: "more than the model's context" in browser.one("#sentence .error").text)
    messages = browser.console()
    assert len(messages) == 1 and "413" in messages[0], messages


class OtherSite:
    """A page of another origin on this machine."""

    def __enter__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<!doctype html><title>another site</title>")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_):
        self.server.shutdown()


def test_requests_from_other_sites_are_refused(browser):
    fetched = """const [url, options, done] = arguments;
        fetch(url, options).then((r) => r.text()).then((text) => done(`read: ${text}`), (e) => done(`refused: ${e}`))"""
    url = f"{browser.server.url}api/v1/"
    with OtherSite() as other:
        browser.collect()
        browser.driver.get(other)
        for path, options in [
            ("model", {}),
            ("senses", {"method": "POST", "body": '{"token": 5}'}),
            ("senses", {"method": "POST", "body": '{"token": 5}', "headers": {"content-type": "application/json"}}),
        ]:
            assert browser.driver.execute_async_script(fetched, url + path, options).startswith("refused: "), path
        # A request without CORS is refused too.
        blind = browser.driver.execute_async_script(fetched, url + "model", {"mode": "no-cors"})
        assert blind.startswith("refused: "), blind
    # A host name of an attacker that resolves to this machine is refused (DNS rebinding).
    browser.driver.get(f"http://evil.example:{browser.server.port}/")
    assert "is not this server's" in browser.one("body").text
    browser.console()


def test_stopped_server_shows_error(browser):
    server, stopped = browser.server, Server()
    browser.server = stopped
    try:
        browser.open()
        assert stopped.end() == 0
        browser.type("#word", "house" + Keys.ENTER)
        browser.until(lambda: "is backpack serve still running?" in browser.one("#words .error").text)
    finally:
        browser.server = server
        browser.console()
