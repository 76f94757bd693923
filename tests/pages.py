"""What the tests of pages do in a browser, as a hand on a mouse would."""

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
    return browser.find_element(By.CSS_SELECTOR, f'.pane[data-plane="{plane}"][data-slot="{slot}"] canvas')


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
    """Size of a pane in pixels, and the first and last column and row of the white ones in it; the scale bar is grey."""
    script = """
        const canvas = arguments[0], { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        const box = [width, -1, height, -1];
        for (let y = 0; y < height; y++)
            for (let x = 0; x < width; x++)
                if (data[4 * (x + width * y)] > 240) {
                    box[0] = Math.min(box[0], x);
                    box[1] = Math.max(box[1], x);
                    box[2] = Math.min(box[2], y);
                    box[3] = Math.max(box[3], y);
                }
        return [width, height, ...box];"""
    return browser.execute_script(script, canvas(browser, plane, slot))
