"""Runs the models of a page in Chromium, without a network, or its ONNX graphs with onnxruntime. Needs no jaxvit."""

import base64
import gzip
import html.parser
import json
import pathlib

import numpy as np

FLAGS = (
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-gpu", "--no-default-browser-check", "--mute-audio"),
)
PATIENCE = 600_000  # milliseconds


class Scripts(html.parser.HTMLParser):
    """Collects the texts of a page's scripts that have an id."""

    def __init__(self):
        super().__init__()
        self.id, self.texts = "", {}

    def handle_starttag(self, tag, attrs):
        self.id = dict(attrs).get("id", "") if tag == "script" else ""

    def handle_endtag(self, tag):
        self.id = ""

    def handle_data(self, data):
        if self.id:
            self.texts[self.id] = self.texts.get(self.id, "") + data


def scripts_of(path):
    """{id: text} of the scripts of a page."""
    parser = Scripts()
    parser.feed(pathlib.Path(path).read_text(encoding="utf-8"))
    parser.close()
    return parser.texts


def load(path, browser="", model=0):
    """(function of uint8 images [B, H, W, C], facts) of one model of a page.

    Args:
      path: the page.
      browser: path of Chromium; '' = run the graph with onnxruntime.
      model: number of the model.
    """
    texts = scripts_of(path)
    facts = json.loads(texts["facts"])["models"][model]
    if browser:
        return lambda images: in_browser(path, browser, model, images), facts
    import onnxruntime

    graph = gzip.decompress(base64.b64decode(texts[f"model-{model}"]))
    session = onnxruntime.InferenceSession(graph)
    name, (first, *_) = session.get_inputs()[0].name, session.get_outputs()
    return lambda images: session.run([first.name], {name: images})[0], facts


def in_browser(path, browser, model, images):
    """Probabilities float32 [B, K] that the page computes; any request, and any error on its console, is an error."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS), timeout=PATIENCE)
        try:
            context = chromium.new_context(offline=True)
            context.set_default_timeout(PATIENCE)
            page, said = context.new_page(), []
            page.on("request", lambda it: said.append(f"it requests {it.url[:80]}") if leaves(it.url) else None)
            page.on("console", lambda it: said.append(it.text) if it.type == "error" else None)
            page.on("pageerror", lambda it: said.append(str(it)))
            page.goto(pathlib.Path(path).resolve().as_uri())
            rows = []
            for image in np.ascontiguousarray(images):
                pixels = base64.b64encode(image.tobytes()).decode()
                rows.append(page.evaluate("async ([i, x]) => { await jaxvit.ready; return jaxvit.probabilities(i, x) }",
                                          [model, pixels]))  # fmt: skip
            if said:
                raise RuntimeError(f"Error: in the browser: {said[0]}")
        finally:
            chromium.close()
    return np.asarray(rows, np.float32)


def leaves(address):
    """Whether a request leaves the page's file."""
    return not address.startswith(("file:", "blob:", "data:"))
