"""The page that runs models in a browser."""

import base64
import hashlib
import html.parser
import io
import json
import os
import runpy
import shutil
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import FAMILIES, tiny_config, train_config, train_family

import jaxvit
from jaxvit.cli import export as verb
from jaxvit.errors import UsageError
from jaxvit.exports import browser_runtime, page
from jaxvit.exports.browser_runtime import FOLDER, BrowserRuntime
from jaxvit.exports.formats import FORMATS
from jaxvit.exports.model import ExportModel
from jaxvit.exports.page_graph import outputs_of
from jaxvit.trained.image_files import pixels_in_memory
from jaxvit.trained.introspection import attention_rollout, record

HAS_PAGE = all(map(FORMATS["page"].there, FORMATS["page"].needs)) and jax.version.__version_info__ < (0, 12)
needs_page = pytest.mark.skipif(not HAS_PAGE, reason="needs the extras onnx and page")
needs_jinja = pytest.mark.skipif(not FORMATS["page"].there("jinja2"), reason="needs the extra page")
HOSTILE = ["</script><script>alert(1)</script>", '<img src=x onerror="alert(1)">', "{{ 7 * 7 }}", "猫 & <!--", "a'b\"c"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_config(tmp_path_factory.mktemp("paging") / "run", tiny_config())


@pytest.fixture
def without_scripts(monkeypatch):
    """A page without onnxruntime-web, whose graphs onnxruntime checks."""
    monkeypatch.setattr(page, "browser_runtime", lambda: BrowserRuntime(b"script", b"wasm"))
    monkeypatch.setattr("jaxvit.exports.write.find_browser", lambda: ("", "no browser in this test"))


class Tags(html.parser.HTMLParser):
    """Names of the tags of a page, its security policy, and the texts of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.policy, self.texts, self._open = [], "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        self.tags.append(tag)
        if facts.get("http-equiv") == "Content-Security-Policy":
            self.policy = facts["content"]
        self._open = facts.get("id") or tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        self.texts.append((self._open, data))

    def text(self, name):
        return "".join(text for its_name, text in self.texts if its_name == name)


@needs_jinja
def test_names_of_classes_stay_text():
    about = {"title": HOSTILE[0], "about": HOSTILE, "class_names": HOSTILE, "image_shape": [8, 8, 1], "maps": []}
    sample = {"name": HOSTILE[1], "image": "AAAA"}
    plain = page.render("digits", [{**about, "title": ""}], {"model-0": "AAAA"}, [], 100)
    found = page.render(HOSTILE[0], [about], {"model-0": "AAAA"}, [sample], 100)
    assert Tags(found).tags == Tags(plain).tags  # no name has become a tag
    facts = json.loads(Tags(found).text("facts"))
    assert facts == {"models": [about], "samples": [sample], "max_pixels": 100, "passes": page.pillow_passes()}
    assert Tags(found).text("h1") == HOSTILE[0] and Tags(found).text("model-0") == "AAAA"


@needs_jinja
def test_the_policy_of_a_page_allows_its_own_script_and_no_request():
    tags = Tags(page.render("digits", [], {}, [], 100))
    rules = dict(rule.split(" ", 1) for rule in tags.policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'none'"
    for kind, rule in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(tags.text(kind).encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules[rule] and "unsafe-inline" not in rules[rule]
    assert "http:" not in tags.policy and "https:" not in tags.policy
    assert "MIT License" in tags.text("p") and "Copyright (c) Microsoft" in tags.text("p")


@needs_page
def test_a_page_holds_the_models_and_samples(run, tmp_path, capsys, without_scripts):
    other = train_family(tmp_path / "other", "shiftvit")
    words = [f"--workdir={run}", "--to=page", f"--beside={other}", f"--out={tmp_path / 'out'}"]
    assert verb.main(words) == 0
    said = capsys.readouterr().out
    path = tmp_path / "out" / "page.html"
    assert "on 25 images of digits" in said and "not checked in a browser: no browser in this test" in said
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]  # a page needs no script
    facts = json.loads(Tags(path.read_text()).text("facts"))
    assert [each["title"] for each in facts["models"]] == ["vit", "shiftvit"]
    loaded, load = jaxvit.load(run), runpy.run_path(str(FORMATS["page"].loader))["load"]
    images = []
    for sample in facts["samples"]:
        with Image.open(io.BytesIO(base64.b64decode(sample["image"]))) as image:
            images.append(np.asarray(image)[..., None])
    assert len(images) >= 8 and {sample["name"] for sample in facts["samples"]} <= set(loaded.class_names)
    for i, folder in enumerate((run, other)):
        call, about = load(str(path), model=i)
        model = jaxvit.load(folder)
        wanted = ExportModel.of(model, "float32").compiled(reference=True)(np.stack(images))
        assert np.abs(call(np.stack(images)) - np.asarray(wanted)).max() < 1e-5
        assert about["class_names"] == list(model.class_names)
        assert f"{page._size(model):,} parameters" in about["about"]
    assert str(tmp_path) not in path.read_text()


@needs_page
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_page_says_how_weights_are_stored(run, tmp_path, without_scripts, dtype):
    assert verb.main([f"--workdir={run}", "--to=page", f"--dtype={dtype}", f"--out={tmp_path}"]) == 0
    path = tmp_path / f"page-{dtype}.html"
    call, about = runpy.run_path(str(FORMATS["page"].loader))["load"](str(path))
    assert any(f"stored as {dtype}" in phrase for phrase in about["about"])
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    difference = np.abs(call(images) - np.asarray(jaxvit.load(run)(images))).max()
    assert 0 < difference < 2e-2


@needs_page
def test_a_page_that_is_too_large_is_refused(run, tmp_path, monkeypatch, without_scripts):
    monkeypatch.setattr(page, "LIMIT", 30_000)
    says = r"with float32 weights the page would have 0\.\d MB, more than 0: .*vit on digits 0\.\d MB; take .*--to=onnx"
    with pytest.raises(UsageError, match=says):
        verb.main([f"--workdir={run}", "--to=page", "--dtype=float32", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_the_message_for_a_large_page_names_what_helps():
    class Model:
        kind = "float32"

    parts = {"runtime-script": "x" * 30_000, "runtime-wasm": "x" * 4_900_000, "model-0": "x" * 16_000_000}
    said = page._too_large(21_000_000, [Model()], parts, [{"title": "vit on cifar10"}])
    assert "21.0 MB, more than 15: onnxruntime-web 4.9 MB, vit on cifar10 16.0 MB" in said
    assert "take --dtype=float16 (about 13 MB), or --dtype=int8 (about 9 MB), or --to=onnx" in said
    parts["model-0"] = "x" * 60_000_000
    said = page._too_large(65_000_000, [Model()], parts, [{"title": "vit on cifar10"}])
    assert "take a smaller model, or --to=onnx" in said


def test_large_models_get_smaller_weights(monkeypatch):
    for millions, kind in ((1, "float32"), (3, "float16"), (6, "int8"), (40, "int8")):
        monkeypatch.setattr(page, "_size", lambda _, millions=millions: millions * 1_000_000)
        assert page.fitting_dtype([None]) == kind
    monkeypatch.setattr(page, "_size", lambda _: 1_000_000)
    assert page.fitting_dtype([None] * 3) == "float16"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_outputs_of_a_page_are_what_the_model_computes(tmp_path, name):
    loaded = jaxvit.load(train_family(tmp_path / "run", name))
    model = ExportModel.of(loaded, "float32")
    images = np.random.default_rng(0).integers(0, 256, (3, *loaded.image_shape), dtype=np.uint8)
    facts = []

    def outputs(images):
        arrays, facts[:] = outputs_of(model, images)
        return arrays

    with jax.numpy_dtype_promotion("standard"):
        probabilities, picture, *maps = map(np.asarray, jax.jit(outputs)(jnp.asarray(images)))
    assert np.abs(probabilities - np.asarray(loaded(images))).max() < 1e-5
    assert np.abs(picture - loaded.pictures(images)).max() < 1e-6
    recorded = record(loaded, images)
    wanted = {}
    for step in recorded.steps:
        if step.kind == "learn":
            wanted[f"TokenLearner before block {step.name[-1]}"] = step.weights
        elif step.kind == "fuse":
            wanted[f"TokenFuser after block {step.name[-1]}"] = step.weights.swapaxes(1, 2)
    if name == "cct":
        wanted["Pooling"] = recorded.pool
    if name == "vit":
        wanted["Attention rollout"] = attention_rollout(recorded, "cls")[:, None]
    if name == "shiftvit":
        assert [(each.title, each.grid, each.pixels, each.border) for each in facts] == [
            ("Stage 1: 8×8", (8, 8), 1, False),
            ("Stage 2: 4×4", (4, 4), 1, False),
        ]
        assert facts[0].names == (*(f"{way}: 1 of 8 channels" for way in ("left", "right", "up", "down")),
                                  "stays: 4 of 8 channels")  # fmt: skip
        first = strengths_of_the_stem(loaded, images)
        assert maps[0].shape == (3, 5, 8, 8) and np.abs(maps[0] - first).max() < 1e-4
        return
    assert [each.title for each in facts] == list(wanted)
    for array, about, weights in zip(maps, facts, wanted.values(), strict=True):
        assert array.shape == (3, len(about.names), *about.grid)
        assert np.abs(array.reshape(weights.shape) - weights).max() < 1e-5


def strengths_of_the_stem(loaded, images):
    """The root of the mean square of each group of channels after the stem, place by place."""
    x = np.asarray(loaded.model.apply(loaded.variables, loaded.preprocess(images), method=stem), np.float64)
    out = np.zeros((len(x), 5, *x.shape[1:3]))
    for b, row, column in np.ndindex(x.shape[:3]):
        channels = x[b, row, column]
        for group in range(4):
            out[b, group, row, column] = abs(channels[group])
        out[b, 4, row, column] = np.sqrt((channels[4:] ** 2).mean())
    return out


def stem(model, x):
    x = model.embed(x)
    return model.norm_stem(x) if model.stem_norm else x


def test_beside_is_for_pages(run):
    with pytest.raises(UsageError, match="--beside is for --to=page"):
        verb.main([f"--workdir={run}", f"--beside={run}"])


# ---- onnxruntime-web -------------------------------------------------------------------------------------------------

SMALL = {browser_runtime.SCRIPT: b"export {};", browser_runtime.WASM: b"\0asm"}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two small files that replace onnxruntime-web's, an empty cache, and a folder for programs."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in SMALL.items()}
    monkeypatch.setattr(browser_runtime, "SHA256", digests)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv(FOLDER, raising=False)
    (tmp_path / "bin").mkdir()
    return tmp_path


def install_npm(folder, monkeypatch, files, code="shutil.copy(sys.argv[0] + '.tgz', there)"):
    """A program `npm` that packs these files."""
    tarball = folder / "bin" / "npm.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for name, data in files.items():
            about = tarfile.TarInfo(f"package/dist/{name}")
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    monkeypatch.setattr(browser_runtime, "_TARBALL", digest)
    npm = folder / "bin" / "npm"
    there = "[word.partition('=')[2] for word in sys.argv if word.startswith('--pack-destination=')][0]"
    npm.write_text(f"#!{sys.executable}\nimport shutil, sys\nassert sys.argv[1] == 'pack'\nthere = {there}\n{code}\n")
    npm.chmod(0o755)


def test_the_scripts_are_fetched_once(small, monkeypatch):
    install_npm(small, monkeypatch, SMALL)
    first = browser_runtime.browser_runtime()
    (small / "bin" / "npm").unlink()
    assert browser_runtime.browser_runtime() == first  # from the cache
    kept = next((small / "cache" / "jaxvit").iterdir())
    (kept / f"{browser_runtime.WASM}.gz").write_bytes(b"damaged")
    with pytest.raises(UsageError, match="npm is not installed"):
        browser_runtime.browser_runtime()
    install_npm(small, monkeypatch, SMALL)
    assert browser_runtime.browser_runtime() == first


def test_the_scripts_of_a_folder_are_checked(small, monkeypatch):
    folder = small / "scripts"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    with pytest.raises(UsageError, match=f"{FOLDER}=.*: there is no {browser_runtime.SCRIPT}"):
        browser_runtime.browser_runtime()
    for name, data in SMALL.items():
        (folder / name).write_bytes(data)
    browser_runtime.browser_runtime()
    (folder / browser_runtime.WASM).write_bytes(b"\0asm of somebody else")
    with pytest.raises(UsageError, match=r"wasm: this is not the file of onnxruntime-web .*SHA-256"):
        browser_runtime.browser_runtime()


def test_without_npm_it_is_one_line(small):
    with pytest.raises(UsageError, match=f"npm is not installed: install npm, or set {FOLDER} to a folder with"):
        browser_runtime.browser_runtime()


def test_what_npm_fetches_is_checked(small, monkeypatch):
    install_npm(small, monkeypatch, SMALL)
    monkeypatch.setattr(browser_runtime, "_TARBALL", "of another package")
    with pytest.raises(UsageError, match="npm fetched another package"):
        browser_runtime.browser_runtime()
    install_npm(small, monkeypatch, {**SMALL, browser_runtime.WASM: b"other"})
    with pytest.raises(UsageError, match="in it has another SHA-256"):
        browser_runtime.browser_runtime()
    install_npm(small, monkeypatch, SMALL, "sys.exit('npm error network unreachable')")
    with pytest.raises(UsageError, match=r"npm cannot fetch it .npm error network unreachable"):
        browser_runtime.browser_runtime()
    assert not (small / "cache").exists()


def test_the_browser_of_a_check(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(page.BROWSER, raising=False)
    assert "there is no Chromium on PATH" in page.find_browser()[1]
    monkeypatch.setenv(page.BROWSER, str(tmp_path / "no-browser"))
    with pytest.raises(UsageError, match=f"{page.BROWSER}=.*there is no such program"):
        page.find_browser()


# ---- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_browser(run, tmp_path_factory):
    """(page.html of three models, moved to another folder; a function that opens a file in Chromium, offline)."""
    browser, why_not = page.find_browser()
    if not HAS_PAGE or not browser:
        pytest.skip(why_not or "needs the extras onnx and page")
    try:
        page.browser_runtime()
    except UsageError as error:
        pytest.skip(str(error))
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("browser")
    others = [train_family(folder / name, name) for name in ("token_learner_vit", "shiftvit")]
    words = [f"--workdir={run}", "--to=page", f"--beside={','.join(map(str, others))}", f"--out={folder}"]
    assert verb.main(words) == 0
    (folder / "elsewhere").mkdir()
    path = Path(shutil.move(folder / "page.html", folder / "elsewhere" / "demo.html"))
    flags = runpy.run_path(str(FORMATS["page"].loader))["FLAGS"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=list(flags))

        def opened(file, **settings):
            settings = {"viewport": {"width": 1440, "height": 900}, **settings}
            tab = chromium.new_context(offline=True, **settings).new_page()
            tab.set_default_timeout(120_000)
            tab.wrong = []
            tab.on("console", lambda it: tab.wrong.append(it.text) if it.type in ("error", "warning") else None)
            tab.on("pageerror", lambda it: tab.wrong.append(str(it)))
            tab.on("request", lambda it: tab.wrong.append(it.url) if it.url.startswith("http") else None)
            tab.goto(Path(file).as_uri())
            tab.evaluate("() => jaxvit.ready")
            return tab

        yield path, opened
        chromium.close()


def pictures():
    """(name, bytes of the file, largest allowed difference) of files of odd sizes."""
    rng = np.random.default_rng(0)

    def smooth(height, width, channels):
        """Noise with detail of several sizes."""
        small = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, channels), dtype=np.uint8)
        big = np.repeat(np.repeat(small, 3, axis=0), 3, axis=1)[:height, :width].astype(int)
        return np.clip(big + rng.integers(-40, 41, (height, width, channels)), 0, 255).astype(np.uint8)

    def file(image, kind="PNG", **settings):
        buffer = io.BytesIO()
        image.save(buffer, kind, **settings)
        return buffer.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    for height, width in (
        (1, 1),
        (8, 8),
        (7, 5),
        (33, 77),
        (131, 64),
        (3, 400),
        (240, 321),
        (5, 8),
        (400, 3),
        (640, 200),
        (2000, 16),
    ):
        yield f"rgb {height}x{width}", file(Image.fromarray(smooth(height, width, 3))), 0
    yield "grey", file(Image.fromarray(smooth(45, 31, 1)[..., 0])), 0
    yield "transparent", file(Image.fromarray(smooth(45, 31, 4))), 0
    yield "grey and transparent", file(Image.fromarray(smooth(45, 31, 2))), 0
    yield "turned", file(Image.fromarray(smooth(45, 31, 3)), exif=turned), 0
    yield "one bit", file(Image.fromarray(smooth(45, 31, 1)[..., 0]).convert("1")), 0
    yield "WebP", file(Image.fromarray(smooth(45, 31, 3)), "WEBP", lossless=True), 0
    yield "GIF", file(Image.fromarray(smooth(45, 31, 3)).quantize(64), "GIF"), 1
    yield "JPEG, turned", file(Image.fromarray(smooth(45, 31, 3)), "JPEG", exif=turned, quality=95), 3


@pytest.mark.slow
def test_a_browser_reads_images_as_predict_does(in_browser):
    path, opened = in_browser
    tab = opened(path)
    different = {}
    for name, data, allowed in pictures():
        for shape in ((8, 8, 1), (32, 32, 3), (20, 33, 3)):
            found = tab.evaluate(
                "([file, shape]) => jaxvit.pixels(file, shape)", [base64.b64encode(data).decode(), list(shape)]
            )
            with Image.open(io.BytesIO(data)) as image:
                wanted = pixels_in_memory(image, shape)
            difference = np.abs(np.reshape(found, shape).astype(int) - wanted.astype(int)).max()
            if difference > allowed:
                different[name, shape] = int(difference)
    assert not different and not tab.wrong


@pytest.mark.slow
def test_a_page_answers_as_predict_does(in_browser, run):
    path, opened = in_browser
    tab = opened(path)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    wanted = np.asarray(jaxvit.load(run)(images))
    for image, row in zip(images, wanted, strict=True):
        said = tab.evaluate("x => jaxvit.probabilities(0, x)", base64.b64encode(image.tobytes()).decode())
        assert np.abs(np.array(said) - row).max() < 1e-4
    assert not tab.wrong


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_can_be_used(in_browser, run, tmp_path, scheme):
    path, opened = in_browser
    tab = opened(path, color_scheme=scheme)
    tab.locator("#sample-list button").nth(1).click()
    tab.wait_for_function("() => document.querySelectorAll('.answer').length === 3")
    tab.wait_for_function("() => document.querySelector('#status').textContent.startsWith('Answer: vit: ')")
    assert tab.locator("h1").inner_text() == "3 models on digits"
    assert tab.locator(".card h2").all_inner_texts() == ["vit", "token_learner_vit", "shiftvit"]
    assert tab.locator(".card .time").all_inner_texts() and tab.locator(".tiles li").count() == 5
    # The file of a picture, by keyboard and by mouse.
    loaded = jaxvit.load(run)
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    image.save(tmp_path / "mine.png")
    answer = loaded.predict(tmp_path / "mine.png").top[0]
    tab.set_input_files("#file", tmp_path / "mine.png")
    share = f"{100 * answer[1]:.1f} %"
    tab.wait_for_function(f"() => document.querySelector('#status').textContent.includes('vit: {answer[0]}, {share}')")
    # A button of a map shows it.
    tab.get_by_role("button", name="token 2").focus()
    tab.keyboard.press("Enter")
    label = tab.locator(".card").nth(1).locator("canvas.big").get_attribute("aria-label")
    assert label.startswith("token 2: strongest in row ")
    # Classes by name.
    tab.locator("details.all summary").first.click()
    tab.locator("input[type=search]").first.fill("7")
    assert tab.locator("details.all").first.locator("li .name").all_inner_texts() == ["7"]
    tab.locator("input[type=search]").first.fill("none of these")
    assert tab.locator("details.all").first.locator("p").inner_text() == "No class has this in its name."
    # Mistakes.
    (tmp_path / "notes.txt").write_text("no picture")
    tab.set_input_files("#file", tmp_path / "notes.txt")
    tab.wait_for_selector("#problem:visible")
    assert "“notes.txt” is not an image that this browser can read." in tab.locator("#problem").inner_text()
    tab.locator("#camera").click()
    tab.wait_for_function("() => document.querySelector('#problem').textContent.includes('camera')")
    for width in (320, 1440):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert not tab.wrong


@pytest.mark.slow
def test_a_page_has_no_serious_finding_of_axe(in_browser):
    script = os.environ.get("JAXVIT_AXE", "")
    if not script:
        pytest.skip("needs JAXVIT_AXE, the path of axe-core's axe.min.js")
    path, opened = in_browser
    for scheme in ("light", "dark"):
        tab = opened(path, color_scheme=scheme, bypass_csp=True)
        tab.wait_for_selector(".answer")
        tab.evaluate(Path(script).read_text())
        found = tab.evaluate("() => axe.run()")["violations"]
        assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")]
