"""The page, opened from the disk in a real browser: what it shows, and what a person can do with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

import sdconvert
from tests.browser import BROWSER, DRIVER, browser, open_file, prefer

NASTY = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
ODD = "<!--<script>"

needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="there is no Chromium with its driver here (apt-get install chromium-driver)"
)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch marker",)


def language_model(layers: int = 12) -> dict[str, torch.Tensor]:
    state = {"model.embed.weight": torch.zeros(300, 64)}
    for layer in range(layers):
        for part in ("attn.q_proj", "attn.k_proj", "mlp.up", "mlp.down"):
            state[f"model.layers.{layer}.{part}.weight"] = torch.zeros(64, 64, dtype=torch.float16)
        state[f"model.layers.{layer}.norm.weight"] = torch.ones(64)
    return state | {"model.head.weight": torch.zeros(9, 64), "lm_head.weight": state["model.embed.weight"]}


Page = Callable[[object], Path]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """`page(obj)` saves an object with torch and writes the page about it."""

    def page(obj: object) -> Path:
        torch.save(obj, tmp_path / "m.pt")
        sdconvert.inspect(tmp_path / "m.pt").write_html(tmp_path / "page.html")
        return tmp_path / "page.html"

    return page


@pytest.fixture(scope="module")
def shared_driver() -> Iterator[Chrome]:
    with browser() as driver:
        yield driver


@pytest.fixture
def driver(shared_driver: Chrome) -> Iterator[Chrome]:
    prefer(shared_driver, prefers_color_scheme="light", prefers_reduced_motion="reduce")
    shared_driver.get_log("browser")  # Those of the test before.
    yield shared_driver
    assert shared_driver.get_log("browser") == []  # No error, and nothing that the page's own policy had to stop.


def one(driver: Chrome, selector: str) -> WebElement:
    return driver.find_element(By.CSS_SELECTOR, selector)


def texts(driver: Chrome, selector: str) -> list[str]:
    return [element.text for element in driver.find_elements(By.CSS_SELECTOR, selector)]


def names(driver: Chrome) -> list[str]:
    """The names in the table of tensors, without the notes below them."""
    return [text.split("\n")[0] for text in texts(driver, "#tensors td.name")]


def cell(driver: Chrome, label: str) -> WebElement:
    """The box of the treemap that can be clicked, by the path of its module."""
    return one(driver, f'#treemap .cell[aria-label^="{label}:"]')


def trail(driver: Chrome) -> list[str]:
    return texts(driver, "#trail li")


def header(driver: Chrome, title: str) -> WebElement:
    return driver.find_element(By.XPATH, f"//section[@id='tensors']//th/button[text()='{title}']")


# ---- Without a browser ----


def test_two_thousand_tensors_are_less_than_one_and_a_half_megabytes(page: Page) -> None:
    path = page({f"model.decoder.layers.{i // 20}.self_attention.{i}.weight": torch.zeros(2, 3) for i in range(2000)})
    assert path.stat().st_size < 1_500_000


def test_nothing_is_fetched_and_no_name_ends_the_data(page: Page) -> None:
    text = page({NASTY: torch.ones(2), ODD: torch.ones(3), "{{script}}": torch.ones(1)}).read_text()
    assert text.count("</script>") == 3
    assert "<img" not in text
    assert "<!--" not in text
    assert "<script src" not in text
    assert "<link" not in text
    assert "default-src 'none'" in text
    assert text.count('"use strict"') == 2  # The chart's and the page's: {{script}} in a name is not filled in.


def test_the_librarys_licence_is_in_the_page(page: Page) -> None:
    text = page({"a.w": torch.ones(1)}).read_text()
    assert "Permission to use, copy, modify, and/or distribute this software" in text
    assert "Mike Bostock" in text


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    torch.save({"a.w": torch.ones(1)}, tmp_path / "m.pt")
    before = (tmp_path / "m.pt").read_bytes()
    found = sdconvert.inspect(tmp_path / "m.pt")
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(sdconvert.OutputError, match="--overwrite"):
        found.write_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "mine"
    found.write_html(tmp_path / "page.html", overwrite=True)
    assert (tmp_path / "page.html").read_text() == found.to_html()
    with pytest.raises(sdconvert.ChoiceError, match="is the source itself"):
        found.write_html(tmp_path / "m.pt", overwrite=True)
    with pytest.raises(sdconvert.OutputError):
        found.write_html(tmp_path / "no" / "page.html")
    assert (tmp_path / "m.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "page.html"]


# ---- In a browser ----


@needs_browser
def test_the_facts_are_at_the_top(driver: Chrome, page: Page) -> None:
    open_file(driver, page({"epoch": 3, "state_dict": language_model(), "optimizer": {"m": torch.ones(1)}}))
    assert one(driver, "h1").text.endswith("m.pt")
    assert one(driver, "#about").text == (
        "torch-zip (torch 2.7 or later): a state dict inside a checkpoint, at state_dict"
    )
    tiles = dict(zip(texts(driver, "#tiles dt"), texts(driver, "#tiles dd"), strict=True))
    assert tiles["Parameters"].split("\n") == ["217k", "217,152"]
    assert tiles["Tensors"].split("\n") == ["62", "and 1 tied to them"]
    assert texts(driver, "#dtypes td:first-child") == ["float16", "float32"]
    assert texts(driver, "#skipped li") == ["epoch not a tensor (int)", "optimizer training state"]
    assert "4 known and harmless" in one(driver, "#globals").text


@needs_browser
def test_clicks_go_into_the_treemap_and_out_again(driver: Chrome, page: Page) -> None:
    open_file(driver, page(language_model()))
    assert trail(driver) == ["all"]
    cell(driver, "model").click()
    assert trail(driver) == ["all", "model"]
    assert one(driver, "#count").text == "62 of 62 tensors in model"
    cell(driver, "model.layers").click()
    cell(driver, "model.layers.7").click()
    assert trail(driver) == ["all", "model", "layers", "7"]
    assert names(driver) == [name for name in language_model() if ".layers.7." in name]
    labels = [element.get_attribute("aria-label") or "" for element in driver.find_elements(By.CSS_SELECTOR, ".cell")]
    assert [label.partition(":")[0] for label in labels] == [
        f"model.layers.7.{part}" for part in ("attn", "mlp", "norm")
    ]
    assert labels[0] == "model.layers.7.attn: 2 tensors, 8,192 parameters, 16.4\u00a0kB, 49.8 % of model.layers.7"
    driver.find_element(By.XPATH, "//ol[@id='trail']//button[text()='layers']").click()
    assert trail(driver) == ["all", "model", "layers"]
    assert len(driver.find_elements(By.CSS_SELECTOR, ".cell")) == 12
    driver.find_element(By.XPATH, "//ol[@id='trail']//button[text()='all']").click()
    assert one(driver, "#count").text == "63 of 63 tensors"


@needs_browser
def test_areas_are_as_the_parameters_are(driver: Chrome, page: Page) -> None:
    open_file(driver, page({"a.w": torch.zeros(300, 10), "b.w": torch.zeros(100, 10), "c.w": torch.zeros(0)}))
    areas = {}
    for element in driver.find_elements(By.CSS_SELECTOR, ".cell"):
        areas[(element.get_attribute("aria-label") or "")[0]] = element.size["width"] * element.size["height"]
    assert areas.keys() == {"a", "b"}
    assert 2.9 < areas["a"] / areas["b"] < 3.1


@needs_browser
def test_it_works_by_keyboard_alone(driver: Chrome, page: Page) -> None:
    open_file(driver, page(language_model()))

    def press(*keys: str) -> None:
        for key in keys:
            driver.switch_to.active_element.send_keys(key)

    def focused() -> str:
        return (driver.switch_to.active_element.get_attribute("aria-label") or "").partition(":")[0]

    for _ in range(10):
        if focused() == "model":
            break
        press(Keys.TAB)
    press(Keys.ENTER)
    assert trail(driver) == ["all", "model"]
    assert focused() == "model.layers"
    press(Keys.ENTER)
    first = focused()
    press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert focused().startswith("model.layers.")
    assert focused() != first
    here = focused()
    press(Keys.ENTER, Keys.ESCAPE)
    assert (trail(driver), focused()) == (["all", "model", "layers"], here)
    press(Keys.END)
    assert focused() == "model.layers.11"
    press(Keys.ESCAPE, Keys.ESCAPE)
    assert trail(driver) == ["all"]
    press("/")
    press("head")
    assert names(driver) == ["model.head.weight", "lm_head.weight"]


@needs_browser
def test_the_table_sorts_by_each_column(driver: Chrome, page: Page) -> None:
    state = {
        "layer.10.w": torch.zeros(5, 2),
        "layer.9.w": torch.zeros(3),
        "a.w": torch.zeros(1, 2, 2, dtype=torch.float64),
        "b.w": torch.zeros(1, dtype=torch.int8),
    }
    open_file(driver, page(state))
    assert names(driver) == list(state)
    for title, expected in (
        ("Name", ["a.w", "b.w", "layer.9.w", "layer.10.w"]),  # Numbers as numbers.
        ("Dtype", ["layer.10.w", "layer.9.w", "a.w", "b.w"]),
        ("Shape", ["layer.9.w", "b.w", "layer.10.w", "a.w"]),
        ("Parameters", ["layer.10.w", "a.w", "layer.9.w", "b.w"]),
        ("Size", ["layer.10.w", "a.w", "layer.9.w", "b.w"]),
        ("#", list(state)),
    ):
        header(driver, title).click()
        assert names(driver) == expected
        direction = one(driver, "#tensors th[aria-sort]").get_attribute("aria-sort")
        assert direction == ("descending" if title in ("Parameters", "Size") else "ascending")
    header(driver, "#").click()
    assert names(driver) == list(state)[::-1]


@needs_browser
def test_the_table_filters_by_words_and_dtype(driver: Chrome, page: Page) -> None:
    open_file(driver, page(language_model()))
    field = one(driver, "#filter")
    field.send_keys("11 PROJ")
    assert names(driver) == [f"model.layers.11.attn.{part}_proj.weight" for part in "qk"]
    assert one(driver, "#count").text == "2 of 63 tensors"
    field.clear()
    field.send_keys("no such tensor")
    assert names(driver) == []
    driver.find_element(By.XPATH, "//section[@id='dtypes']//button[text()='float32']").click()
    assert len(names(driver)) == 15
    assert set(texts(driver, "#tensors tbody td:nth-child(3)")) == {"float32"}


@needs_browser
def test_a_long_table_grows_on_demand(driver: Chrome, page: Page) -> None:
    open_file(driver, page({f"l.{i}.w": torch.zeros(1) for i in range(450)}))
    assert len(names(driver)) == 200
    one(driver, "#more").click()
    one(driver, "#more").click()
    assert len(names(driver)) == 450
    assert not one(driver, "#more").is_displayed()


@needs_browser
def test_ties_are_found_and_lead_to_their_tensors(driver: Chrome, page: Page) -> None:
    open_file(driver, page(language_model()))
    cell(driver, "model").click()
    assert texts(driver, "#ties li") == ["model.embed.weight = lm_head.weight"]
    driver.find_elements(By.CSS_SELECTOR, "#ties button")[1].click()
    assert texts(driver, "#tensors td.name") == ["lm_head.weight\ntied to model.embed.weight"]
    assert trail(driver) == ["all"]  # It is not below the module that was open.


@needs_browser
def test_a_thousand_names_of_one_tensor_are_counted(driver: Chrome, page: Page) -> None:
    tensor = torch.ones(2)
    open_file(driver, page({f"n{i}.w": tensor for i in range(1000)}))
    (tie,) = texts(driver, "#ties li")
    assert tie.startswith("n0.w = n1.w = ")
    assert tie.endswith(" = n29.w = 970 more")


@needs_browser
def test_candidates_are_listed_with_the_flag_that_picks_them(driver: Chrome, page: Page) -> None:
    open_file(driver, page({"generator": language_model(2), "discriminator": {"c.w": torch.ones(5)}}))
    rows = [row.split("\n") for row in texts(driver, "#candidates tbody tr")]
    assert rows[0][0].startswith("--key generator")
    assert rows[1][0].startswith("--key discriminator")
    assert "several state dicts" in one(driver, "#problems").text
    cell(driver, "generator").click()
    assert trail(driver) == ["all", "generator"]


@needs_browser
def test_dangerous_globals_are_at_the_top_and_explained(driver: Chrome, page: Page, tmp_path: Path) -> None:
    open_file(driver, page({"w": torch.ones(2), "x": Evil()}))
    assert "posix.system" in one(driver, "#problems").text
    one(driver, "#problems a").click()
    assert "1 looks dangerous" in one(driver, "#globals").text
    assert not (tmp_path / "marker").exists()


@needs_browser
def test_names_are_text_wherever_they_stand(driver: Chrome, page: Page) -> None:
    tied = torch.ones(4, 4)
    weights = {f"a.{NASTY}": tied, f"b.{NASTY}": tied, ODD: torch.ones(3), "{{data}}": torch.ones(2)}
    state = {"model": weights, NASTY: "left out", "rtl.\u202egnp.exe": torch.ones(3)}
    open_file(driver, page(state))
    assert driver.title.endswith("m.pt")
    assert driver.find_elements(By.CSS_SELECTOR, "main img, main script") == []
    assert names(driver) == [f"a.{NASTY}", f"b.{NASTY}", ODD, "{{data}}"]
    assert texts(driver, "#ties li") == [f"a.{NASTY} = b.{NASTY}"]
    assert NASTY in texts(driver, "#skipped li")[0]
    assert "rtl.\\u{202e}gnp.exe" in one(driver, "#skipped").text
    for element in driver.find_elements(By.CSS_SELECTOR, ".cell"):
        element.send_keys(Keys.SHIFT)  # The focus shows its name below the treemap.
    assert driver.find_elements(By.CSS_SELECTOR, "main img, main script") == []
    assert driver.title.endswith("m.pt")


@needs_browser
def test_nothing_is_requested_but_the_file(driver: Chrome, page: Page) -> None:
    open_file(driver, page(language_model()))
    script = "return performance.getEntriesByType('resource').map((one) => one.name)"
    assert driver.execute_script(script) == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_dark(scheme: str, driver: Chrome, page: Page) -> None:
    prefer(driver, prefers_color_scheme=scheme)
    open_file(driver, page({"model": language_model(), "x": Evil(), "state_dict": language_model()}))
    script = Path(__file__).with_name("contrast.js").read_text()
    found: list[tuple[str, float]] = driver.execute_script(script)
    assert len(found) > 100
    assert [(text, ratio) for text, ratio in found if ratio < 4.5] == []  # WCAG 2, level AA.
    ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) > 380) == (scheme == "light")


@needs_browser
@pytest.mark.parametrize("width", [340, 800])
def test_it_fits_narrow_screens(width: int, page: Page) -> None:
    path = page({"model": language_model(), "x" * 300: torch.ones(1)})
    with browser(width, 800) as driver:
        open_file(driver, path)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width


@needs_browser
@pytest.mark.parametrize("state", [{"epoch": 1}, {"a.w": torch.zeros(0)}, {"w": torch.tensor(1.5)}], ids=str)
def test_files_with_nothing_or_little_in_them(state: object, driver: Chrome, page: Page) -> None:
    open_file(driver, page(state))
    assert one(driver, "#tensors").is_displayed()


@needs_browser
def test_twenty_thousand_tensors_in_one_module(driver: Chrome, page: Page) -> None:
    open_file(driver, page({f"w{i}": torch.zeros(i % 7 + 1) for i in range(20_000)}))
    assert len(driver.find_elements(By.CSS_SELECTOR, ".cell")) == 400
    assert one(driver, "#count").text == "20,000 of 20,000 tensors"
