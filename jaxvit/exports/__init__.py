"""Exports a trained model to files that run without jaxvit: `jaxvit.export` and the verb `jaxvit export`.

write.py       `jaxvit.export`: writes a temporary file, checks it, and moves it into place
model.py       the exported function: uint8 images to probabilities
formats.py     the list of formats
stablehlo.py, onnx_file.py, savedmodel.py, hub.py    one module for each format
page.py        the page format: one HTML file that runs models in a browser, from page_parts/
page_graph.py  the function that a page runs: probabilities, the model's input, and maps
browser_runtime.py    finds or fetches onnxruntime-web, and checks it by hash
page_in_browser.py    runs a page in Chromium, to check it
onnx_graph.py  rewrites an ONNX graph for onnxruntime: unsupported and slow operations
loaders/       standalone scripts, without jaxvit, that run the files
card.py        the model card of the hub format
check.py       runs an exported file in a fresh process and compares it with the model
"""
