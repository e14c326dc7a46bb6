"""What an app does with an answer: embeddings, raw arrays, and tasks and targets of other packages."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from ship_bundles import ARTIFACTS, LABELS, compile_net, fake, features
from ship_packages import FITS, GRAMMARS, build, faults, files, run, script, target_for

import repedge
from repedge import targets, tasks
from repedge.bundle.manifest import Tensor
from repedge.errors import UserError
from repedge.ship import PLATFORMS, names, ship
from repedge.targets.gpu.target import GPU
from repedge.tasks.base import Network, Task
from repedge.templates import Templates

VECTOR = Tensor(name="pooled", dtype="float32", shape=(1, 6), layout="NC")
MAPS = Tensor(name="maps", dtype="float32", shape=(1, 3, 5, 2), layout="NCHW")
CLASSES = re.compile(rb"softmax|classif|[Ss]cores|\bGuess|[Ll]abels\b", re.IGNORECASE)
"""What only a package of a classifier may say."""


def embedding(folder: Path, target: str, **options: Any) -> Path:
    return fake(folder, target, labels=(), outputs=[VECTOR], task="embed", **options)


@pytest.mark.parametrize(("platform", "target"), FITS)
@pytest.mark.parametrize("kind", ["embed", "raw"])
def test_only_packages_of_classifiers_speak_of_classes(
    tmp_path: Path, platform: str, target: str, kind: str
) -> None:
    outputs = [VECTOR] if kind == "embed" else [MAPS]
    bundle = fake(tmp_path / "b", target, labels=(), outputs=outputs, task=kind if kind == "embed" else "")
    ship([bundle], platform, tmp_path / "app")
    texts = {p: t for p, t in files(tmp_path / "app").items() if not p.endswith(("manifest.json", ".npz"))}
    found = {path: CLASSES.findall(text) for path, text in texts.items() if CLASSES.search(text)}
    assert not found or kind == "embed"  # which knows classes by examples
    embeds = [path for path, text in texts.items() if b"embed(" in text]
    assert (len(embeds) >= 4) == (kind == "embed"), embeds


@pytest.mark.parametrize(("platform", "target"), [("ios", "coreml"), ("android", "tflite")])
@pytest.mark.parametrize("options", [{}, {"input_kind": "float32"}])
def test_sources_of_embeddings_parse(
    tmp_path: Path, platform: str, target: str, options: dict[str, Any]
) -> None:
    bundles = [embedding(tmp_path / p, target, precision=p, **options) for p in ("fp16", "w8a32")]
    out = ship(bundles, platform, tmp_path / "app").path
    sources = [p for p in out.rglob("*") if p.suffix in GRAMMARS]
    assert len(sources) >= 8
    assert [fault for p in sources for fault in faults(p)] == []


@pytest.fixture(scope="module", params=[False, True], ids=["features", "unit"])
def vectors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("vectors")
    network = features(unit=request.param)
    return compile_net(out, ["tflite", "openvino", "gpu"], network, labels=(), precisions=["fp32"])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino", "gpu"])
def test_python_embeds(vectors: dict[str, Path], tmp_path: Path, target: str) -> None:
    out = ship([vectors[target]], "python", tmp_path / "app", name="net").path
    done = run([sys.executable, "test_golden.py"], cwd=out)
    assert done.returncode == 0, done.stderr
    code = """if True:
        import json, net
        model = net.Model(threads=1)
        a, b = (model.embed(f"golden/fp32/{i}.png") for i in range(2))
        raw = model.run("golden/fp32/1.png")[net.OUTPUTS[0]][0]
        print(json.dumps([a.tolist(), b.tolist(), raw.tolist(), net.similarity(a, b), net.similarity(a, a)]))
        try:
            net.similarity(a, b[1:])
        except ValueError as e:
            print(e)
    """
    lines = script(code, out).splitlines()
    a, b, raw, near, same = json.loads(lines[0])
    assert len(a) == 8
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(b, np.array(raw) / np.linalg.norm(raw), rtol=1e-5, atol=1e-7)
    assert near == pytest.approx(float(np.dot(a, b)), abs=1e-5)
    assert same == pytest.approx(1, abs=1e-6)
    assert lines[1] == "two embeddings have the same length, but got [8] and [7]"
    photos = [f"golden/fp32/{i}.png" for i in (0, 1)]
    said = run([sys.executable, "-m", "net", *photos], cwd=out).stdout
    assert f"similarity to {photos[0]}: 1.0000" in said
    assert f"similarity to {photos[0]}: {near:.4f}" in said


def test_golden_test_notices_an_embedding_that_has_another_length(
    vectors: dict[str, Path], tmp_path: Path
) -> None:
    out = ship([vectors["tflite"]], "python", tmp_path / "app", name="net").path
    source = out / "net" / "__init__.py"
    source.write_text(source.read_text().replace("def embed(", "def unused(") + LONGER)
    done = run([sys.executable, "test_golden.py"], cwd=out)
    assert done.returncode == 1
    assert "has an embedding of length 2" in done.stderr


LONGER = """
    def embed(self, image):
        return 2 * Model.unused(self, image)


Model.embed = embed
""".replace("\n    ", "\n").replace("\nreturn", "\n    return")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "tflite"])
def test_cpp_embeds(vectors: dict[str, Path], tmp_path: Path, target: str) -> None:
    out = ship([vectors[target]], "cpp", tmp_path / "app", name="net").path
    built = build(out)
    tested = run([built / "net_golden"])
    assert tested.returncode == 0, tested.stdout
    photos = [out / "golden" / "fp32" / f"{i}.png" for i in (0, 1)]
    said = run([built / "net_sample", *photos]).stdout
    assert "8 numbers, first" in said
    assert f"similarity to {photos[0]}: 1.0000" in said


KOTLIN_MAIN = """
package repedge.net

fun main(args: Array<String>) {
    val a = Embedding.unit(floatArrayOf(3f, 4f))
    val found = listOf(a[0], a[1], Embedding.similarity(a, floatArrayOf(4f, -3f)), Embedding.similarity(a, a))
    println(found.map { Math.round(it * 1e4) })
    println(Embedding.unit(FloatArray(2)).toList())
}
"""


@pytest.mark.slow
def test_kotlin_embeds(tmp_path: Path) -> None:
    if not shutil.which("kotlinc") or not shutil.which("java"):
        pytest.skip("kotlinc is not installed (Debian's package kotlin has one that is new enough)")
    out = ship([embedding(tmp_path / "b", "tflite")], "android", tmp_path / "app").path
    (tmp_path / "Main.kt").write_text(KOTLIN_MAIN)
    source, jar = out / "net/src/main/kotlin/repedge/net/Embedding.kt", tmp_path / "core.jar"
    compiled = run(["kotlinc", source, tmp_path / "Main.kt", "-include-runtime", "-d", jar])
    assert compiled.returncode == 0, compiled.stderr
    said = run(["java", "-cp", jar, "repedge.net.MainKt"]).stdout
    assert said.splitlines() == ["[6000, 8000, 0, 10000]", "[0.0, 0.0]"]


def test_classes_are_read_from_the_output_that_has_them(tmp_path: Path) -> None:
    logits = Tensor(name="logits", dtype="float32", shape=(1, 7), layout="NC")
    out = ship([fake(tmp_path / "b", outputs=[MAPS, logits])], "python", tmp_path / "app").path
    assert "self.run(image)[OUTPUTS[1]][0]" in (out / "net" / "__init__.py").read_text()


def test_the_room_is_a_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fake(tmp_path / "b")
    made = repedge.ship([bundle], to="python", out=tmp_path / "app")  # type: ignore[operator]
    assert made.path == tmp_path / "app"
    assert repedge.ship.ship is ship
    from repedge.profile import measure

    monkeypatch.setattr("repedge.profile.measure.measure", lambda *a, **o: ("measure", a, o))
    monkeypatch.setattr("repedge.profile.measure.compare", lambda *a, **o: ("compare", a, o))
    profile: Any = repedge.profile
    assert (
        profile("a", runs=3) == profile(["a"], runs=3) == ("measure", ("a",), {"device": "local", "runs": 3})
    )
    compared = ("compare", (["a", "b"],), {"devices_": ["local"]})
    assert profile("a", "b") == profile(["a", "b"]) == compared
    assert profile("a", device=["x", "y"]) == ("compare", (["a"],), {"devices_": ["x", "y"]})
    assert measure is not None


class Ours(GPU):
    """A target of another package."""

    name: ClassVar[str] = "ours"


class Depth(Task):
    """A task of another package."""

    name: ClassVar[str] = "depth"
    title: ClassVar[str] = "a map of distances"

    @classmethod
    def recognizes(cls, network: Network) -> bool:
        return any(o.name == "depth" for o in network.outputs)

    def context(self, samples: Any) -> dict[str, Any]:
        return {"farthest": float(samples[0].max())}


class Entry:
    """What `importlib.metadata.entry_points` gives."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value, self.load = name, f"ours:{value.__name__}", lambda: value


def write(folder: Path, texts: Mapping[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / f"{name}.jinja").write_text(text)
    return folder


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"requirements": "ours>=2\n", "licence": "| Ours | MIT |\n"}
    folder = write(tmp_path / "ours", {"runtime.py": "import ours  # for {{ farthest }}\n", **parts})
    monkeypatch.setattr(
        Ours, "ship", {"python": Templates(folder, {"runtime.py": "{name}/runtime.py"})}, raising=False
    )
    methods = "{% block methods %}\n\n    def depth(self, image): ...\n{% endblock %}\n"
    methods = '{% extends "beneath/init.py" %}\n' + methods
    folder = write(tmp_path / "depth", {"init.py": methods, "facts": "| Farthest | {{ farthest }} |\n"})
    monkeypatch.setattr(Depth, "ship", {"python": Templates(folder)}, raising=False)
    monkeypatch.setattr(targets, "entry_points", lambda: [Entry("ours", Ours)])
    monkeypatch.setattr(tasks, "entry_points", lambda: [Entry("depth", Depth)])


@pytest.mark.usefixtures("plugins")
def test_targets_and_tasks_of_others_ship_by_what_they_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARTIFACTS, "ours", "repo/net/1/model.onnx")
    output = Tensor(name="depth", dtype="float32", shape=(1, 1, 5, 2), layout="NCHW")
    bundle = fake(tmp_path / "b", "ours", labels=(), outputs=[output])
    found = files(ship([bundle], "python", tmp_path / "app").path)
    assert found["net/runtime.py"].startswith(b"import ours  # for ")
    assert b"def depth(self, image)" in found["net/__init__.py"]
    assert b"def run(self, image" in found["net/__init__.py"]
    assert found["requirements.txt"].endswith(b"ours>=2\n")
    assert b'"ours>=2"]' in found["pyproject.toml"]
    assert b"| Ours | MIT |" in found["LICENSES.md"]
    assert b"| Farthest | " in found["README.md"]
    assert {"net/model/fp32/model.onnx", "net/model/fp32/model.onnx.data"} <= set(found)
    with pytest.raises(UserError, match=r"ours artifact, which ios apps can't run.* fits --to python"):
        ship([bundle], "ios", tmp_path / "x")
    with pytest.raises(
        UserError, match="--target tflite or --target openvino or --target gpu or --target ours"
    ):
        ship([fake(tmp_path / "c", "coreml")], "python", tmp_path / "x")


@pytest.mark.usefixtures("plugins")
def test_a_template_that_asks_for_too_much_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARTIFACTS, "ours", "repo/net/1/model.onnx")
    with pytest.raises(
        UserError, match=r"template runtime\.py of .*ours can't be filled: 'farthest' is undefined"
    ):
        ship([fake(tmp_path / "b", "ours")], "python", tmp_path / "app")
    assert not (tmp_path / "app").exists()


def test_a_type_is_not_called_like_a_file_beside_it(tmp_path: Path) -> None:
    made = ship([fake(tmp_path / "b", name="scores")], "android", tmp_path / "app")
    assert made.name == "ScoresModel"
    with pytest.raises(UserError, match="another file of the package has it; try --name PreprocessModel"):
        ship([fake(tmp_path / "c")], "android", tmp_path / "x", name="Preprocess")


def test_modules_that_run_artifacts_are_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"openvino", "onnxruntime", "ai_edge_litert", "tflite_runtime"} <= names.reserved("Python")
    assert names.refusal("openvino", "Python") == "it is reserved"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_raw_arrays_of_rank_4_ship(tmp_path: Path, platform: str) -> None:
    bundle = fake(tmp_path / "b", target_for(platform), labels=(), outputs=[MAPS])
    text = b"".join(files(ship([bundle], platform, tmp_path / "app").path).values())
    assert b"run(" in text
    assert LABELS[0].encode() not in text
