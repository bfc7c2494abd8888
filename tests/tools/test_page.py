"""docs/: the page in a browser, with ONNX Runtime Web as npm has it, against `inference.upscale`."""

import base64
import hashlib
import importlib.util
import re
import time

import cv2
import numpy as np
import pytest
from browser import CDN, ROOT, chromium, look_like, runtime_folder, served_docs

from images.named_sets import sample_images
from images.reading import read_image
from inference.enlarge import upscale
from model import SRCNN
from tools import page as make

MODELS = [("bicubic", scale) for scale in make.SCALES]
MODELS += [(name, scale) for name in make.NETWORKS for scale in make.SCALES]


@pytest.mark.skipif(
    not importlib.util.find_spec("onnxruntime"), reason="needs onnxruntime: pip install onnxruntime"
)
@pytest.mark.parametrize("name, scale", MODELS)
def test_models_are_of_the_weights_that_ship(name, scale):
    """Otherwise: python -m tools.page"""
    import onnxruntime

    file = f"{'' if name == 'bicubic' else 'srcnn_'}{name}_x{scale}.onnx"
    session = onnxruntime.InferenceSession(ROOT / "docs" / "models" / file)
    picture = np.random.default_rng(0).random((21, 17, 3), np.float32)
    network = name if name == "bicubic" else SRCNN.from_pretrained(scale, make.NETWORKS[name])
    large = session.run(["restored"], {"image": picture.transpose(2, 0, 1)[None]})[0][0]
    expected = upscale(picture, scale, network).transpose(2, 0, 1)
    np.testing.assert_allclose(large, expected, atol=1e-5, rtol=0)


def test_nothing_but_the_runtime_comes_from_elsewhere():
    """Find one address, with the exact version, and a hash for each file."""
    pages = {name: (ROOT / "docs" / name).read_text() for name in ("index.html", "page.js")}
    worker = (ROOT / "docs" / "worker.js").read_text()
    assert worker.count("https://") == 1 and CDN + "${VERSION}/dist/" in worker
    assert worker.count('": "sha384-') == 4 and "get(CDN + name, {integrity})" in worker
    assert pages["page.js"].count("https://") == 0
    assert pages["index.html"].count("https://") == pages["index.html"].count('<a href="https://')


def test_hashes_are_those_of_the_npm_package():
    """Check all four files: the tests in a browser load only two, without a graphics card."""
    hashes = re.findall(
        r'"(ort[^"]+)": "sha384-([^"]+)"', (ROOT / "docs" / "worker.js").read_text()
    )
    assert len(hashes) == 4
    for name, expected in hashes:
        content = (runtime_folder() / name).read_bytes()
        assert base64.b64encode(hashlib.sha384(content).digest()).decode() == expected, name


class Page:
    """The page in a browser, as a user sees it."""

    def __init__(self, driver, folder):
        self.driver, self.folder = driver, folder

    def find(self, name):
        return self.driver.find_element("id", name)

    def wait_until(self, condition, timeout=120):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, self.find("status").text
            time.sleep(0.1)

    def wait_for(self, condition):
        """Wait for a condition; fail if the page shows an error."""
        self.wait_until(lambda: self.bad() or condition())
        assert not self.bad(), self.find("status").text

    def bad(self):
        return "bad" in (self.find("status").get_attribute("class") or "")

    def choose(self, name, value):
        self.driver.execute_script(
            f"document.querySelector('[name={name}][value=\"{value}\"]').click()"
        )

    def saved(self, name):
        """Return the file of the Save button."""
        self.wait_for(lambda: self.find("save").is_displayed())
        self.find("save").click()
        self.wait_for((self.folder / name).is_file)
        return read_image(self.folder / name)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    runtime = runtime_folder()
    with served_docs(runtime) as (address, requests), chromium(folder) as driver:
        yield Page(driver, folder), address
        assert {request.split()[0] for request in requests} == {"GET"}
        errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not errors, errors


@pytest.fixture
def page(opened):
    """Open the page anew."""
    page, address = opened
    look_like(page.driver, 1280, 800)
    page.driver.get(address)
    return page


def photograph(height, width):
    path = next(path for path in sample_images("test") if path.stem == "coffee")
    return np.ascontiguousarray(read_image(path)[60 : 60 + height, 150 : 150 + width])


def write(page, name, image, exif=b""):
    """Write a PNG file of an RGB or RGBA array to the page's folder; exif: with this chunk."""
    data = cv2.imencode(".png", image[..., [2, 1, 0, 3][: image.shape[2]]])[1].tobytes()
    if exif:
        import struct
        import zlib

        checksum = struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        data = data[:33] + struct.pack(">I", len(exif)) + b"eXIf" + exif + checksum + data[33:]
    (page.folder / name).write_bytes(data)
    return page.folder / name


def test_tiles_make_what_upscale_makes(page):
    image = photograph(150, 136)  # in four tiles
    page.find("file").send_keys(str(write(page, "colours.png", image)))
    large = page.saved("colours_x3.png")
    tags = page.driver.find_elements("class name", "tag")
    assert [tag.text for tag in tags] == ["bicubic", "SRCNN"]
    assert np.abs(large.astype(int) - upscale(image, 3)).max() <= 1
    # The slider's two canvases; the small picture is visible as a whole
    for layer, network in (("srcnn", None), ("bicubic", "bicubic")):
        shown = page.driver.execute_script(
            f"const c = document.getElementById('{layer}');"
            "return [...c.getContext('2d').getImageData(0, 200, c.width, 9).data]"
        )
        shown = np.reshape(shown, (9, 136 * 3, 4))[..., :3]
        assert np.abs(shown - upscale(image, 3, network).astype(int)[200:209]).max() <= 1


def test_other_choices_transparency_and_orientation(page):
    image = photograph(40, 52)
    alpha = np.full((40, 52, 1), 255, np.uint8)
    alpha[14:24, 16:30] = 128
    # Hidden colours must not spread into visible pixels
    alpha[30:, 38:], image[30:, 38:] = 0, (255, 0, 255)
    turned = (
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # a quarter clockwise
    )
    path = write(page, "see-through.png", np.dstack([image, alpha]), turned)
    page.choose("network", "9-5-5")
    page.choose("scale", 4)
    page.find("file").send_keys(str(path))
    large = page.saved("see-through_x4.png")
    upright = np.rot90(np.dstack([image, alpha]), -1)
    network = SRCNN.from_pretrained(4, (9, 5, 5))
    expected = upscale(np.ascontiguousarray(upright), 4, network)
    difference = np.abs(large.astype(int) - expected)
    assert large.shape == (52 * 4, 40 * 4, 4) and difference[..., 3].max() <= 1
    # Colours behind half transparency are held as products by the browser: one level becomes two
    half = ((alpha > 0) & (alpha < 255)).astype(np.uint8)
    far = np.rot90(cv2.dilate(half, np.ones((15, 15))), -1).repeat(4, 0).repeat(4, 1) == 0
    difference[expected[..., 3] == 0] = 0
    assert difference[far].max() <= 1 and difference.max() <= 4 and far.mean() > 0.3


def test_dropped_pasted_and_refused(page):
    page.choose("network", "9-1-5")
    page.choose("scale", 2)
    image = photograph(30, 33)
    write(page, "dropped.png", image)
    drop = """
        const bytes = Uint8Array.from(arguments[0]), data = new DataTransfer();
        data.items.add(new File([bytes], arguments[1], {type: arguments[2]}));
        document.body.dispatchEvent(arguments[3] === "drop"
          ? new DragEvent("drop", {dataTransfer: data, bubbles: true})
          : new ClipboardEvent("paste", {clipboardData: data, bubbles: true}))"""
    content = list((page.folder / "dropped.png").read_bytes())
    for name, how in (("dropped.png", "drop"), ("pasted.png", "paste")):
        page.driver.execute_script(drop, content, name, "image/png", how)
        page.wait_for(lambda: name in page.find("about").text)
        large = page.saved(name.replace(".", "_x2."))
        assert np.abs(large.astype(int) - upscale(image, 2)).max() <= 1
    page.driver.execute_script(drop, [1, 2, 3], "text.txt", "text/plain", "drop")
    assert page.bad() and page.find("status").text == "text.txt is not a picture."
    assert page.find("save").is_displayed()  # what was made before
    gray = cv2.imencode(".png", image[..., 1])[1]
    page.driver.execute_script(drop, gray.tolist(), "unknown kind", "", "drop")
    page.wait_for(lambda: "unknown kind" in page.find("about").text)
    large = page.saved("unknown kind_x2.png")
    assert np.abs(large.astype(int) - upscale(image[..., 1], 2)[..., None]).max() <= 1
    page.driver.execute_script(drop, [1, 2, 3], "broken.jpg", "image/jpeg", "drop")
    page.wait_until(lambda: "broken.jpg: this browser cannot open it" in page.find("status").text)
    assert not page.find("save").is_displayed() and not page.find("progress").is_displayed()


def test_twelve_megapixels_leave_the_page_alive_and_can_be_cancelled(page):
    from selenium.webdriver.common.keys import Keys

    page.choose("scale", 2)
    image = np.tile(photograph(60, 80), (50, 50, 1))
    cv2.imwrite(str(page.folder / "large.jpg"), image)
    page.find("file").send_keys(str(page.folder / "large.jpg"))
    page.wait_for(lambda: "left" in page.find("status").text)
    assert "4000 × 3000 to 8000 × 6000; shown here: its middle" in page.find("about").text
    page.find("wipe").send_keys(Keys.ARROW_LEFT * 5)
    assert page.find("wipe").get_attribute("value") == "45"
    page.find("cancel").click()
    assert page.find("status").text == "Cancelled." and not page.find("cancel").is_displayed()
    page.find("file").send_keys(str(write(page, "after.png", photograph(20, 20))))
    assert page.saved("after_x2.png").shape == (40, 40, 3)


def test_by_mouse_and_keyboard_at_every_width(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver, percent = page.driver, lambda: page.find("wipe").get_attribute("value")
    for width, height in ((390, 844), (768, 1024), (1280, 800), (1920, 1080)):
        for dark in (False, True):
            look_like(driver, width, height, dark)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            small = """return [...document.querySelectorAll("button, .button, .choice label")]
              .filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect())
              .filter(box => box.height < 36 || box.left < 0 || box.right > innerWidth).length"""
            assert driver.execute_script(small) == 0
        line, box = driver.find_element("class name", "line"), page.find("view").size
        ActionChains(driver).drag_and_drop_by_offset(line, box["width"] // 4, 0).perform()
        moved = int(percent())
        assert moved > 60
        driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT * 3)
        assert int(percent()) == moved - 3
        page.find("wipe").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 50)
        assert percent() == "50"
        page.find("fit").click()
        fitting = page.find("actual").text
        page.find("view").send_keys("+")
        assert page.find("actual").text != fitting
        page.find("view").send_keys("-")
        assert page.find("actual").text == fitting
    # On the picture, because it would cover an outline
    ring = "return getComputedStyle(document.getElementById('view'), '::after').boxShadow"
    assert "inset" in driver.execute_script(ring)
    # Every control has a name that a screen reader says
    nameless = """return [...document.querySelectorAll("button, input, a, progress, canvas")].filter(e =>
      !(e.ariaLabel || e.textContent.trim() || e.closest("label")?.textContent.trim())).length"""
    assert driver.execute_script(nameless) == 0


def test_from_disk_it_says_how_to_serve_it(page):
    page.driver.get((ROOT / "docs" / "index.html").as_uri())
    assert "python -m http.server -d docs" in page.find("status").text
    page.wait_until(lambda: "170 × 100 to 510 × 300" in page.find("about").text)


def test_an_error_in_the_worker_leaves_the_next_picture_unharmed(page):
    page.driver.execute_script("document.querySelector('[value=\"9-5-5\"]').value = '7-7-7'")
    page.choose("network", "7-7-7")
    page.wait_until(page.bad)
    assert "srcnn_7-7-7_x3.onnx could not be loaded" in page.find("status").text
    page.choose("network", "9-1-5")
    assert page.saved("sample_x3.png").shape == (300, 510, 3)
    page.driver.get_log("browser")  # the missing file was expected


def test_the_browser_refuses_to_send_anything_elsewhere(page):
    """Check the page's Content-Security-Policy; without one, a data: address can be fetched."""
    fetch = "fetch('data:,x').then(() => 'open', () => 'refused').then(arguments[0])"
    assert page.driver.execute_async_script(fetch) == "refused"
    page.driver.get_log("browser")  # the refusal


def test_without_the_runtime_it_says_so(tmp_path):
    with served_docs(tmp_path) as (address, _), chromium(tmp_path) as driver:
        driver.get(address)
        page = Page(driver, tmp_path)
        halves = driver.find_elements("css selector", ".tag, .line")
        assert len(halves) == 3 and all(half.is_displayed() for half in halves)
        page.choose("scale", 2)
        page.wait_until(page.bad)
        assert "could not be loaded. Is this computer online?" in page.find("status").text
        # Nothing was enlarged: no half may be called SRCNN
        assert not any(half.is_displayed() for half in halves)
        assert page.find("srcnn").get_attribute("aria-label") == "The picture, not enlarged"
