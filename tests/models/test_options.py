"""What the user says about size, preprocessing and labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from repedge.config import Letterbox, Preprocess
from repedge.errors import UserError
from repedge.models.options import adjust, parse_input_size, read_labels


@pytest.mark.parametrize(
    ("text", "size"),
    [("224", (224, 224)), ("33x57", (33, 57)), (" 64 X 48 ", (64, 48)), (96, (96, 96)), ([5, 7], (5, 7))],
)
def test_input_sizes(text, size: tuple) -> None:
    assert parse_input_size(text) == size


@pytest.mark.parametrize(
    "text", ["0", "0x5", "-1", "", "x", "3x4x5", "1e3", "2.5", 0, (3,), (3, -1), "99999999"]
)
def test_input_sizes_that_are_none(text) -> None:
    with pytest.raises(UserError, match="input size"):
        parse_input_size(text)


def test_preprocessing_options() -> None:
    base = Preprocess()
    assert adjust(base) == base
    assert adjust(base, input_size=320).resize == 366  # 256 / 224 of it
    assert adjust(base, resize="squash", input_size="64").resize is None
    assert adjust(base, resize=300, interpolation="BICUBIC").model_dump() == {
        **base.model_dump(),
        "resize": 300,
        "interpolation": "bicubic",
    }
    boxed = adjust(base, resize="letterbox", input_size=416)
    assert (boxed.resize, boxed.letterbox) == (None, Letterbox(value=114, corner=False))
    assert adjust(base, resize="letterbox-corner:0").letterbox == Letterbox(value=0, corner=True)
    assert adjust(boxed, input_size=320).letterbox == boxed.letterbox
    assert adjust(boxed, resize="squash").letterbox is None
    turned = adjust(base, color="bgr")
    assert (turned.color, turned.mean, turned.std) == ("BGR", base.mean[::-1], base.std[::-1])
    assert adjust(base, color="BGR", mean="0.1 0.2 0.3").mean == (0.1, 0.2, 0.3)
    grey = adjust(base, 1)
    assert (grey.color, grey.mean) == ("GRAY", (0.449,))


@pytest.mark.parametrize(
    ("channels", "options", "words"),
    [
        (3, {"mean": "a,b,c"}, "--mean 'a,b,c'"),
        (3, {"mean": [0.1, 0.2]}, "2 numbers.*3 channels"),
        (3, {"mean": "123.7,116.3,103.5"}, "divide by 255"),
        (3, {"std": 0}, "positive"),
        (3, {"std": "nan"}, "--std"),
        (3, {"resize": "big"}, "--resize 'big'"),
        (3, {"resize": 0}, "--resize 0"),
        (3, {"resize": "letterbox:256"}, "0 to 255"),
        (3, {"resize": "letterboxed"}, "nor squash, letterbox"),
        (3, {"interpolation": "lanczos"}, "nearest, bilinear, bicubic"),
        (3, {"color": "HSV"}, "RGB, BGR, GRAY"),
        (3, {"color": "GRAY"}, "3 channels.*GRAY"),
        (1, {"color": "RGB"}, "1 channel,.*RGB"),
        (4, {}, "4 channels"),
    ],
)
def test_preprocessing_options_that_fail(channels: int, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        adjust(Preprocess(), channels, **options)


@pytest.mark.parametrize(
    "text",
    [
        '["cat", "dog"]',
        '{"0": "cat", "1": "dog"}',
        '{"1": ["n2", "dog"], "0": ["n1", "cat"]}',
        '{"dog": 1, "cat": 0}',
    ],
)
def test_json_labels(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    assert read_labels(tmp_path / "labels.json", 2) == ("cat", "dog")


def test_text_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("tench\n\ngreat white shark \n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ("tench", "great white shark")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", b""),
        ("l.txt", b"\xff\xfe\x00"),
        ("l.json", b"{"),
        ("l.json", b'{"5": "x"}'),
        ("l.json", b"3"),
    ],
)
def test_labels_that_fail(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        read_labels(tmp_path / name)
    with pytest.raises(UserError, match="there is no labels file"):
        read_labels(tmp_path / "absent.txt")
