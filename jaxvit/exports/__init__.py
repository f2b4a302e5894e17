"""A trained model as files that run without jaxvit: `jaxvit.export`, and the verb of that name.

write.py       the way in, `jaxvit.export`: writes beside its place, checks, and only then gives a name
model.py       the function that every format holds: uint8 images to probabilities
formats.py     what a format is, and the list of them
stablehlo.py, onnx_file.py, savedmodel.py, hub.py    one each
onnx_graph.py  a graph rewritten into what onnxruntime has and is fast at
loaders/       what runs a file, each a script of its own, which knows nothing of jaxvit
card.py        the model card of hub/
check.py       runs a written file in a fresh process and compares
"""
