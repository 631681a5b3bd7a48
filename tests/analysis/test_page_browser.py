"""report.html in a real headless Chromium, opened from the file system."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from analysis.report import analyse

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--window-size=1300,900", "--no-first-run", "--disable-background-networking"),
)
LOSSES = {
    "adamw": {0.1: [0.9, 0.8], 1.0: [0.5, 0.4], 10.0: ["diverged", "diverged"]},
    "scion": {0.1: [0.7, 0.6], 1.0: [0.3, "failed"], 10.0: [0.35, 0.3]},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A Chromium of this machine; nothing is downloaded."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        reason = f"needs one of {', '.join(BROWSERS)}, and chromedriver"
        if os.environ.get("OPTLAB_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def report(table, tmp_path_factory) -> Path:
    """The report of a small sweep, in a folder whose name a URL must quote."""
    runs = table(LOSSES)
    runs.loc[runs["outcome"] == "failed", "cause"] = "no memory"
    records = pd.DataFrame(
        [
            {"run": run, "step": step, "val_loss": 2.0 - step / 20}
            for run in runs["run"]
            for step in (0, 10, 20)
        ]
    )
    out = tmp_path_factory.mktemp("my results") / "demo"
    figures = ["lr_sensitivity", "loss_curves", "coverage", "heatmap"]
    analyse(runs, records, name="demo", out=out, figures=figures)
    return out / "report.html"


@pytest.fixture
def opened(browser: webdriver.Chrome, report: Path) -> webdriver.Chrome:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(report.as_uri())
    return browser


def column(opened: webdriver.Chrome, table: str, index: int) -> list[str]:
    """Texts of the visible cells of a column, top to bottom."""
    script = (
        "return [...document.querySelector(arguments[0]).tBodies[0].rows]"
        ".filter(r => !r.hidden).map(r => r.cells[arguments[1]].textContent.trim())"
    )
    return opened.execute_script(script, table, index)


def heading(opened: webdriver.Chrome, table: str, words: str):
    """The button that sorts by a column."""
    path = f"//table[@id='{table}']//th/button[normalize-space()='{words}']"
    return opened.find_element(By.XPATH, path)


def until(opened: webdriver.Chrome, condition: Callable[[], object]) -> None:
    WebDriverWait(opened, 30).until(lambda _: condition())


def test_it_opens_without_an_error_and_without_a_request(opened, report):
    requests = [
        message["params"]["request"]["url"]
        for entry in opened.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]

    assert "demo" in opened.title
    assert opened.get_log("browser") == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    drawings = opened.find_elements(By.CSS_SELECTOR, ".drawing svg")
    assert len(drawings) == 3
    assert all(each.size["width"] > 300 and each.size["height"] > 100 for each in drawings)


def test_a_click_on_a_heading_sorts_the_runs_and_a_second_one_turns_them(opened):
    button = heading(opened, "run-table", "final loss")
    losses = [loss for loss in column(opened, "#run-table", 5) if loss]
    button.click()
    rising = column(opened, "#run-table", 5)
    button.click()
    falling = column(opened, "#run-table", 5)

    assert rising[: len(losses)] == sorted(losses, key=float)
    assert falling[: len(losses)] == sorted(losses, key=float, reverse=True)
    assert set(rising[len(losses) :]) == set(falling[len(losses) :]) == {""}  # unknown go last
    sorted_by = button.find_element(By.XPATH, "..").get_attribute("aria-sort")
    assert sorted_by == "descending"


def test_numbers_in_words_sort_as_numbers(opened):
    opened.execute_script(
        "const cells = document.querySelectorAll('#robustness tbody tr td:nth-child(2)');"
        "['>= 10.00 (right)', '9.5'].forEach((text, i) => { cells[i].textContent = text; });"
    )
    button = opened.find_elements(By.CSS_SELECTOR, "#robustness th button")[1]
    button.click()

    assert column(opened, "#robustness table", 1) == ["9.5", ">= 10.00 (right)"]


def test_the_filter_keeps_rows_with_every_word(opened):
    search = opened.find_element(By.ID, "search")
    search.send_keys("scion memory")
    until(opened, lambda: opened.find_element(By.ID, "count").text == "1 of 12 runs")

    assert column(opened, "#run-table", 0) == ["Scion"]
    assert column(opened, "#run-table", 3) == ["failed"]
    search.clear()
    search.send_keys(" ")
    until(opened, lambda: opened.find_element(By.ID, "count").text == "12 runs")


def test_the_outcome_filters_and_a_sorted_table_stays_filtered(opened):
    Select(opened.find_element(By.ID, "outcome")).select_by_visible_text("diverged")
    until(opened, lambda: opened.find_element(By.ID, "count").text == "2 of 12 runs")
    heading(opened, "run-table", "seed").click()

    assert column(opened, "#run-table", 3) == ["diverged", "diverged"]
    assert column(opened, "#run-table", 2) == ["0", "1"]


def test_a_pointer_on_a_point_shows_its_values(opened):
    note = opened.execute_script(
        "return [...document.querySelectorAll('#figure-lr_sensitivity .note')]"
        ".find(n => n.dataset.text.startsWith('AdamW, lr 1\\n'))"
    )
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", note)
    webdriver.ActionChains(opened).move_to_element_with_offset(note, 3, 2).perform()
    tip = opened.find_element(By.ID, "tip")
    until(opened, tip.is_displayed)

    assert tip.text == "AdamW, lr 1\nloss 0.45 nats (0.4 to 0.5 over 2 seeds)"
    assert "on" in note.get_attribute("class").split()
    title = opened.find_element(By.TAG_NAME, "h1")
    opened.execute_script("window.scrollTo(0, 0)")
    webdriver.ActionChains(opened).move_to_element(title).perform()
    until(opened, lambda: not tip.is_displayed())


def test_links_of_the_contents_and_of_the_files_lead_somewhere(opened, report):
    for link in opened.find_elements(By.CSS_SELECTOR, "nav a"):
        target = link.get_attribute("href").partition("#")[2]
        assert opened.find_elements(By.ID, target)
    for link in opened.find_elements(By.CSS_SELECTOR, ".files a"):
        assert (report.parent / link.get_dom_attribute("href")).is_file()


def test_printed_it_keeps_figures_and_tables_and_leaves_the_controls_out(opened):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not opened.find_element(By.CSS_SELECTOR, ".filters").is_displayed()
        assert opened.find_element(By.CSS_SELECTOR, ".drawing svg").is_displayed()
        assert opened.find_element(By.ID, "run-table").is_displayed()
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_scripts_every_value_is_there_all_the_same(opened, report):
    text = report.read_text()

    assert text.count("<tr data-outcome") == 12
    assert "<title>AdamW, lr 1\nloss 0.45 nats" in text  # the browser's own tooltip
