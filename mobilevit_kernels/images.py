"""Image files as the networks take them: which files are images, decoding, resizing, class names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

__all__ = ["IMAGE_SIZE", "SHORT_SIDE", "SUFFIXES", "find_images", "imagenet_names", "read_image"]

IMAGE_SIZE = 256
SHORT_SIDE = 284  # 256 / 0.9: the crop that the published accuracies were measured with
MAX_ASPECT_RATIO = 100  # a picture of 1 × 50000 pixels would be resized to 284 × 14 million

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})


def find_images(folder: Path) -> list[Path]:
    """The files below ``folder`` that have an image's suffix, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())


def read_image(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    size: int = IMAGE_SIZE,
    short_side: int = SHORT_SIDE,
    max_pixels: int | None = None,
) -> Tensor:
    """An image as the networks take it: the shorter side to ``short_side``, then the central ``size`` × ``size``.

    Args:
        source: a path, or an open binary file.
        size: pixels of a side of the result.
        short_side: pixels of the shorter side before the crop, at least ``size``.
        max_pixels: refuse a larger image before it is decoded; None: Pillow's own limit alone.

    Returns:
        uint8 (size, size, 3), RGB.

    Raises:
        ValueError: the file cannot be read as an image; the message begins with its path, where it has one.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    if short_side < size:
        raise ValueError(f"short_side: expected at least size = {size}, got {short_side}")
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "image"
    try:
        with Image.open(source) as file:
            if max_pixels is not None and file.width * file.height > max_pixels:
                raise ValueError(f"expected at most {max_pixels} pixels, got {file.width} × {file.height}")
            image = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{name}: expected an image file, got a folder") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: cannot be read as an image (not a format that Pillow knows)") from None
    except Exception as error:  # whatever a broken file leads a decoder to: OSError, SyntaxError, struct.error …
        raise ValueError(f"{name}: cannot be read as an image ({error or type(error).__name__})") from error
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(
            f"{name}: expected a longer side of at most {MAX_ASPECT_RATIO} times the shorter, "
            f"got {image.width} × {image.height} pixels"
        )
    scale = short_side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image))


def imagenet_names() -> list[str] | None:
    """The names of ImageNet's 1000 classes in the order of the networks' outputs; None without timm, which has them."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    imagenet = ImageNetInfo()
    return [imagenet.index_to_description(i) for i in range(1000)]
