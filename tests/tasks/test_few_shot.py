"""Classes known by a few examples: episodes, and support sets that grow and are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ship_bundles import fake

import repedge
from repedge.errors import UserError
from repedge.models.heads.matching import attention
from repedge.tasks.few_shot.episodes import Episodes, FewShot
from repedge.tasks.few_shot.examples import Examples
from repedge.tasks.few_shot.matching import probabilities, unit


def scorer(embeddings: np.ndarray, classes: list[Any], **asked: int) -> FewShot:
    found = FewShot(0, Episodes().asked(**asked))
    found.update([embeddings], classes)
    return found


def test_probabilities_are_those_of_matching_networks() -> None:
    """Against the attention that a network with its support set baked in computes."""
    rng = np.random.default_rng(0)
    queries, examples = unit(rng.normal(size=(7, 5))), unit(rng.normal(size=(6, 5)))
    labels = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)
    want = attention(torch.from_numpy(queries), torch.from_numpy(examples), labels)
    np.testing.assert_allclose(probabilities(queries, examples, 2), want.numpy(), atol=1e-12)


def test_accuracy_is_that_of_the_nearest_example() -> None:
    """One-shot episodes played by hand, with the same draws."""
    rng = np.random.default_rng(1)
    centres, classes = rng.normal(size=(6, 4)), np.repeat(np.arange(6), 5)
    points = unit(centres[classes] + 0.9 * rng.normal(size=(30, 4)))
    found = scorer(points * 3, [f"c{c}" for c in classes], ways=4, episodes=200)
    draw, right = np.random.default_rng(0), []
    for _ in range(200):
        chosen = [draw.permutation(np.flatnonzero(classes == c))[:2] for c in draw.permutation(6)[:4]]
        for k, (query, _) in enumerate(chosen):
            right.append(int(np.argmax([points[query] @ points[e] for _, e in chosen])) == k)
    score, asked = found.score(), found.asked()
    assert score == {"accuracy": pytest.approx(np.mean(right))}
    assert 0.4 < score["accuracy"] < 0.95
    low, high = asked.pop("ci95")
    assert asked == {"ways": 4, "shots": 1, "episodes": 200}
    shares = np.reshape(right, (200, 4)).mean(1)
    assert (high - low) / 2 == pytest.approx(1.96 * shares.std(ddof=1) / np.sqrt(200))
    more = scorer(points, [f"c{c}" for c in classes], ways=4, episodes=200, shots=4).score()
    assert more["accuracy"] > score["accuracy"]


def test_episodes_are_the_same_for_every_network_and_batch() -> None:
    rng = np.random.default_rng(2)
    points, classes = rng.normal(size=(24, 4)), [f"c{i % 6}" for i in range(24)]
    whole, parts = scorer(points, classes), FewShot(0, Episodes())
    for i in range(0, 24, 7):
        parts.update([points[i : i + 7]], classes[i : i + 7])
    np.testing.assert_array_equal(whole.hits(), parts.hits())


def test_what_cannot_be_asked_is_said_in_a_line() -> None:
    points = np.eye(4)
    assert scorer(points, ["a", "b", "c", "d"]).score() == {}  # no class has two photos
    assert scorer(points, ["a", "a", "b", "b"]).asked()["ways"] == 2
    with pytest.raises(UserError, match=r"--ways 3 needs as many classes with 2 photos .* there are 2"):
        scorer(points, ["a", "a", "b", "b"], ways=3).score()
    with pytest.raises(UserError, match="--ways 1: one class is always right"):
        Episodes().asked(ways=1)
    with pytest.raises(UserError, match="--shots must be 1 or more, not 0"):
        Episodes().asked(shots=0)


def examples(**classes: list[list[float]]) -> Examples:
    found = Examples("net", 2)
    for label, rows in classes.items():
        found.add(label, np.array(rows))
    return found


def test_examples_are_kept_in_a_file_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    known = examples(cat=rng.normal(size=(3, 2)).tolist(), dog=rng.normal(size=(3, 2)).tolist())
    known.add('ant 🐜\n"', rng.normal(size=(3, 2)))
    file = tmp_path / "set.json"
    known.save(file)
    again = Examples("net", 2)
    again.load(file)
    query = rng.normal(size=2)
    assert again.ranked(query) == known.ranked(query)
    assert again.counts == known.counts == {"cat": 3, "dog": 3, 'ant 🐜\n"': 3}
    assert sum(p for _, p in known.ranked(query)) == pytest.approx(1)
    known.remove("dog")
    known.save(file)
    again.load(file)
    assert list(again.counts) == ["cat", 'ant 🐜\n"']


def test_support_sets_that_tell_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="tells classes apart and has 1; add examples of another label"):
        examples(cat=[[1, 0]]).ranked(np.ones(2))
    with pytest.raises(UserError, match="'cat' has 1 example and 'dog' 2 examples: a class with more"):
        examples(cat=[[1, 0]], dog=[[0, 1], [1, 1]]).ranked(np.ones(2))
    bad: list[list[list[float]]] = [[[0, 0]], [[np.nan, 1]], [[1, 2, 3]], []]
    for rows in bad:
        with pytest.raises(UserError, match="'cat'"):
            examples(cat=rows)
    with pytest.raises(UserError, match="a label is a text, not ' '"):
        Examples("net", 2).add(" ", np.ones((1, 2)))
    with pytest.raises(UserError, match="there is no class 'emu'; there are cat"):
        examples(cat=[[1, 0]]).remove("emu")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"support_set": 2}, "its version is 2, not 1"),
        ({"classes": None}, "is no support set"),
        ({"classes": [{"label": "a"}]}, "it has no 'embeddings'"),
        ({"classes": [{"label": "a", "embeddings": [["x", 1]]}]}, "no rows of numbers"),
        ({"classes": [{"label": "a", "embeddings": [[1]]}]}, "rows of 2 numbers"),
        ({"classes": [{"label": 3, "embeddings": [[1, 1]]}]}, "a label is a text, not 3"),
        ({"classes": [{"label": "a", "embeddings": [[1, 1]]}] * 2}, "has the class 'a' twice"),
        ({"features": 3}, "has examples of 'net' with 3 features; this is 'net' with 2"),
        ({"model": "other"}, "has examples of 'other'"),
    ],
)
def test_files_that_are_no_support_set_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    file = tmp_path / "set.json"
    known = examples(cat=[[1, 0]], dog=[[0, 1]])
    known.save(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match="set.json|rows of|a label") as caught:
        known.load(file)
    assert says in str(caught.value)
    assert list(known.counts) == ["cat", "dog"]  # as before
    file.write_text("{")
    with pytest.raises(UserError, match="is no support set"):
        known.load(file)
    with pytest.raises(UserError, match="can't be read"):
        known.load(tmp_path / "none.json")


# --- through the pipeline ------------------------------------------------------------------------


class Colours(torch.nn.Module):
    """The mean colour, as an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)
        torch.nn.init.dirac_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.layer(x).mean((2, 3)), dim=1)


COLOURS = {"red": (250, 30, 30), "green": (30, 250, 30), "blue": (30, 30, 250), "white": (250, 250, 250)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alphabets of characters, as Omniglot has them: ``a/red/0.png``."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        place = folder / "a" / name
        place.mkdir(parents=True)
        for i in range(6):
            noisy = np.clip(np.array(colour) + rng.normal(0, 40, (20, 20, 3)), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    report = repedge.compile(
        Colours(), targets=["tflite"], input_size=16, out=out, task="embed",
        mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip
    return report.bundles[0].path


def test_a_support_set_of_a_bundle(bundle: Path, photos: Path, tmp_path: Path) -> None:
    known = repedge.SupportSet(bundle)
    for name in COLOURS:
        known.add(name, [photos / "a" / name / f"{i}.png" for i in (0, 1)])
    asked = photos / "a" / "green" / "5.png"
    assert known.classify(asked)[0][0] == "green"
    assert known.classify(np.asarray(Image.open(asked))) == known.classify(Image.open(asked))
    known.save(tmp_path / "set.json")
    again = repedge.SupportSet(bundle, tmp_path / "set.json")
    assert again.classify(asked) == known.classify(asked)
    assert again.counts == dict.fromkeys(COLOURS, 2)
    with pytest.raises(UserError, match="are a list of images, not"):
        known.add("red", str(asked))
    with pytest.raises(UserError, match="can't be read as an image"):
        known.add("red", [asked, __file__])
    assert again.counts == known.counts  # nothing was added


def test_a_support_set_is_of_features(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a support set is of features \(--task embed\); .* scores of"):
        repedge.SupportSet(fake(tmp_path / "net"))


def test_eval_plays_episodes_of_both_networks(bundle: Path, photos: Path, cli) -> None:
    given = ["eval", bundle, "--images", photos, "--ways", "3", "--shots", "2", "--episodes", "50"]
    code, out, _ = cli(*given, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["ways"], found["shots"], found["episodes"]) == (3, 2, 50)
    assert (found["n"], found["labelled"]) == (24, 24)
    assert found["accuracy"] == found["accuracy_float"] > 0.95  # colours are easy
    assert found["drop"] == 0
    assert 0.9 < found["ci95"][0] <= found["accuracy"] <= found["ci95"][1] <= 1
    code, out, _ = cli(*given)
    assert "50 of 3 classes by 2 of each" in out
    code, _, err = cli("eval", bundle, photos, "--ways", "5")
    assert code == 2
    assert "--ways 5 needs as many classes with 2 photos or more" in err


def test_episodes_are_for_embeddings(cli, photos: Path) -> None:
    code, _, err = cli("eval", "repvit_demo", photos, "--ways", "5")
    assert code == 2
    assert "--ways is of few-shot episodes (--task embed)" in err


def test_a_budget_bounds_what_episodes_lose(photos: Path, tmp_path: Path) -> None:
    report = repedge.compile(
        Colours(), targets=["tflite"], precisions=["w8a8"], input_size=16, out=tmp_path, task="embed",
        mean=(0.0,) * 3, std=(1.0,) * 3, calib=photos, calib_count=16, recipe="minmax", max_drop=5,
        eval_data=photos,
    )  # fmt: skip
    manifest = json.loads((report.bundles[0].path / "manifest.json").read_text())
    score = manifest["quantization"]["budget"]["score"]
    assert score["float_accuracy"] > 0.9
    assert score["accuracy_drop"] <= 5
