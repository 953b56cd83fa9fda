"""The page in a real browser: it works, and it asks nobody for anything."""

import base64
import json
import shutil

import pytest
from record_factory import claim, make_record

from suite import report
from suite.store import Store

wait = pytest.importorskip("selenium.webdriver.support.wait", reason="selenium is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs chromium and chromedriver on the path", allow_module_level=True)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",
)
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
LONG = "a_claim_with_a_very_long_name_without_any_place_to_break_it_" * 3


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("page"))
    picture = store.put_artifact("pixel.png", PIXEL).model_dump()
    claims = [claim(), claim(text=LONG, left="book", right="fixed", note="Because it does not.")]
    for variant, base in (("fixed", 0.97), ("dropout", 0.96), ("book", 0.9)):
        for seed in range(4):
            for profile in ("paper", "laptop"):
                store.put(
                    make_record(
                        "ch05.mnist",
                        variant=variant,
                        seed=seed,
                        value=base + seed / 1000,
                        profile=profile,
                        claims=claims,
                        title="<b>Digits</b>",
                        artifacts=[picture],
                    )
                )
    for seed in range(3):
        store.put(make_record("ch12.copy", seed=seed, value=0.5 + seed / 10, title=LONG))
    report.write(store)
    return f"file://{store.path('index.html')}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, url):
    """The page freshly opened at 1280 x 900, light."""
    resize(browser, 1280, 900)
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(url)
    browser.execute_script("localStorage.clear(); document.documentElement.dataset.theme = 'light'")
    return browser


def resize(browser, width, height):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def find(page, selector):
    return page.find_element("css selector", selector)


def eventually(page, condition):
    """What the browser does in a later turn of its event loop holds before long."""
    wait.WebDriverWait(page, 60).until(lambda _: condition())


def texts(page, selector):
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(e => e.offsetParent).map(e => e.textContent.trim())",
        selector,
    )


def variants(page):
    return texts(page, '.results tbody[data-task="ch05.mnist"] tr.row th b')


def requested(page):
    """The addresses that were asked for since the log was last read."""
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]


def test_nothing_is_fetched_and_nothing_fails(page, url):
    for details in page.find_elements("css selector", "details"):
        page.execute_script("arguments[0].open = true; arguments[0].scrollIntoView()", details)
    page.execute_async_script("setTimeout(arguments[0], 300)")
    sent = requested(page)
    assert url in sent
    assert not [u for u in sent if not u.startswith(("file://", "data:"))]
    beside = url.rpartition("/")[0] + "/artifacts/"
    assert all(u == url or u.startswith(beside) for u in sent if u.startswith("file://"))
    assert page.get_log("browser") == []


def pictures_appear(page):
    """The first picture is loaded and is the pixel that it should be."""
    images = page.find_elements("css selector", "article img")
    assert images
    for details in page.find_elements("css selector", "details"):
        page.execute_script("arguments[0].open = true", details)
    page.execute_script("arguments[0].scrollIntoView()", images[0])
    eventually(
        page, lambda: page.execute_script("return arguments[0].naturalWidth === 1", images[0])
    )


def test_pictures_are_shown(page):
    pictures_appear(page)


def test_one_file_shows_its_pictures_far_from_the_store(page, url, tmp_path):
    store = Store(url.removeprefix("file://").rpartition("/")[0])
    alone = tmp_path / "alone.html"
    alone.write_text(report.one_file(store, report.build(store)))
    page.get_log("performance")
    page.get(alone.as_uri())
    pictures_appear(page)
    assert {u for u in requested(page) if not u.startswith("data:")} == {alone.as_uri()}
    assert page.get_log("browser") == []


def test_titles_are_text(page):
    assert "<b>Digits</b>" in texts(page, "article h3")[0]


def test_a_click_sorts_and_says_so(page):
    button = find(page, ".results thead th:nth-child(4) button")
    header = find(page, ".results thead th:nth-child(4)")
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert variants(page) == ["book", "book", "dropout", "dropout", "fixed", "fixed"]
    button.click()
    assert header.get_attribute("aria-sort") == "descending"
    assert variants(page) == ["fixed", "fixed", "dropout", "dropout", "book", "book"]


def test_enter_sorts_and_takes_the_sentences_along(page):
    find(page, ".results thead th:nth-child(1) button").send_keys("\n")
    assert find(page, ".results thead th:nth-child(1)").get_attribute("aria-sort") == "ascending"
    assert variants(page)[:2] == ["book", "book"]
    order = page.execute_script(
        "return [...document.querySelectorAll('.results tbody')[0].rows].map(r => r.className)"
    )
    assert order == ["group", "row", "why", "row", "why", "row", "row", "row", "row"]


def test_the_filters_hide_rows_and_come_back(page):
    everything = variants(page)
    find(page, '.toggle[data-word="CONTRADICTED"]').click()
    assert variants(page) == ["book", "book"]
    assert "of" in find(page, "#shown").text
    find(page, "#profile").send_keys("laptop")
    assert variants(page) == ["book"]
    find(page, "#find").send_keys("no such thing")
    assert variants(page) == []
    assert find(page, "#nothing").is_displayed()
    find(page, "#reset").click()
    eventually(page, lambda: variants(page) == everything)
    assert not find(page, "#nothing").is_displayed()


def test_a_text_finds_a_task(page):
    find(page, "#find").send_keys("ch12")
    assert variants(page) == []
    assert texts(page, ".overview tr[data-task] code") == ["ch12.copy"]


def test_details_open_with_the_provenance_and_close(page):
    button = find(page, ".results .more")
    button.click()
    dialog = find(page, "dialog")
    assert dialog.get_attribute("open") is not None
    assert "1a2b3c4d5e6f708192a3b4c5d6e7f80918273645" in dialog.text
    assert len(page.find_elements("css selector", "#details-seeds tbody tr")) == 4
    page.switch_to.active_element.send_keys("\ue00c")
    eventually(page, lambda: dialog.get_attribute("open") is None)
    eventually(page, lambda: page.switch_to.active_element == button)
    find(page, ".claims .more").click()
    assert "paired by seed" in dialog.text
    find(page, "#close").click()
    assert dialog.get_attribute("open") is None


def test_the_theme_follows_the_system_until_chosen(page, url):
    def background():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    page.execute_script("delete document.documentElement.dataset.theme")
    seen = {}
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        seen[scheme] = background()
    assert seen["light"] != seen["dark"]
    # The button hears of the new scheme in an event, after the style has changed.
    eventually(page, lambda: find(page, "#theme").get_attribute("aria-pressed") == "true")
    find(page, "#theme").click()
    assert background() == seen["light"]
    page.get(url)
    assert background() == seen["light"]
    page.execute_script("localStorage.clear()")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize(("width", "height"), [(360, 740), (768, 1024), (1280, 900)])
def test_the_body_never_scrolls_sideways(page, width, height):
    resize(page, width, height)
    eventually(page, lambda: page.execute_script("return innerWidth") == width)
    for details in page.find_elements("css selector", "details"):
        page.execute_script("arguments[0].open = true", details)
    root = page.execute_script(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth, innerWidth]"
    )
    assert root == [width] * 3
    find(page, ".results .more").click()
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    dialog = find(page, "dialog")
    assert page.execute_script(
        "const d = arguments[0]; return d.scrollWidth <= d.clientWidth", dialog
    )


CONTRAST = """
  const canvas = document.createElement('canvas').getContext('2d');
  const parse = (colour, under) => {
    for (const fill of [under, colour]) { canvas.fillStyle = fill; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const page = getComputedStyle(document.body).backgroundColor;
  const low = [];
  for (const e of document.querySelectorAll('.chip, .tally, small, .more, a, p, dd, summary')) {
    const style = getComputedStyle(e);
    const [x, y] = [parse(style.color, page), parse(style.backgroundColor, page)]
      .map(light).sort((a, b) => b - a);
    if ((x + .05) / (y + .05) < 4.5) low.push([e.className || e.tagName, (x + .05) / (y + .05)]);
  }
  return low;"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(page, theme):
    page.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    assert page.execute_script(CONTRAST) == []


def test_everything_that_can_be_pressed_has_a_name(page):
    nameless = page.execute_script("""
        return [...document.querySelectorAll('button, a, select, input, summary, [role=region]')]
          .filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length))
          .map(e => e.outerHTML)""")
    assert nameless == []
