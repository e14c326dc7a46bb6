"""The training examples: the detector's loss against values worked out by hand, runs that go on."""

import io
import math
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import train_detector
import train_fewshot
import train_segmenter
from PIL import Image
from safetensors.torch import load_file
from training import boxes, loop, mosaic, precision

ANCHORS = torch.tensor([[2.0, 2.0], [20.0, 20.0]])  # cells


def cells(box, classes=(0,), anchors=ANCHORS, side=8):
    """(anchor, row, column) that answer for a box of pixels, in a map of ``side`` cells of 8 pixels."""
    m = boxes.match(torch.tensor([[box]]), torch.tensor([classes]), anchors, 8, side, side)
    return {
        (int(a), int(r), int(c)) for a, r, c, v in zip(m.anchor, m.row, m.column, m.valid, strict=True) if v
    }


def test_an_object_is_answered_for_by_its_cell_and_the_two_nearest_neighbours():
    # Centre (20, 44) pixels is (2.5 - e, 5.5) cells: x in the left half of cell 2, y in the lower of cell 5.
    assert cells([11.0, 36.0, 27.0, 54.0]) == {(0, 5, 2), (0, 5, 1), (0, 6, 2)}


def test_beyond_the_border_there_is_no_neighbour():
    # Centre (0.25, 0.25) cells: left and above there is nothing.
    assert cells([-4.0, -4.0, 8.0, 8.0]) == {(0, 0, 0)}
    assert cells([56.0, 56.0, 68.0, 68.0]) == {(0, 7, 7)}


def test_anchors_answer_for_sizes_up_to_four_times_theirs():
    assert cells([0.0, 20.0, 63.9, 36.0]) == {(0, 3, 3), (0, 3, 4)}  # 7.99 x 2 cells, centre (3.99, 3.5)
    assert cells([0.0, 20.0, 64.1, 36.0]) == set()
    assert {a for a, _, _ in cells([0.0, 0.0, 63.0, 63.0])} == {0, 1}  # 7.9 cells: 3.9 of one, 1 / 2.5
    assert {a for a, _, _ in cells([0.0, 0.0, 64.1, 64.1])} == {1}
    assert cells([30.0, 30.0, 33.0, 33.0]) == set()  # 0.4 cells: less than a quarter of 2


def test_filling_answers_for_nothing():
    assert cells([8.0, 8.0, 24.0, 24.0], classes=(-1,)) == set()


def test_complete_iou():
    same = torch.tensor([10.0, 10.0, 4.0, 4.0])
    assert float(boxes.ciou(same, same)) == pytest.approx(1, abs=1e-6)
    # Moved by half its width: 8 of 24; centres 2 apart, the enclosing box 6 x 4.
    moved = torch.tensor([12.0, 10.0, 4.0, 4.0])
    assert float(boxes.ciou(same, moved)) == pytest.approx(1 / 3 - 4 / 52, abs=1e-6)
    # Same centre, 8 x 2 against 4 x 4: 8 of 24; atan 4 and atan 1 apart.
    flat = torch.tensor([10.0, 10.0, 8.0, 2.0])
    v = 4 / math.pi**2 * (math.atan(4) - math.atan(1)) ** 2
    assert float(boxes.ciou(flat, same)) == pytest.approx(1 / 3 - v * v / (1 - 1 / 3 + v), abs=1e-6)
    apart = torch.tensor([110.0, 10.0, 4.0, 4.0])
    assert float(boxes.ciou(same, apart)) == pytest.approx(-(100**2) / (104**2 + 4**2), abs=1e-6)


def perfect(box, kind, side=8, classes=3, sure=20.0):
    """Maps whose answer for a box is right in every cell that answers."""
    raw = torch.zeros(1, 2, 5 + classes, side, side)
    raw[:, :, 4:] = -sure
    m = boxes.match(torch.tensor([[box]]), torch.tensor([[kind]]), ANCHORS, 8, side, side)
    for i in m.valid.nonzero()[:, 0].tolist():
        at = 0, int(m.anchor[i]), slice(None), int(m.row[i]), int(m.column[i])
        xy = torch.logit((m.box[i, :2] + 0.5) / 2)
        wh = torch.logit((m.box[i, 2:] / ANCHORS[m.anchor[i]]).sqrt() / 2)
        raw[at][:4] = torch.cat((xy, wh))
        raw[at][4] = raw[at][5 + kind] = sure
    return raw.view(1, -1, side, side)


def loss(raw, box, kind):
    return float(
        boxes.loss(
            [raw], ANCHORS[None], [8], torch.tensor([[box, [0.0] * 4]]), torch.tensor([[kind, -1]]),
            boxes.Gains(),
        )
    )  # fmt: skip


@pytest.fixture
def one_map(monkeypatch):
    monkeypatch.setattr(boxes, "BALANCE", (1.0,))


@pytest.mark.usefixtures("one_map")
def test_the_right_answer_has_no_loss_and_every_fault_has_one():
    box, right = [11.0, 36.0, 27.0, 54.0], perfect([11.0, 36.0, 27.0, 54.0], 1)
    assert loss(right, box, 1) == pytest.approx(0, abs=1e-4)
    assert loss(right, box, 2) > 0.5  # another class
    assert loss(right, [21.0, 36.0, 37.0, 54.0], 1) > 0.5  # cells beside
    silent = right.clone().view(1, 2, 8, 8, 8)
    silent[:, :, 4] = -20
    assert loss(silent.view_as(right), box, 1) == pytest.approx(3 * 20 / 128, rel=0.01)  # of 2 x 64 cells


@pytest.mark.usefixtures("one_map")
def test_objectness_wants_the_overlap():
    """BCE is least where the score is the CIoU of the answer: of a box of zeros, (2 * 0.5)^2 anchors wide."""
    box = [12.0, 36.0, 28.0, 52.0]  # 2 x 2 cells, centre (2.5, 5.5): the answer of zeros is exact
    raw = torch.zeros(1, 2, 8, 8, 8)
    raw[:, :, 4] = -20
    raw[:, :, 6] = 20
    raw[:, :, [5, 7]] = -20
    gone = loss(raw.view(1, 16, 8, 8), box, 1)
    raw[0, 0, 4, 5, 2] = 20
    assert gone - loss(raw.view(1, 16, 8, 8), box, 1) == pytest.approx(20 / 128, rel=1e-3)


def test_anchors_follow_the_boxes():
    rng = np.random.default_rng(1)
    sizes = np.concatenate([rng.normal(c, 0.5, (50, 2)) for c in (10, 20, 40, 80, 120, 300)])
    found = boxes.fitted_anchors(sizes, maps=3, each=2, seed=2)
    assert found.shape == (3, 2, 2)
    assert (np.diff(found.prod(-1).ravel()) > 0).all()
    assert np.abs(np.log(sizes[:, None] / found.reshape(1, -1, 2))).max(-1).min(1).max() < math.log(2.1)


def photos_of_squares(n=3, height=48, width=64):
    """White squares on black, and their boxes."""
    pixels = torch.zeros(n, 3, height, width, dtype=torch.uint8)
    corners = torch.zeros(n, 2, 4)
    for i in range(n):
        for k, (x, y, side) in enumerate(((4 + 3 * i, 6, 10), (38, 20 + 2 * i, 16))):
            pixels[i, :, y : y + side, x : x + side] = 255
            corners[i, k] = torch.tensor([x, y, x + side, y + side])
    return mosaic.Photos(pixels, corners, torch.tensor([[0, 1]] * n))


@pytest.mark.parametrize("each", [1, 4])
def test_boxes_stay_on_what_they_are_around(each):
    photos, rng = photos_of_squares(), torch.Generator().manual_seed(3)
    size = (48, 64)
    places = (
        mosaic.mosaics(8, 3, size, 64, rng)
        if each == 4
        else mosaic.singles(torch.randint(3, (16,), generator=rng), size, 64, rng)
    )
    pictures = mosaic.shown(photos, places, 64, each)
    corners, classes = mosaic.found(photos, places, each)
    seen = 0
    for picture, rows, kinds in zip(pictures, corners, classes, strict=True):
        for box, kind in zip(rows, kinds, strict=True):
            if kind >= 0:
                left, top, right, bottom = (int(v) for v in (*box[:2].ceil(), *box[2:].floor()))
                inner = picture[0, top + 1 : bottom - 1, left + 1 : right - 1]
                assert inner.numel() == 0 or inner.min() > 200
                picture[0, max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = 0
                seen += 1
        assert seen
        # Outside the boxes nothing is white but slivers of squares that are cut off too far.
        assert (picture[0] > 200).sum() < 80


def test_average_precision():
    truth = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    exact = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 10]])
    found = [(exact, np.array([0.9, 0.8, 0.7]))]
    # Precision 1 up to recall 1/2 (51 of 101 points), 2/3 behind.
    assert precision.average_precision(found, [truth], 0.5) == pytest.approx((51 + 50 * 2 / 3) / 101)
    twice = [(truth[[0, 0]], np.array([0.9, 0.8]))]
    assert precision.average_precision(twice, [truth], 0.5) == pytest.approx(51 / 101)
    near = [(truth + np.array([0, 0, 0, 3]), np.array([0.9, 0.8]))]  # IoU 10 / 13
    assert precision.average_precision(near, [truth], 0.75) == 1
    assert precision.average_precision(near, [truth], 0.8) == 0


def test_suppression_keeps_the_best_of_what_overlaps():
    rows = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [40, 0, 50, 10]])
    assert precision.suppressed(rows, np.array([0.5, 0.9, 0.3])).tolist() == [1, 2]


def test_the_learning_rate_rises_and_falls():
    rates = [loop.height(p / 100) for p in range(101)]
    assert max(rates) == pytest.approx(1)
    assert rates.index(max(rates)) == 5
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.005)


def jpeg(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG")
    return file.getvalue()


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def cells_archive(file: Path) -> None:
    """In the layout of BCCD: three photos to learn, two to be judged on, each with a square of each class."""
    with zipfile.ZipFile(file, "w") as z:
        for part, numbers in (("train", (0, 1, 2)), ("val", (3, 4))):
            z.writestr(f"ImageSets/Main/{part}.txt", "\n".join(f"p{i}" for i in numbers))
        for i in range(5):
            photo = np.full((480, 640, 3), 200, np.uint8)
            objects = ""
            for k, name in enumerate(("RBC", "WBC", "Platelets")):
                x, y, side = 60 + 180 * k, 80 + 60 * i, 100 - 20 * k
                photo[y : y + side, x : x + side, k] = 20
                objects += (
                    f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
                    f"<xmax>{x + side}</xmax><ymax>{y + side}</ymax></bndbox></object>"
                )
            z.writestr(f"JPEGImages/p{i}.jpg", jpeg(photo))
            z.writestr(f"Annotations/p{i}.xml", f"<annotation>{objects}</annotation>")


def streets_archive(file: Path) -> None:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(file, "w") as z:
        for i in range(4):
            part = "train" if i < 3 else "val"
            mask = rng.integers(0, 12, (4, 4)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
            photo = np.stack([mask * 20, 255 - mask * 20, mask * 10], -1)
            z.writestr(f"{part}/s{i}.jpg", jpeg(photo))
            z.writestr(f"{part}annot/s{i}.png", png(mask))


def drawings_archive(file: Path) -> None:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(file, "w") as z:
        for alphabet, n in (("Greek", 4), ("Sanskrit", 21)):
            for c in range(n):
                shape = rng.random((5, 5)) < 0.5
                for k in range(3):
                    drawn = np.roll(
                        np.where(shape, 0, 255).astype(np.uint8).repeat(21, 0).repeat(21, 1), k, 0
                    )
                    z.writestr(f"{alphabet}/character{c:02}/{k}.png", png(drawn))


RUNS = [
    (train_detector, cells_archive, ["--batch", "2", "--side", "64"]),
    (train_segmenter, streets_archive, ["--batch", "2"]),
    (train_fewshot, drawings_archive, ["--batch", "4", "--side", "32", "--episodes", "5"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "archive", "options"), RUNS, ids=["detector", "segmenter", "fewshot"])
def test_a_run_that_was_killed_ends_where_one_in_a_piece_does(
    script, archive, options, tmp_path, monkeypatch
):
    file = tmp_path / "data.zip"
    archive(file)
    common = ["--data", str(file), "--device", "cpu", "--steps", "4", "--keep-every", "2", *options]
    whole = script.main([*common, "--out", str(tmp_path / "whole")])
    assert all(0 <= v <= 1 for v in whole.values())

    class Killed(Exception):
        pass

    average = loop.Training._average

    def killed(self):
        if self.step == 3:
            raise Killed
        average(self)

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(loop.Training, "_average", killed)
        script.main([*common, "--out", str(tmp_path / "twice")])
    assert script.main([*common, "--out", str(tmp_path / "twice")]) == whole
    first, second = (load_file(next((tmp_path / d).glob("*.safetensors"))) for d in ("whole", "twice"))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
def test_it_learns(tmp_path, capsys):
    """Twenty steps on photos of squares: the loss falls."""
    cells_archive(tmp_path / "data.zip")
    train_detector.main(
        ["--data", str(tmp_path / "data.zip"), "--out", str(tmp_path), "--device", "cpu", "--steps", "20",
         "--batch", "4", "--side", "96"]
    )  # fmt: skip
    losses = [float(v) for v in re.findall(r"loss (\S+)", capsys.readouterr().out)]
    assert len(losses) == 9
    assert losses[-1] < 0.9 * losses[0]
