"""The page of one reader of a study, in a real browser."""

import csv
import json

import numpy as np
import pytest
from pages import button, click, opened, press, screen_of, wait_for
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from scripts.review import write_reader_page, write_volume_script

SHAPE, SPACING = (16, 12, 8), (1.0, 1.0, 2.0)
QUESTIONS = {"verdict": "synthetic", "confidence": 4, "realism": 3, "consistency": 2, "anatomy": 1}


@pytest.fixture
def study(tmp_path, browser):
    """Writes a reader's folder, of another study each time, and opens its page; the study is returned."""

    def make(**more):
        names = ["trial", "case_001", "case_002", "case_003"]
        for number, name in enumerate(names):
            volume = np.full(SHAPE, number, np.int16)
            write_volume_script(tmp_path / "cases" / f"{name}.js", volume, SPACING, name, compress=False)
        trial, *cases = [{"id": name, "script": f"cases/{name}.js"} for name in names]
        about = {
            "study": tmp_path.name, "reader": "Ana", "title": "Real or synthetic?", "window": [-1350, 150],
            "trial": trial, "cases": cases, "note": "Please work alone.", **more,
        }  # fmt: skip
        write_reader_page(tmp_path, about)
        opened(browser, tmp_path / "index.html")
        return about

    yield make
    browser.execute_script("localStorage.clear()")


def answer(browser, **answers):
    for name, value in answers.items():
        browser.find_element(By.XPATH, f'//label[input[@name="{name}"][@value="{value}"]]').click()


def next_case(browser, name):
    browser.find_element(By.ID, "next").click()
    wait_for(browser, f"return viewer.first?.name === '{name}'")


def answers(browser):
    return browser.execute_script("return exported()")


def chosen(browser):
    found = browser.find_elements(By.CSS_SELECTOR, "aside input:checked")
    return {one.get_attribute("name"): one.get_attribute("value") for one in found}


def downloaded(browser, name):
    path = browser.downloads / name
    path.unlink(missing_ok=True)

    def wait():
        for _ in range(200):
            if path.is_file():
                return path.read_text(encoding="utf-8-sig")
            browser.execute_async_script("setTimeout(arguments[0], 20)")
        raise AssertionError(f"{name} was not downloaded")

    return wait


def dialog(browser):
    return browser.find_element(By.CSS_SELECTOR, "#question[open]")


def test_a_study_from_the_trial_to_the_files(study, browser, tmp_path):
    about = study()
    heading = browser.find_element(By.ID, "case")
    assert "Trial case (not counted)" in heading.text and "Please work alone." in browser.page_source
    answer(browser, **{**QUESTIONS, "verdict": "real"})
    next_case(browser, "case_001")
    assert chosen(browser) == {}
    answer(browser, **QUESTIONS)
    browser.find_element(By.ID, "comment").send_keys('a "vessel", that ends')
    next_case(browser, "case_002")
    answer(browser, verdict="real")

    # closed and opened again: at the first case that lacks answers
    browser.get("about:blank")
    opened(browser, tmp_path / "index.html")
    assert "Case 2 of 3" in browser.find_element(By.ID, "case").text and chosen(browser) == {"verdict": "real"}
    press(browser, "p")
    wait_for(browser, "return viewer.first?.name === 'case_001'")
    assert chosen(browser) == {name: str(value) for name, value in QUESTIONS.items()}
    assert browser.find_element(By.ID, "comment").get_attribute("value") == 'a "vessel", that ends'
    answer(browser, confidence=5)  # corrected

    # what lacks answers is named, and goes along unanswered only when that is wanted
    browser.find_element(By.ID, "submit").click()
    assert "2 of 3 cases lack answers" in dialog(browser).text
    assert "Case 2 (confidence, realism, consistency, anatomy); Case 3." in dialog(browser).text
    assert answers(browser)["submitted"] is None
    button(browser, "Go to the first of them").click()
    wait_for(browser, "return viewer.first?.name === 'case_002'")
    answer(browser, confidence=1, realism=4, consistency=4, anatomy=4)
    browser.find_element(By.ID, "submit").click()
    json_text, csv_text = (downloaded(browser, f"answers_{about['study']}_Ana.{kind}") for kind in ("json", "csv"))
    button(browser, "Submit without these answers").click()

    content = json.loads(json_text())
    assert [content[name] for name in ("format", "study", "reader")] == [1, about["study"], "Ana"]
    assert content["submitted"].endswith("Z") and [one["case"] for one in content["cases"]] == [
        "case_001", "case_002", "case_003",
    ]  # fmt: skip
    first, second, third = content["cases"]
    expected = {**QUESTIONS, "confidence": 5, "comment": 'a "vessel", that ends', "marks": []}
    assert {name: first[name] for name in expected} == expected
    assert second["verdict"] == "real" and third["verdict"] is None and third["confidence"] is None
    assert all(isinstance(one["seconds"], (int, float)) for one in content["cases"]) and first["seconds"] > 0

    # submitted answers stay as they are, and can be saved again
    browser.refresh()
    wait_for(browser, "return viewer.first !== null")
    assert "Submitted" in browser.find_element(By.CLASS_NAME, "submitted").text
    browser.find_element(By.CSS_SELECTOR, '#cases button[aria-label^="Case 1,"]').click()
    wait_for(browser, "return viewer.first?.name === 'case_001'")
    inputs = browser.find_elements(By.CSS_SELECTOR, "aside input, aside textarea, #submit, #mark")
    assert inputs and not any(one.is_enabled() for one in inputs)
    button(browser, "CSV").click()
    rows = list(csv.DictReader(csv_text().splitlines()))
    assert len(rows) == 3 and rows[0]["comment"] == 'a "vessel", that ends' and rows[0]["confidence"] == "5"
    assert rows[2]["verdict"] == "" and rows[0]["reader"] == "Ana"


def test_locations_are_marked_shown_noted_and_removed(study, browser):
    study(trial=None)
    assert "Please work alone." in browser.page_source  # without a trial case, too
    browser.find_element(By.ID, "mark").click()
    click(browser, "coronal", screen_of(browser, "coronal", [3, 6, 6]))
    press(browser, "seam")  # the cursor is in the note
    click(browser, "axial", screen_of(browser, "axial", [10, 2, 6]))  # a click marks one location
    press(browser, "k")
    click(browser, "axial", screen_of(browser, "axial", [10, 2, 6]))
    marks = [
        {"index": [3, 6, 6], "plane": "coronal", "note": "seam"},
        {"index": [10, 2, 6], "plane": "axial", "note": ""},
    ]
    assert answers(browser)["cases"][0]["marks"] == marks
    browser.refresh()
    wait_for(browser, "return viewer.first !== null")
    browser.find_element(By.CSS_SELECTOR, ".marks button").click()
    assert browser.execute_script("return viewer.indexAt(viewer.first, viewer.position)") == [3, 6, 6]
    circle = """
        viewer._drawAll();
        const pane = viewer.panes.find((one) => one.plane === "coronal");
        const [x, y] = arguments[0], { data } = pane.canvas.getContext("2d").getImageData(x - 14, y - 14, 28, 28);
        for (let i = 0; i < data.length; i += 4) if (data[i] > 200 && data[i + 2] < 120) return true;
        return false;"""
    assert browser.execute_script(circle, screen_of(browser, "coronal", [3, 6, 6]))
    browser.find_elements(By.CSS_SELECTOR, '.marks button[title^="remove"]')[0].click()
    assert answers(browser)["cases"][0]["marks"] == marks[1:]
    press(browser, Keys.ESCAPE)
    browser.execute_script("document.activeElement.blur()")
    press(browser, "k" + Keys.ENTER)  # without a mouse: the crosshair
    assert answers(browser)["cases"][0]["marks"][-1]["index"] == [3, 6, 6]


def test_time_counts_while_the_case_can_be_seen(study, browser):
    study()
    next_case(browser, "case_001")
    seconds = """
        const [shown, ms] = arguments;
        Object.defineProperty(document, "visibilityState", { value: shown ? "visible" : "hidden", configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
        const start = answers.cases[0].seconds;
        since -= ms; // as if so much time had passed
        count();
        return answers.cases[0].seconds - start;"""
    assert 2 - 1e-6 <= browser.execute_script(seconds, True, 2000) < 2.5  # differences of large numbers are rounded
    assert browser.execute_script(seconds, False, 2000) == 0
    assert 1 - 1e-6 <= browser.execute_script(seconds, True, 1000) < 1.5
    assert browser.execute_script(seconds, True, 3_600_000) == 0  # a computer that slept
    assert answers(browser)["cases"][1]["seconds"] == 0


def test_files_of_answers_are_loaded_and_others_refused(study, browser, tmp_path):
    about = study()
    content = answers(browser)
    content["cases"][2] |= {**QUESTIONS, "marks": [{"index": [1, 2, 3], "plane": "axial", "note": "x"}], "seconds": 7.5}
    wrong = {
        "no file of answers": "not JSON",
        "no file": json.dumps({**content, "format": 2}),
        "another study (else)": json.dumps({**content, "study": "else"}),
        "another reader (Ben)": json.dumps({**content, "reader": "Ben"}),
        "no case case_9": json.dumps({**content, "cases": [{"case": "case_9"}]}),
    }
    path = tmp_path / "answers.json"
    for fact, text in wrong.items():
        path.write_text(text)
        browser.find_element(By.ID, "file").send_keys(str(path))
        wait_for(browser, "return document.querySelector('#question[open]') !== null")
        assert "was not loaded" in dialog(browser).text and fact in dialog(browser).text
        dialog(browser).find_element(By.TAG_NAME, "button").click()
    path.write_text(json.dumps(content))
    browser.find_element(By.ID, "file").send_keys(str(path))
    wait_for(browser, f"return answers.cases[2].verdict === '{QUESTIONS['verdict']}'")
    assert answers(browser)["cases"] == content["cases"] and about["study"] == content["study"]
    path.write_text(json.dumps({**content, "cases": []}))  # asks before it replaces answers
    browser.find_element(By.ID, "file").send_keys(str(path))
    wait_for(browser, "return document.querySelector('#question[open]') !== null")
    button(browser, "Keep them").click()
    assert answers(browser)["cases"] == content["cases"]


def test_kept_answers_that_cannot_be_read_are_not_lost(study, browser):
    study()
    browser.execute_script("store = () => {}; localStorage.setItem(storageKey, arguments[0])", '{"format": 99}')
    browser.get(browser.current_url)
    wait_for(browser, "return viewer.first !== null")
    kept = browser.execute_script("return Object.entries(localStorage)")
    assert '{"format": 99}' in [value for key, value in kept if "unreadable" in key]


def test_the_page_says_so_where_the_browser_keeps_nothing(study, browser):
    study()
    browser.execute_script("Storage.prototype.setItem = () => { throw new Error() }; store()")
    assert "save to a file" in browser.find_element(By.ID, "saved").text
