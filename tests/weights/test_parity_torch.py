"""Importers against PyTorch's own models, with random weights: timm, transformers, and the authors' code.

It needs the extra `parity`. The authors publish no packages: with checkouts of microsoft/SPACH and
SHI-Labs/Compact-Transformers in a folder, name it by JAXVIT_PARITY_SOURCES. `-s` prints the differences.
"""

import importlib
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvit.weights.pretrained import read_pretrained, write_arrays

torch = pytest.importorskip("torch", reason="needs the extra parity: torch")
SOURCES = os.environ.get("JAXVIT_PARITY_SOURCES", "")


def module(name, package):
    return pytest.importorskip(name, reason=f"needs the extra parity: {package}", exc_type=ImportError)


def randomize(model):
    """Kernels scaled by their inputs, norms and biases far from 1 and 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, array in model.named_parameters():
            noise = torch.randn_like(array)
            if array.ndim >= 2 and name.endswith("weight"):
                array.copy_(noise / array[0].numel() ** 0.5)
            elif name.endswith(("weight", "gamma", "lambda1", "gamma_1", "gamma_2")):
                array.copy_(1 + 0.3 * noise)
            else:
                array.copy_(0.2 * noise)
    return model.eval()


def compare(model, file, kind, image, forward=None, **how):
    """The largest difference of logits, relative to the largest where that is above 1; the file is written by torch."""
    randomize(model)
    if file.suffix == ".pth":
        torch.save({"model": model.state_dict(), "epoch": 3}, file)
    else:
        module("safetensors.torch", "safetensors").save_file(
            {name: array.contiguous() for name, array in model.state_dict().items()}, file
        )
    images = torch.randn(2, 3, *image)
    with torch.no_grad():
        expected = (forward or model)(images)
        expected = getattr(expected, "logits", expected).numpy()
    found = read_pretrained(file, **how)
    assert found.origin.name == kind and not found.unused and not found.fresh
    run = jax.jit(lambda variables, x: found.model.apply(variables, x, train=False))
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(run({"params": found.params}, images.permute(0, 2, 3, 1).numpy()))
    difference, largest = np.abs(logits - expected).max(), np.abs(expected).max()
    print(f"\n{file.name}: difference {difference:.1e}, logits up to {largest:.2f}")
    assert largest > 0.1 and difference < 1e-4 * max(1, largest)


SMALL = {"img_size": 64, "patch_size": 16, "embed_dim": 192, "depth": 3, "num_heads": 3, "num_classes": 10}
TIMM = {
    "ViT-S reg4 gap": {"class_token": False, "global_pool": "avg", "reg_tokens": 4, "no_embed_class": True},
    "ViT-S reg4 with positions": {"reg_tokens": 4},
    "ViT-S qk-norm": {"qk_norm": True},
    "ViT-S gap": {"global_pool": "avg", "class_token": False},
    "MAE": {"global_pool": "avg"},
    "DeiT III": {"no_embed_class": True, "init_values": 1e-6},
}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_base_patch32_224"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_models_of_timm(tmp_path, name, ending):
    timm = module("timm", "timm")
    model = timm.create_model(name, pretrained=False, num_classes=10)
    compare(model, tmp_path / f"{name}.{ending}", "timm", (224, 224))


@pytest.mark.parametrize("name", TIMM)
def test_options_of_timm(tmp_path, name):
    transformer = module("timm.models.vision_transformer", "timm")
    how = {"overrides": {"heads": 3}} if name != "ViT-S qk-norm" else {}
    model = transformer.VisionTransformer(**SMALL, **TIMM[name])
    compare(model, tmp_path / f"{name}.pth", "timm", (64, 64), **how)


@pytest.mark.parametrize("options", [{"reg_tokens": 2}, TIMM["ViT-S reg4 gap"], TIMM["DeiT III"]])
def test_timm_loads_what_is_written(tmp_path, options):
    """As `jaxvit export --layout=timm` writes it: timm finds every name, and the logits are the same."""
    transformer = module("timm.models.vision_transformer", "timm")
    model = randomize(transformer.VisionTransformer(**SMALL, **options))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    found = read_pretrained(tmp_path / "a.pth", overrides={"heads": 3})
    arrays = write_arrays(found.params, found.origin, found.model)
    again = transformer.VisionTransformer(**SMALL, **options).eval()
    again.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in arrays.items()}, strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        np.testing.assert_allclose(again(images), model(images), atol=1e-5)


SIZE = {"hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 64, "num_labels": 10}


@pytest.mark.parametrize("name", ["ViT", "DeiT"])
def test_models_of_transformers(tmp_path, name):
    """The names of its state dict and those of `save_pretrained`, which differ from release 5 on."""
    transformers = module("transformers", "transformers")
    config = getattr(transformers, f"{name}Config")(**SIZE, intermediate_size=384, patch_size=16)
    model = getattr(transformers, f"{name}ForImageClassification")(config)
    compare(model, tmp_path / f"{name}.safetensors", "transformers", (64, 64))
    model.save_pretrained(tmp_path / "saved")
    same = jax.tree.map(
        np.array_equal,
        read_pretrained(tmp_path / "saved" / "model.safetensors").params,
        read_pretrained(tmp_path / f"{name}.safetensors").params,
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters"])
def test_dinov2_of_transformers(tmp_path, name):
    """The class token after the last norm; there is no classifier to compare."""
    transformers = module("transformers", "transformers")
    config = getattr(transformers, f"{name}Config")(**SIZE, mlp_ratio=2, patch_size=16)
    model = randomize(getattr(transformers, f"{name}Model")(config))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).last_hidden_state[:, 0].numpy()
    found = read_pretrained(tmp_path / "a.pth")
    run = jax.jit(lambda variables, x: found.model.apply(variables, x, train=False, method="features"))
    with jax.default_matmul_precision("highest"):
        features = np.asarray(run({"params": found.params}, images.permute(0, 2, 3, 1).numpy()))[:, 0]
    difference = np.abs(features - expected).max()
    print(f"\n{name}: difference {difference:.1e}, features up to {np.abs(expected).max():.2f}")
    assert found.origin.name == "transformers" and difference < 1e-4 * max(1, np.abs(expected).max())


@pytest.fixture
def authors(monkeypatch):
    def load(folder, name):
        path = Path(SOURCES) / folder
        if not SOURCES or not path.is_dir():
            pytest.skip(f"needs a checkout of {folder} in the folder that JAXVIT_PARITY_SOURCES names")
        monkeypatch.syspath_prepend(path)
        before = set(sys.modules)
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"the code of {folder} needs {error.name}")
        finally:
            for each in set(sys.modules) - before:
                if each.split(".")[0] == name.split(".")[0]:
                    sys.modules.pop(each)

    return load


@pytest.mark.parametrize(("dim", "divisions"), [(64, 16), (96, 12), (128, 16)])
def test_the_code_of_spach(authors, tmp_path, dim, divisions):
    """Widths of the published tiny, small and base sizes, and one whose divisions are not the guess."""
    code = authors("SPACH", "models.shiftvit")
    model = code.ShiftViT(mlp_ratio=2.0, n_div=divisions, embed_dim=dim, depths=(1, 2, 1, 1), num_classes=10)
    how = {"overrides": {"divisions": divisions}} if dim == 64 else {}
    compare(model, tmp_path / f"{dim} channels.pth", "spach", (224, 224), **how)


CCT = ["cct_2_3x2_32", "cct_7_3x1_32", "cct_7_3x1_32_sine", "cct_14_7x2_224", "cvt_7_4_32", "vit_7_4_32"]


@pytest.mark.parametrize("name", CCT)
def test_the_code_of_compact_transformers(authors, tmp_path, name):
    file = "cct" if name.startswith("cct") else "cvt" if name.startswith("cvt") else "vit"
    code = authors("Compact-Transformers", f"src.{file}")
    side = 224 if name.endswith("224") else 32
    model = getattr(code, name)(pretrained=False, progress=False)
    compare(model, tmp_path / f"{name}.pth", "compact_transformers", (side, side))
