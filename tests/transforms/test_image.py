"""Pictures, against plain numpy."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from pelton.errors import InvalidInput, PackageInvalid, TooLarge
from pelton.packages.preprocess import Crop, Image, Resize
from pelton.transforms import compile_prepare
from pelton.transforms.image import Pictures
from pelton.types import TensorSpec

HEIGHT, WIDTH = 6, 8


def gradient(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Every channel differs, every pixel differs, rows and columns differ."""
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [(x * 255) // max(1, width - 1), (y * 255) // max(1, height - 1), (x * 7 + y * 13) % 256], -1
    ).astype(np.uint8)


def encoded(picture: Pillow.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (Pillow.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, format, **options)
    return file.getvalue()


def pictures(
    shape: tuple[int, ...] = (-1, -1, 3), datatype: str = "FP32", pad: float | None = None, **block: Any
) -> Pictures:
    block.setdefault("layout", "HWC" if shape[-1] in (1, 3) else "CHW")
    return Pictures(Image("photo", "x", **block), TensorSpec("x", datatype, shape, pad=pad))


def decoded(data: bytes, **block: Any) -> np.ndarray:
    return pictures((-1, -1, 1) if block.get("mode") == "L" else (-1, -1, 3), **block)({"photo": [data]}).inputs[0][0]


def refused(data: Any, kind: type[InvalidInput] = InvalidInput, **block: Any) -> str:
    with pytest.raises(kind) as caught:
        decoded(data, **block)
    assert "'photo'" in str(caught.value)
    return str(caught.value)


def test_crop_normalization_and_layout_agree_with_plain_numpy() -> None:
    pixels = gradient()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    block = pictures((3, 4, 4), crop=Crop(4, 4), scale=1 / 255, mean=mean, std=std)
    array = block({"photo": [encoded(pixels)]}).inputs[0]
    expected = (pixels[1:5, 2:6].astype(np.float64) / 255 - mean) / std
    assert array.dtype == np.float32
    np.testing.assert_allclose(array[0], expected.transpose(2, 0, 1), rtol=0, atol=1e-6)
    hwc = pictures((4, 4, 3), crop=Crop(4, 4), scale=1 / 255, mean=mean, std=std)({"photo": [encoded(pixels)]})
    np.testing.assert_array_equal(hwc.inputs[0][0], array[0].transpose(1, 2, 0))


def test_bgr_normalizes_in_the_order_of_the_mode() -> None:
    pixels = gradient()
    array = pictures((3, 6, 8), mode="BGR", mean=(1, 2, 3))({"photo": [encoded(pixels)]}).inputs[0][0]
    np.testing.assert_array_equal(array, (pixels[..., ::-1].astype(np.float32) - [1, 2, 3]).transpose(2, 0, 1))
    hwc = decoded(encoded(pixels), mode="BGR", mean=(1, 2, 3))
    np.testing.assert_array_equal(hwc, array.transpose(1, 2, 0))


@pytest.mark.parametrize(("fit", "size"), [("stretch", (16, 12)), ("shorter", (21, 16)), ("pad", (16, 12))])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_pillows_with_the_named_filter(fit: Any, size: tuple[int, int], interpolation: Any) -> None:
    pixels = gradient(48, 64)
    height = 12 if fit == "stretch" else 16
    array = decoded(encoded(pixels), resize=Resize(height, 16, fit, interpolation, fill=9))
    expected = np.asarray(Pillow.fromarray(pixels).resize(size, getattr(Pillow.Resampling, interpolation.upper())))
    np.testing.assert_array_equal(array[: size[1], : size[0]], expected)
    if fit == "pad":
        assert array.shape == (16, 16, 3)
        assert (array[12:] == 9).all()


def test_antialiased_shrinking_keeps_the_mean_of_a_fine_pattern() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    array = decoded(encoded(board.astype(np.uint8)), mode="L", resize=Resize(8, 8))
    assert np.abs(array - 127.5).max() <= 2


def test_the_exif_orientation_is_applied() -> None:
    pixels = gradient()
    for orientation, expected in (
        (3, pixels[::-1, ::-1]),
        (6, np.rot90(pixels, -1)),
        (8, np.rot90(pixels)),
        (2, pixels[:, ::-1]),
        (5, pixels.transpose(1, 0, 2)),
    ):
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        np.testing.assert_array_equal(decoded(encoded(pixels, exif=exif)), expected)


def test_a_damaged_exif_block_leaves_the_picture_as_it_stands() -> None:
    pixels = gradient()
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"):
        np.testing.assert_array_equal(decoded(encoded(pixels, exif=exif)), pixels)


def test_transparency_is_laid_on_white() -> None:
    pixels = gradient()
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[0] = 0
    array = decoded(encoded(np.concatenate([pixels, alpha], axis=2)))
    assert (array[0] == 255).all()
    np.testing.assert_array_equal(array[1:], pixels[1:])
    half = Pillow.new("RGBA", (1, 1), (255, 0, 55, 128))
    np.testing.assert_allclose(decoded(encoded(half))[0, 0], [255, 127, 155], atol=1)
    grey = Pillow.merge("LA", (Pillow.new("L", (2, 1), 100), Pillow.new("L", (2, 1), 0)))
    assert decoded(encoded(grey), mode="L").tolist() == [[[255], [255]]]


def test_a_transparent_colour_of_a_palette_is_laid_on_white() -> None:
    palette = Pillow.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decoded(encoded(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decoded(encoded(palette, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bits_are_scaled_to_eight() -> None:
    levels = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    assert decoded(encoded(levels), mode="L")[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert decoded(encoded(levels, "TIFF"))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_black_and_white_grey_and_cmyk_are_pictures_too() -> None:
    bits = Pillow.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert decoded(encoded(bits)).tolist() == [[[0] * 3, [255] * 3]]
    cmyk = Pillow.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = decoded(encoded(cmyk, "JPEG", quality=95))[4, 4]
    assert red[0] > 230
    assert red[1:].max() < 30


def test_pixels_without_a_known_range_are_refused() -> None:
    assert "range" in refused(encoded(Pillow.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
    assert "16 bits" in refused(encoded(Pillow.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read_and_half_of_a_file_is_refused(format: str) -> None:
    pixels = np.full((64, 64, 3), (200, 60, 20), np.uint8)
    pixels[::2] = np.random.default_rng(0).integers(0, 255, (32, 64, 3))
    data = encoded(pixels, format)
    assert decoded(data).shape == (64, 64, 3)
    assert "Traceback" not in refused(data[: len(data) // 2])


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Pillow.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert decoded(data)[0, 0].tolist() == [255, 0, 0]


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    for side in (8_000, 12_000, 60_000):  # 64, 144 and 3600 megapixels: below and above Pillow's own limits
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        assert "50000000" in refused(bomb, TooLarge)


def test_a_line_that_would_be_blown_up_is_refused() -> None:
    line = encoded(np.zeros((1, 5000, 3), np.uint8))
    assert "scaled" in refused(line, TooLarge, resize=Resize(224, 224, "shorter"), max_pixels=1_000_000)


def test_limits_of_bytes_and_pixels_hold() -> None:
    data = encoded(gradient())
    refused(data, TooLarge, max_pixels=47)
    refused(data, TooLarge, max_bytes=len(data) - 1)
    refused(base64.b64encode(data * 2).decode(), TooLarge, max_bytes=len(data))
    assert decoded(data, max_pixels=48, max_bytes=len(data)).shape == (6, 8, 3)


def test_base64_line_breaks_data_urls_and_b64_objects_are_files() -> None:
    data = encoded(gradient())
    text = base64.b64encode(data).decode()
    for value in (
        text,
        base64.encodebytes(data).decode(),
        f"data:image/png;base64,{text}",
        {"b64": text},
        bytearray(data),
        memoryview(data),
    ):
        np.testing.assert_array_equal(decoded(value), gradient())


@pytest.mark.parametrize(
    "value",
    [
        "",
        b"",
        "%%%",
        "data:image/png,abc",
        "data:",
        None,
        5,
        [1],
        {"b64": 5},
        {"x": "y"},
        b"\x00" * 100,
        b"GIF89a",
        "aGVsbG8=",
        "\ud800",
    ],
)
def test_what_is_no_picture_is_refused(value: Any) -> None:
    refused(value)


def test_other_formats_that_pillow_knows_are_not_read() -> None:
    assert "PNG" in refused(encoded(gradient(), "PPM"))


@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
@settings(deadline=None)
def test_damaged_files_give_a_picture_or_an_invalid_input(noise: bytes, at: int, format: str) -> None:
    data = encoded(gradient(16, 16), format)
    at %= len(data)
    try:
        decoded(data[:at] + noise + data[at + len(noise) :])
    except InvalidInput as error:
        assert "'photo'" in str(error)  # noqa: PT017


def test_pictures_of_unlike_size_share_a_call_only_where_they_can_be_padded() -> None:
    small, large = encoded(gradient(2, 3)), encoded(gradient(4, 2))
    with pytest.raises(InvalidInput, match="different shapes"):
        pictures()({"photo": [small, large]})
    array = pictures((3, -1, -1), pad=-1.0)({"photo": [small, large]}).inputs[0]
    assert array.shape == (2, 3, 4, 3)
    assert (array[0, :, 2:] == -1).all()
    assert (array[1, :, :, 2:] == -1).all()


def test_the_row_of_a_bad_picture_is_named() -> None:
    with pytest.raises(InvalidInput, match="'photo', row 1"):
        pictures()({"photo": [encoded(gradient()), b"no"]})


def test_a_grey_picture_fills_two_dimensions_and_any_picture_one() -> None:
    pixels = gradient()[..., 2]
    for layout in ("CHW", "HWC"):
        array = pictures((6, 8), mode="L", layout=layout)({"photo": [encoded(pixels)]}).inputs[0]
        np.testing.assert_array_equal(array[0], pixels)
    array = pictures((48,), mode="L", resize=Resize(6, 8))({"photo": [encoded(pixels)]}).inputs[0]
    np.testing.assert_array_equal(array[0], pixels.ravel())


def test_bytes_of_pixels_can_be_the_input() -> None:
    array = pictures((6, 8, 3), "UINT8")({"photo": [encoded(gradient())]}).inputs[0]
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[0], gradient())
    inverted = pictures((6, 8, 3), "INT64", scale=-1, mean=(-255,))({"photo": [encoded(gradient())]}).inputs[0]
    assert inverted.dtype == np.int64
    np.testing.assert_array_equal(inverted[0], 255 - gradient().astype(int))
    half = pictures((6, 8, 3), "FP16", scale=1 / 255)({"photo": [encoded(gradient())]}).inputs[0]
    np.testing.assert_allclose(half[0], gradient() / 255, atol=1e-3)


def test_a_picture_of_another_size_than_the_fixed_input_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\[3, 6, 8\]"):
        pictures((3, 5, 5))({"photo": [encoded(gradient())]})
    with pytest.raises(InvalidInput, match="at least 9 x 3"):
        pictures((3, 3, 9), crop=Crop(3, 9))({"photo": [encoded(gradient())]})


@pytest.mark.parametrize(
    ("shape", "datatype", "block"),
    [
        ((3, 5, 5), "FP32", {"crop": Crop(4, 4)}),
        ((3, 4, 4), "FP32", {"crop": Crop(4, 4), "layout": "HWC"}),
        ((3, 4), "FP32", {}),
        ((3, 4, 4), "UINT8", {"scale": 0.5}),
        ((3, 4, 4), "INT8", {}),
        ((3, 4, 4), "BYTES", {}),
        ((3, 4, 4), "FP32", {"mean": (1.0, 2.0)}),
        ((3, 4, 4), "FP32", {"std": (1.0, 0.0, 1.0)}),
        ((3, 4, 4), "FP32", {"crop": Crop(4, 4), "resize": Resize(3, 9)}),
        ((3, 4, 4), "FP32", {"crop": Crop(0, 4)}),
        ((3, 4, 4), "FP32", {"resize": Resize(4, 4, fill=256)}),
    ],
)
def test_a_block_that_contradicts_its_input_is_an_invalid_package(
    shape: Any, datatype: str, block: dict[str, Any]
) -> None:
    with pytest.raises(PackageInvalid):
        pictures(shape, datatype, **{"layout": "CHW", **block})


def test_the_compiled_package_says_what_to_send(make: Any) -> None:
    prepare = compile_prepare(make([TensorSpec("x", "FP32", (3, -1, -1))], [Image("photo", "x")]))
    assert prepare.heavy
    assert [(field.name, field.kind) for field in prepare.fields] == [("photo", "image")]
    assert prepare({"photo": [encoded(gradient())]}).inputs[0].shape == (1, 3, 6, 8)
