"""Picture files -> tensors. The only file that imports Pillow."""

from __future__ import annotations

import io
import math
from typing import Any, Final

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from pelton.errors import InvalidInput, PackageInvalid, TooLarge
from pelton.packages.preprocess import Crop, Image, Resize
from pelton.transforms.elements import to_type
from pelton.transforms.fields import FieldSpec, Prepared, file_bytes, place, stack
from pelton.types import Array, Fields, TensorSpec

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # few decoders, small attack surface
_FILTERS: Final = {
    "nearest": Pillow.Resampling.NEAREST,
    "bilinear": Pillow.Resampling.BILINEAR,
    "bicubic": Pillow.Resampling.BICUBIC,
    "lanczos": Pillow.Resampling.LANCZOS,
}
_BOMBS: Final = (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning)


class Pictures:
    """A compiled image block."""

    heavy = True

    def __init__(self, block: Image, spec: TensorSpec) -> None:
        what = "a picture file (PNG, JPEG, WebP, GIF, BMP, TIFF): its bytes, or base64 text"
        self.fields = (FieldSpec(block.field, "image", True, what),)
        self._block = block
        self._spec = spec
        self._channels = 1 if block.mode == "L" else 3
        self._mode = "L" if block.mode == "L" else "RGB"
        _check(block, spec, self._channels)
        self._factor, self._offset = _affine(block, spec, self._channels)
        if block.layout == "CHW":
            self._factor, self._offset = self._factor[:, None, None], self._offset[:, None, None]
        self._rank = len(spec.shape)

    def __call__(self, fields: Fields) -> Prepared:
        values = fields[self._block.field]
        rows = [self._row(value, place(self._block.field, row, len(values))) for row, value in enumerate(values)]
        return Prepared([stack(self._block.field, rows, self._spec.pad)])

    def _row(self, value: Any, where: str) -> Array:
        data = file_bytes(where, value, self._block.max_bytes)
        picture = _decode(data, where, self._block.max_pixels)
        picture = picture if picture.mode == self._mode else picture.convert(self._mode)
        if self._block.resize is not None:
            picture = _resize(picture, self._block.resize, where, self._block.max_pixels)
        if self._block.crop is not None:
            picture = _crop(picture, self._block.crop, where)
        return self._fit(self._normalized(np.asarray(picture)), where)

    def _normalized(self, pixels: Array) -> Array:
        """uint8 [h, w] or [h, w, 3] -> elements in the declared layout, contiguous."""
        planes = pixels[..., None] if self._channels == 1 else pixels
        if self._block.mode == "BGR":
            planes = planes[..., ::-1]
        if self._block.layout == "CHW":
            planes = planes.transpose(2, 0, 1)
        result = np.empty(planes.shape, np.float32)  # numpy would choose the order of the pixels' memory
        np.multiply(planes, self._factor, out=result)
        result += self._offset
        return to_type(result if self._spec.type.kind == "float" else np.rint(result), self._spec.type)

    def _fit(self, array: Array, where: str) -> Array:
        shape = self._spec.shape
        if self._rank == 2:
            array = array.squeeze(0 if self._block.layout == "CHW" else 2)
        elif self._rank == 1:
            array = array.reshape(-1)
        if any(need not in (-1, dim) for need, dim in zip(shape, array.shape, strict=True)):
            raise InvalidInput(f"{where}: the picture gives {list(array.shape)}; the model takes {list(shape)}")
        return array


def _check(block: Image, spec: TensorSpec, channels: int) -> None:
    what = f"image block {block.field!r}"
    for name, size in (("resize", block.resize), ("crop", block.crop)):
        if size is not None and (size.height < 1 or size.width < 1):
            raise PackageInvalid(f"{what}: {name} must be at least 1 x 1")
    if block.resize is not None and not 0 <= block.resize.fill <= 255:
        raise PackageInvalid(f"{what}: fill must be 0 to 255, not {block.resize.fill}")
    if block.max_pixels < 1 or block.max_bytes < 1:
        raise PackageInvalid(f"{what}: max_pixels and max_bytes must be positive")
    for name, numbers in (("mean", block.mean), ("std", block.std)):
        if len(numbers) not in (1, channels) or not all(map(math.isfinite, numbers)):
            raise PackageInvalid(f"{what}: {name} needs 1 or {channels} finite numbers, not {list(numbers)}")
    if 0.0 in block.std:
        raise PackageInvalid(f"{what}: std must not be 0")
    resize, crop = block.resize, block.crop
    if resize and crop and (resize.height < crop.height or resize.width < crop.width):
        raise PackageInvalid(f"{what}: the crop is larger than the resized picture")
    _check_shape(block, spec, channels, what)


def _check_shape(block: Image, spec: TensorSpec, channels: int, what: str) -> None:
    last = block.crop or (block.resize if block.resize and block.resize.fit != "shorter" else None)
    height, width = (last.height, last.width) if last else (-1, -1)
    shape: tuple[int, ...] = (channels, height, width) if block.layout == "CHW" else (height, width, channels)
    if len(spec.shape) == 1:
        shape = (height * width * channels if last else -1,)
    elif len(spec.shape) == 2 and channels == 1:
        shape = (height, width)
    agree = all(-1 in pair or pair[0] == pair[1] for pair in zip(shape, spec.shape, strict=False))
    if len(shape) != len(spec.shape) or not agree:
        raise PackageInvalid(f"{what} gives {shape}; the input {spec.name!r} has the shape {spec.shape}")


def _affine(block: Image, spec: TensorSpec, channels: int) -> tuple[Array, Array]:
    """float32 [channels] twice: (x * scale - mean) / std = x * factor + offset."""
    std = np.broadcast_to(np.array(block.std), (channels,))
    factor = block.scale / std
    offset = -np.array(block.mean) / std
    if spec.type.kind != "float":
        _check_whole(block, spec, np.arange(256)[None, :] * factor[:, None] + offset[:, None])
    return factor.astype(np.float32), offset.astype(np.float32)


def _check_whole(block: Image, spec: TensorSpec, elements: Array) -> None:
    """An integer input must be able to hold what each of the 256 levels becomes."""
    limits = np.iinfo(spec.type.dtype) if spec.type.kind == "int" else None
    whole = np.array_equal(elements, np.rint(elements)) and np.abs(elements).max() < 1 << 24
    if limits is None or not whole or elements.min() < limits.min or elements.max() > limits.max:
        raise PackageInvalid(
            f"image block {block.field!r}: {spec.datatype} cannot hold (x * {block.scale} - mean) / std for every x"
        )


def _decode(data: bytes | bytearray | memoryview, where: str, max_pixels: int) -> Pillow.Image:
    """The first frame, upright, as "L" or "RGB"."""
    try:
        with Pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:  # known from the header, before any pixel is decoded
                raise TooLarge(f"{where}: the picture has {width} x {height} pixels; at most {max_pixels} are accepted")
            picture.load()
            return _plain(_upright(picture), where)
    except InvalidInput:
        raise
    except _BOMBS:
        raise TooLarge(f"{where}: the picture has too many pixels; at most {max_pixels} are accepted") from None
    except UnidentifiedImageError:
        raise InvalidInput(f"{where}: this is not a picture in one of the formats {', '.join(FORMATS)}") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on a damaged file
        raise InvalidInput(f"{where}: the picture is damaged or cut short ({error})") from None


def _upright(picture: Pillow.Image) -> Pillow.Image:
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001, S110 - a damaged EXIF block leaves a good picture, whose orientation nobody knows
        pass
    return picture


def _plain(picture: Pillow.Image, where: str) -> Pillow.Image:
    """Any of Pillow's modes -> "L" or "RGB", transparency on white, 16 bits scaled to 8."""
    mode = picture.mode
    if mode == "F":
        raise InvalidInput(f"{where}: a picture with floating-point pixels has no known range; send 8 or 16 bits")
    if mode.startswith("I"):
        return Pillow.fromarray(_eight_bits(np.asarray(picture), where))
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        return _on_white(picture.convert("RGBA"))
    if mode in ("L", "1"):
        return picture.convert("L")
    return picture.convert("RGB")


def _eight_bits(pixels: Array, where: str) -> Array:
    if pixels.min() < 0 or pixels.max() > 65535:
        raise InvalidInput(f"{where}: grey levels beyond 16 bits have no known range; send 8 or 16 bits")
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_white(picture: Pillow.Image) -> Pillow.Image:
    white = Pillow.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=picture.getchannel("A"))
    return white


def _resize(picture: Pillow.Image, resize: Resize, where: str, max_pixels: int) -> Pillow.Image:
    width, height = _target(picture.size, resize)
    if width * height > max_pixels:  # a picture of one line, scaled by its shorter side
        raise TooLarge(f"{where}: the picture would be scaled to {width} x {height}; at most {max_pixels} pixels")
    scaled = picture
    if (width, height) != picture.size:
        scaled = picture.resize((width, height), _FILTERS[resize.interpolation])
    if resize.fit != "pad" or scaled.size == (resize.width, resize.height):
        return scaled
    fill = resize.fill if picture.mode == "L" else (resize.fill,) * 3
    padded = Pillow.new(picture.mode, (resize.width, resize.height), fill)
    padded.paste(scaled, (0, 0))
    return padded


def _target(size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Width and height after the resize. Integer arithmetic: the side that decides comes out exactly."""
    width, height = size
    if resize.fit == "stretch":
        return resize.width, resize.height
    by_width = resize.width * height >= resize.height * width  # the width needs the larger factor
    if resize.fit == "pad":
        by_width = not by_width
    if by_width:
        return resize.width, max(1, height * resize.width // width)
    return max(1, width * resize.height // height), resize.height


def _crop(picture: Pillow.Image, crop: Crop, where: str) -> Pillow.Image:
    width, height = picture.size
    if width < crop.width or height < crop.height:
        raise InvalidInput(f"{where}: the picture has {width} x {height} pixels; at least {crop.width} x {crop.height}")
    left, top = (width - crop.width) // 2, (height - crop.height) // 2
    return picture.crop((left, top, left + crop.width, top + crop.height))
