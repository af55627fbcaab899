"""PNGs are handed to Pillow inflated: the same pixels and the same refusals, only faster."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from unittest.mock import Mock

import pyspng
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.image_files import png_chunk, raw_png

from vllm_caption.config import ImageConfig
from vllm_caption.errors import ItemError
from vllm_caption.images import png as image_png
from vllm_caption.images.decode import decode_image
from vllm_caption.images.png import plain_image, store_pixels


@pytest.fixture(params=["alone", "beside other threads"], autouse=True, scope="module")
def filters(request: pytest.FixtureRequest) -> Iterator[None]:
    """A process with other threads leaves the filters to Pillow."""
    threads = 1 if request.param == "alone" else 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_png.threading, "active_count", lambda: threads)
        yield


NOISE = Image.frombytes("RGBA", (150, 130), random.Random(7).randbytes(150 * 130 * 4))


def png(image: Image.Image = NOISE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + 8 + length]
        whole = data[position : position + 12 + length]
        unchecked = kind == b"IDAT" and whole.endswith(bytes(4))
        assert unchecked or whole == png_chunk(kind, content)
        found.append((kind, content))
        position += 12 + length
    return found


def seen(data: bytes) -> tuple[str, bytes, str]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.mode, image.tobytes(), repr(image.info)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (150, 130)])
def test_pixels_and_metadata_stay_the_same(mode: str, size: tuple[int, int]) -> None:
    data = png(NOISE.convert("L" if mode == "I;16" else "RGB").resize(size).convert(mode))
    stored = store_pixels(data)
    assert stored != data
    assert seen(stored) == seen(data)
    assert [kind for kind, _ in chunks(stored)] == list(dict(chunks(data)))


@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (2, 0), (4, 0), (16, 2), (16, 4), (16, 6)])
def test_every_bit_depth_stays_the_same(depth: int, colour: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = random.Random(3).randbytes((13 * depth * channels + 7) // 8)
    data = raw_png((13, 9), depth, colour, row)
    assert store_pixels(data) != data
    assert seen(store_pixels(data)) == seen(data)


def test_pixel_data_in_many_chunks_becomes_one_and_other_chunks_stay() -> None:
    header, *_, end = chunks(png())
    packed = zlib.compress(b"".join(b"\0" + bytes(600) for _ in range(130)))
    pieces = [(b"IDAT", packed[start : start + 9]) for start in range(0, len(packed), 9)]
    told, last = (b"tEXt", b"Title\0A"), (b"tEXt", b"Author\0B")
    parts = [header, told, *pieces, (b"IDAT", b""), last, end]
    data = png()[:8] + b"".join(png_chunk(*part) for part in parts)
    stored = store_pixels(data)
    assert [kind for kind, _ in chunks(stored)] == [*(b"IHDR", b"tEXt", b"IDAT", b"tEXt", b"IEND")]
    assert seen(stored) == seen(data)


def test_large_pixel_data_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png()
    monkeypatch.setattr(image_png, "MAX_STORED_BYTES", 130 * 601)
    assert store_pixels(data) != data
    monkeypatch.setattr(image_png, "MAX_STORED_BYTES", 130 * 601 - 1)
    assert store_pixels(data) is data


def test_bomb_is_never_inflated() -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(50_000_000)))
    data = b"".join((png()[:8], header, pixels, png_chunk(b"IEND", b"")))
    assert store_pixels(data) is data  # there is no room for more than 8 rows


def test_animation_is_left_to_pillow() -> None:
    data = png(NOISE, save_all=True, append_images=[NOISE.rotate(90)])
    assert b"acTL" in data
    assert store_pixels(data) is data


def test_interlaced_image_is_left_to_pillow() -> None:
    data = png()
    interlaced = data[:28] + b"\1" + data[29:]
    assert store_pixels(interlaced) is interlaced


def outcome(data: bytes) -> object:
    try:
        return decode_image(data, "PNG", ImageConfig()).image.tobytes()
    except ItemError as error:
        return error.kind, error.reason


@given(st.data())
def test_damage_has_the_same_result_as_with_pillow_alone(data: st.DataObject) -> None:
    content = bytearray(png(NOISE.resize((20, 20)), compress_level=data.draw(st.integers(0, 9))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(8, len(content)))])
    found = outcome(damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vllm_caption.images.decode.plain_image", lambda *_: None)
        patch.setattr("vllm_caption.images.decode.store_pixels", lambda same: same)
        assert outcome(damaged) == found


@pytest.mark.parametrize(("threads", "calls"), [(1, 1), (2, 0)])
def test_libspng_is_used_only_where_no_other_thread_waits_for_the_interpreters_lock(
    threads: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Mock(side_effect=pyspng.load)
    monkeypatch.setattr(image_png.pyspng, "load", load)
    monkeypatch.setattr(image_png.threading, "active_count", lambda: threads)
    assert plain_image(png(), 150 * 130) is not None
    assert load.call_count == calls


def test_transparent_colour_of_a_palette_is_kept() -> None:
    data = png(NOISE.convert("P"), transparency=3)
    assert store_pixels(data) != data
    assert seen(store_pixels(data)) == seen(data)


def with_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
    return data[:33] + png_chunk(kind, content) + data[33:]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize(
    "chunk",
    [(b"pHYs", bytes(9)), (b"sRGB", b"\0"), (b"bKGD", bytes(6)), (b"tEXt", b"Software\0Paint")],
)
def test_plain_image_has_the_pixels_that_pillow_gives(
    mode: str, chunk: tuple[bytes, bytes]
) -> None:
    for data in (png(NOISE.convert(mode)), with_chunk(png(NOISE.convert(mode)), *chunk)):
        found = plain_image(data, 150 * 130)
        assert found is not None
        assert (found.mode, found.tobytes()) == seen(data)[:2]
        assert found.info == {}


@given(
    colour=st.sampled_from([0, 2, 4, 6]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    source=st.randoms(use_true_random=False),
    level=st.integers(0, 9),
    piece=st.integers(1, 5000),
    cut=st.none() | st.floats(0, 1),
)
def test_rows_of_every_filter_have_the_pixels_that_pillow_gives(
    colour: int,
    size: tuple[int, int],
    source: random.Random,
    level: int,
    piece: int,
    cut: float | None,
) -> None:
    width, height = size
    row = width * {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    pixels = b"".join(bytes([source.randrange(5)]) + source.randbytes(row) for _ in range(height))
    if cut is not None:
        pixels = pixels[: int(cut * (len(pixels) - 1))]
    packed = zlib.compress(pixels, level)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = [packed[start : start + piece] for start in range(0, len(packed), piece)]
    data = png()[:8] + png_chunk(b"IHDR", header)
    data += b"".join(png_chunk(b"IDAT", part) for part in parts) + png_chunk(b"IEND", b"")
    found = plain_image(data, 70 * 70)
    assert (found is None) == (cut is not None), "all but a complete image is left to Pillow"
    assert found is None or (found.mode, found.tobytes()) == seen(data)[:2]


@given(st.data())
def test_plain_image_of_a_damaged_file_has_the_pixels_that_pillow_gives(
    data: st.DataObject,
) -> None:
    mode = data.draw(st.sampled_from(["L", "LA", "RGB", "RGBA"]))
    content = bytearray(png(NOISE.resize((20, 20)).convert(mode)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    if found := plain_image(bytes(content), 10**6):
        assert (found.mode, found.tobytes()) == seen(bytes(content))[:2]


@pytest.mark.parametrize(
    "chunk",
    [
        *((b"gAMA", struct.pack(">I", 100_000)), (b"tRNS", bytes(6)), (b"eXIf", b"MM\0*")),
        *((b"iCCP", b"x\0\0"), (b"tEXt", b"transparency\0x"), (b"tEXt", b"exif\0x")),
        *((b"acTL", bytes(8)), (b"IHDR", bytes(13)), (b"pHYs", b"short"), (b"sRGB", b"")),
    ],
)
def test_image_with_a_chunk_that_may_matter_is_left_to_pillow(chunk: tuple[bytes, bytes]) -> None:
    data = png()
    behind = data[:-12] + png_chunk(*chunk) + data[-12:]
    assert plain_image(with_chunk(data, *chunk), 10**6) is None
    assert plain_image(behind, 10**6) is None


def test_image_that_is_not_plain_is_left_to_pillow() -> None:
    assert plain_image(png(NOISE.convert("P")), 10**6) is None
    assert plain_image(png(NOISE.convert("L").convert("I;16")), 10**6) is None
    assert plain_image(png(NOISE.convert("1")), 10**6) is None
    assert plain_image(png(), 150 * 130 - 1) is None, "more pixels than allowed"
    assert plain_image(png()[:-12], 10**6) is None, "it ends after its pixel data"
    header, *_, end = chunks(raw_png((1, 1), 8, 6, bytes(4)))
    unknown_filter = (b"IDAT", zlib.compress(b"\x09" + bytes(4)))
    parts = (png_chunk(*part) for part in (header, unknown_filter, end))
    assert plain_image(png()[:8] + b"".join(parts), 10**6) is None
    wrong_check = bytearray(png())
    wrong_check[32] ^= 1
    assert plain_image(bytes(wrong_check), 10**6) is None
