"""Exports a trained model to files that run without jaxvit: `jaxvit.export` and the verb `jaxvit export`.

write.py       `jaxvit.export`: writes a temporary file, checks it, and moves it into place
model.py       the exported function: uint8 images to probabilities
formats.py     the list of formats
stablehlo.py, onnx_file.py, savedmodel.py, hub.py    one module for each format
onnx_graph.py  rewrites an ONNX graph for onnxruntime: unsupported and slow operations
loaders/       standalone scripts, without jaxvit, that run the files
card.py        the model card of the hub format
check.py       runs an exported file in a fresh process and compares it with the model
"""
