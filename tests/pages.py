"""What the tests of pages do in a browser, as a hand on a mouse would."""

import io

import numpy as np
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait


def opened(browser, path):
    """Opens a page from disk and waits for its first volume."""
    browser.get(path.as_uri())
    wait_for(browser, "return viewer.first !== null")


def wait_for(browser, script):
    WebDriverWait(browser, 10, 0.02).until(lambda _: browser.execute_script(script))


def drawn(browser):
    """Draws what has changed, as the next frame would."""
    browser.execute_script("viewer._drawAll()")


def canvas(browser, plane, slot=0):
    return browser.find_element(By.CSS_SELECTOR, f'.pane[data-plane="{plane}"][data-slot="{slot}"] .over')


def label(browser, plane, name, slot=0):
    return browser.find_element(By.CSS_SELECTOR, f'.pane[data-plane="{plane}"][data-slot="{slot}"] .{name}').text


def button(browser, text):
    return browser.find_element(By.XPATH, f'//button[normalize-space()="{text}"]')


def press(browser, keys):
    ActionChains(browser, 0).send_keys(keys).perform()


def drag(browser, plane, start, end, slot=0, key=None):
    """Presses at a point of a pane, in pixels from its top left corner, moves and lets go."""
    actions = ActionChains(browser, 0)
    if key:
        actions.key_down(key)
    _moved(actions, browser, plane, start, slot).click_and_hold()
    _moved(actions, browser, plane, end, slot).release()
    if key:
        actions.key_up(key)
    actions.perform()
    drawn(browser)


def point_at(browser, plane, point, slot=0):
    _moved(ActionChains(browser, 0), browser, plane, point, slot).perform()


def click(browser, plane, point, slot=0):
    _moved(ActionChains(browser, 0), browser, plane, point, slot).click().perform()
    drawn(browser)


def _moved(actions, browser, plane, point, slot):
    """Selenium counts from the middle of an element."""
    element = canvas(browser, plane, slot)
    size = element.size
    return actions.move_to_element_with_offset(
        element, round(point[0] - size["width"] // 2), round(point[1] - size["height"] // 2)
    )


def screen_of(browser, plane, index, slot=0):
    """Where the middle of a voxel is drawn: pixels from the top left corner of a pane."""
    script = """
        const [plane, index, slot] = arguments;
        const pane = viewer.panes.find((one) => one.plane === plane && one.slot === slot);
        const mm = viewer.mmOf(viewer.volumes[slot], index);
        return viewer._toScreen(pane, mm[PLANES[plane].across], mm[PLANES[plane].down]);"""
    return browser.execute_script(script, plane, [int(one) for one in index], slot)


def white_box(browser, plane, slot=0):
    """Size of a pane on the screen, and the first and last column and row of the white in it; bar and letters are darker."""
    element = canvas(browser, plane, slot)
    pane = np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB"))
    rows, columns = np.nonzero(pane.min(axis=2) > 240)
    return pane.shape[1], pane.shape[0], columns.min(), columns.max(), rows.min(), rows.max()
