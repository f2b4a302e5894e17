"""Runs a model of jaxvit on photos: python run_onnx.py [model.onnx] photo.jpg …, or python run_onnx.py [model.onnx]
images.npy [out.npy]. Without the name of a model: model.onnx beside this script. Needs onnxruntime, and Pillow for
photos."""

import contextlib
import json
import os
import sys

import numpy as np
import onnxruntime

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "TGA", "HEIF")


def load(path):
    session = onnxruntime.InferenceSession(path)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["jaxvit"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0], facts


def read(file, shape, white=0):
    """Pixels uint8 [H, W, C] of an image file, as in training: upright, on white, cut to the centre."""
    from PIL import Image, ImageOps

    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    height, width, channels = shape
    Image.init()
    with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        deep = any(";16" in str(tile[3]) for tile in image.tile)
        if min(image.size) > 2 * max(height, width):
            image.draft(None, (2 * max(height, width),) * 2)
        image.load()
        with contextlib.suppress(Exception):  # damaged EXIF data turns nothing
            ImageOps.exif_transpose(image, in_place=True)
        image = to_eight_bits(image, deep, white)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode == "LAB":
            from PIL import ImageCms

            profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            image = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
        pixels = np.asarray(cover(image.convert("L" if channels == 1 else "RGB"), height, width))
    return pixels.reshape(shape)


def to_eight_bits(image, deep, white):
    """Images of 16 bits or more by their upper 8 bits, or so that the value `white` becomes 255."""
    from PIL import Image

    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM", "JPEG2000"))
    if sixteen or image.mode in ("I", "F"):
        values = np.asarray(image)
        if white:
            scaled = np.nan_to_num(np.clip(values.astype(np.float32) * (255 / white), 0, 255))
            return Image.fromarray(np.rint(scaled).astype(np.uint8))
        if not sixteen:
            raise ValueError("its pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits")
        return Image.fromarray((values.astype(np.int32) >> 8).astype(np.uint8))
    if deep and white:
        table = [min(255, round(value * 257 * 255 / white)) for value in range(256)]
        alpha = image.mode in ("LA", "RGBA")
        bands = [image.getchannel(name) for name in image.getbands()]
        bands = [band if alpha and i == len(bands) - 1 else band.point(table) for i, band in enumerate(bands)]
        return Image.merge(image.mode, bands)
    return image


def cover(image, height, width):
    """Resized until it just covers height × width, and cut to its centre."""
    from PIL import Image

    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    if wide * high > 16 * width * height:
        x, y = image.width / wide, image.height / high
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + width, top + height))


def shown(name):  # a file's control characters would reach the terminal
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


if __name__ == "__main__":
    files = sys.argv[1:]
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model.onnx")
    path = files.pop(0) if files and files[0].endswith(".onnx") else beside
    if not files:
        sys.exit(__doc__)
    try:
        model, facts = load(path)
    except Exception as error:
        sys.exit(f"{path!a}: cannot be used as a model ({shown(error).splitlines()[0]})")
    if files[0].endswith(".npy"):
        probabilities = model(np.load(files[0]))  # uint8 [B, H, W, C] to float32 [B, K]
        for row in probabilities[:8]:
            print(f"{shown(facts['class_names'][row.argmax()])} {row.max():.4f}")
        if len(files) > 1:
            np.save(files[1], probabilities)
        sys.exit()
    failed = 0
    for file in files:
        try:
            pixels = read(file, facts["image_shape"], facts.get("white", 0))
        except Exception as error:
            print(f"{file!a}: {shown(error)}", file=sys.stderr)
            failed = 1
            continue
        [row] = model(pixels[None])
        best = row.argsort()[::-1][:5]
        print(f"{shown(file)}: {', '.join(f'''{shown(facts['class_names'][k])} {row[k]:.6f}''' for k in best)}")
    sys.exit(failed)
