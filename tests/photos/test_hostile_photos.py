"""Photos made to hurt: dimensions, pipes, names that are no text."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images
from repedge.photos.choice import load
from repedge.photos.photos import open_photos

DECODER = """
    import resource, sys
    from pathlib import Path
    from repedge.config import Preprocess
    from repedge.errors import UserError
    from repedge.photos import images
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        images.pixels(images.decode(Path(sys.argv[1])), Preprocess())
    except UserError as error:
        print(error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def decode_elsewhere(file: Path) -> tuple[str, int]:
    """What decoding in another process says, and the MiB that it took."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DECODER), str(file)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    *said, megabytes = done.stdout.splitlines()
    return " ".join(said), int(megabytes)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF") or sys.platform != "linux", reason="kilobytes")
def test_large_images_take_little_memory(tmp_path: Path) -> None:
    """13000x13000 pixels are 680 MB in Pillow, and were copied three times."""
    Image.new("L", (13000, 13000)).save(tmp_path / "large.png", compress_level=1)
    said, megabytes = decode_elsewhere(tmp_path / "large.png")
    assert "13000x13000 pixels are more than the 64 megapixels that are decoded; make it smaller" in said
    assert megabytes < 50
    Image.new("RGB", (8192, 8192)).save(tmp_path / "fits.png", compress_level=1)
    said, megabytes = decode_elsewhere(tmp_path / "fits.png")
    assert said == ""
    assert megabytes < 2 * 256 + 50
    Image.new("RGB", (13000, 13000)).save(tmp_path / "large.jpg")
    said, megabytes = decode_elsewhere(tmp_path / "large.jpg")
    assert said == ""
    assert megabytes < 350


def test_a_large_jpeg_is_decoded_smaller_and_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[:256, :384]
    picture = np.stack([x * 255 / 383, y * 255 / 255, (x + y) * 255 / 638], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    pre = Preprocess(size=(64, 64), resize=64)
    whole = images.pixels(images.decode(file), pre).astype(int)
    monkeypatch.setattr(images, "LARGEST", 256 * 384 // 3)
    smaller = images.decode(file)
    assert smaller.size == (192, 128)
    assert np.abs(images.pixels(smaller, pre) - whole).max() <= 4
    progressive = io.BytesIO()
    Image.fromarray(picture).save(progressive, "JPEG", progressive=True)
    with pytest.raises(UserError, match="384x256 pixels are more than"):
        images.decode(progressive)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_pipes_are_never_opened(tmp_path: Path) -> None:
    """To open one is to wait for whoever writes to it."""
    for name in ("fifo.zip", "fifo.npz", "fifo"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="neither a regular file nor a folder"):
            load(tmp_path / name, Preprocess())
    os.mkfifo(tmp_path / "labels.json")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    photos = open_photos(tmp_path)
    assert photos.names == ("a.png",)
    assert photos.beside("labels.json") is None
    (why,) = (item.why for _, item in open_photos([tmp_path / "b.png"]).read([0]))
    assert why == "the file can't be read: it is a pipe, no regular file"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_names_that_are_no_text_are_read_and_shown(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        name = os.fsencode(tmp_path) + b"/caf\xe9-%d.png" % i
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(os.fsdecode(name))
    chosen = load(tmp_path, Preprocess(size=(8, 8), resize=8))
    assert len(chosen) == 8
    assert sorted(chosen.record.files)[0] == "caf\\udce9-0.png"


def test_a_png_whose_pixels_are_missing(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    data = file.getvalue()
    start = data.index(b"IDAT")
    (tmp_path / "a.png").write_bytes(data[: start + 4] + zlib.compress(b"")[:2])
    with pytest.raises(UserError, match="can't be read as an image"):
        images.decode(tmp_path / "a.png")
