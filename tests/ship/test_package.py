"""Ship: what goes into a package, what is refused, and that refusing leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from ship_bundles import LABELS, fake
from ship_packages import FITS, files, target_for

from repedge.bundle.manifest import Tensor, digest_of
from repedge.cli import main
from repedge.errors import UserError
from repedge.ship import PLATFORMS, golden, names, ship


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "target"), FITS)
def test_package_carries_the_model_its_proof_and_its_papers(
    tmp_path: Path, platform: str, target: str
) -> None:
    bundle = fake(tmp_path / "b", target, license="CC-BY-4.0 | see *terms*")
    ship([bundle], platform, tmp_path / "app")
    found = files(tmp_path / "app")
    assert found["manifest.json"] == (bundle / "manifest.json").read_bytes()
    assert b"CC-BY-4.0 \\| see \\*terms\\*" in found["LICENSES.md"]
    assert len(found["README.md"].split(b"```")[1].splitlines()) <= 7  # five lines and the fence
    artifact = {p.read_bytes() for p in bundle.rglob("*") if p.is_file() and p.parent.name != "golden"}
    artifact -= {(bundle / "manifest.json").read_bytes()}
    assert artifact <= set(found.values())
    assert not any("reference" in path for path in found)
    vectors = {
        path.rsplit("/", 1)[-1]: content for path, content in found.items() if "/fp32/" in path.lower()
    }
    with np.load(bundle / "golden" / "golden.npz") as arrays:
        assert vectors["pixels.u8"] == arrays["pixels"].tobytes()
        assert vectors["expected_0.f32"] == arrays["output:logits"].astype("<f4").tobytes()
    assert vectors["1.png"] == (bundle / "golden" / "1.png").read_bytes()


def test_names_of_calibration_photos_stay_at_home(tmp_path: Path) -> None:
    bundle = fake(tmp_path / "b", precision="w8a8")
    manifest = json.loads((bundle / "manifest.json").read_text())
    photos = {"count": 1, "digest": "d", "source": "ward 7", "sha256": {"Jane Doe.jpg": "0"}, "skipped": {}}
    manifest["quantization"] = {"scheme": "tflite-w8a8", "calibration": photos}
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "digest": digest_of(manifest)}))
    ship([bundle], "android", tmp_path / "app")
    text = (tmp_path / "app" / "manifest.json").read_text()
    assert not any(name in text for name in ("Jane", "ward 7"))
    found = json.loads(text)
    assert found["quantization"]["calibration"] == {"count": 1, "digest": "d"}
    assert found["digest"] == digest_of(found)


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "target"), FITS)
def test_same_bundle_same_bytes(tmp_path: Path, platform: str, target: str) -> None:
    bundle = fake(tmp_path / "b", target)
    for out in ("x", "y"):
        ship([bundle], platform, tmp_path / out)
    assert files(tmp_path / "x") == files(tmp_path / "y")


def test_two_precisions_in_one_package(tmp_path: Path) -> None:
    a, b = fake(tmp_path / "a"), fake(tmp_path / "b", precision="w8a8")
    made = ship([a, b], "android", tmp_path / "app")
    found = files(tmp_path / "app")
    assert made.variants == ("fp32", "w8a8")
    assert sum(path.endswith("model.tflite") for path in found) == 2
    assert {"manifest.json", "manifest-w8a8.json"} <= set(found)
    source = found["net/src/main/kotlin/repedge/net/Net.kt"].decode()
    assert 'FP32("fp32")' in source
    assert 'W8A8("w8a8")' in source
    assert "variant: Variant = Variant.FP32" in source


def test_tolerance_follows_the_manifest(tmp_path: Path) -> None:
    from repedge.bundle.folder import Bundle

    fp32, int8 = (Bundle.open(fake(tmp_path / p, precision=p)) for p in ("fp32", "w8a8"))
    largest = np.array([[-40.0, 20.0]], np.float32)
    assert golden.tolerance(fp32, largest) == pytest.approx(0.5 + 40e-4, rel=1e-2)  # max_abs_err + 1e-4
    assert golden.tolerance(int8, largest) == pytest.approx(0.5 + 40 / 256, rel=1e-2)


def test_feature_maps_are_stored_as_the_artifact_has_them(tmp_path: Path) -> None:
    maps = Tensor(name="map", dtype="float32", shape=(1, 3, 5, 2), layout="NHWC")
    bundle = fake(tmp_path / "b", labels=(), outputs=[maps])
    ship([bundle], "android", tmp_path / "app")
    with np.load(bundle / "golden" / "golden.npz") as arrays:
        expected = arrays["output:map"].transpose(0, 2, 3, 1).astype("<f4").tobytes()
    assert expected in files(tmp_path / "app").values()
    source = (tmp_path / "app/net/src/main/kotlin/repedge/net/Net.kt").read_text()
    assert "fun run(bitmap: Bitmap)" in source
    assert "classify" not in source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "platform", "suggestion"),
    [
        ("3-dogs", "ios", "Model3Dogs"),
        ("class", "ios", "Class"),
        ("Flo wers", "android", "FloWers"),
        ("Blüte", "android", "BlTe"),
        ("namespace", "cpp", "namespace_model"),
        ("my__net", "cpp", "my_net"),
        ("numpy", "python", "numpy_model"),
        ("a.b", "python", "a_b"),
        ("x" * 65, "python", "x" * 64),
        ("", "python", "model"),
        ("../../evil", "python", "evil"),
    ],
)
def test_name_that_is_no_identifier_gets_a_suggestion(
    tmp_path: Path, name: str, platform: str, suggestion: str
) -> None:
    bundle = fake(tmp_path / "b", target_for(platform))
    with pytest.raises(UserError) as error:
        ship([bundle], platform, tmp_path / "app", name=name)
    assert str(error.value).endswith(f"try --name {suggestion}")
    assert ship([bundle], platform, tmp_path / "app", name=suggestion).name == suggestion


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_any_model_name_gives_a_default(tmp_path: Path, platform: str) -> None:
    for i, name in enumerate(["repvgg_a0", "9lives", "犬", "object", "std", "numpy", "String", "a/b\n*/c"]):
        bundle = fake(tmp_path / f"b{i}", target_for(platform), name=name)
        made = ship([bundle], platform, tmp_path / f"app{i}")
        assert names.refusal(made.name, PLATFORMS[platform].language) is None


def refused(tmp_path: Path, bundles: list[Path], to: str = "python", name: str | None = None) -> str:
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        ship(bundles, to, tmp_path / "app", name=name)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bundle_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    bundle = fake(tmp_path / "b")
    (bundle / "net.tflite").write_bytes(b"artefact")
    assert "sha256 differs" in refused(tmp_path, [bundle])


def test_target_that_does_not_fit_says_what_would(tmp_path: Path) -> None:
    message = refused(tmp_path, [fake(tmp_path / "b", "tflite")], "ios")
    assert "net.tflite is a tflite artifact, which ios apps can't run" in message
    assert "--target coreml" in message
    assert "this bundle fits --to android, cpp, python" in message


def test_labels_that_do_not_match_are_refused(tmp_path: Path) -> None:
    logits = Tensor(name="logits", dtype="float32", shape=(1, 9), layout="NC")
    assert "there are 7 labels, but output 'logits' has 9 classes; compile it again" in refused(
        tmp_path, [fake(tmp_path / "b", outputs=[logits])]
    )


def test_bundles_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    a = fake(tmp_path / "a")
    assert "are both fp32" in refused(tmp_path, [a, fake(tmp_path / "b")])
    other = fake(tmp_path / "c", precision="fp16", labels=("x", "y", "z"))
    assert "differ in outputs" in refused(tmp_path, [a, other])
    told = fake(tmp_path / "e", precision="fp16", task="raw")
    assert "differ in task" in refused(tmp_path, [a, told])
    assert "differ in target" in refused(tmp_path, [a, fake(tmp_path / "d", target="openvino")])
    assert "it got 3" in refused(tmp_path, [a, other, a])


def test_missing_golden_vectors_are_refused(tmp_path: Path) -> None:
    bundle = fake(tmp_path / "b")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = [f for f in manifest["files"] if not f["path"].endswith("golden.npz")]
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "digest": digest_of(manifest)}))
    (bundle / "golden" / "golden.npz").unlink()
    assert "no usable golden vectors" in refused(tmp_path, [bundle])


def test_damaged_golden_vectors_are_refused(tmp_path: Path) -> None:
    """A manifest that was made to fit does not make an archive whole."""
    bundle = fake(tmp_path / "b")
    file = bundle / "golden" / "golden.npz"
    whole = file.read_bytes()
    middle = whole.index(b"pixels.npy") + 200
    flipped = whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :]
    for damaged in (flipped, whole[:-8] + b"\0" * 8, whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        manifest = json.loads((bundle / "manifest.json").read_text())
        for entry in manifest["files"]:
            if entry["path"].endswith("golden.npz"):
                entry |= {"size": len(damaged), "sha256": hashlib.sha256(damaged).hexdigest()}
        (bundle / "manifest.json").write_text(json.dumps({**manifest, "digest": digest_of(manifest)}))
        assert "no usable golden vectors" in refused(tmp_path, [bundle])


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    bundle, out = fake(tmp_path / "b"), tmp_path / "app"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(UserError, match="exists"):
            ship([bundle], "python", out, force=force)
    assert files(out) == {"mine.txt": b"mine"}


def test_force_replaces_a_package_but_not_a_bundle(tmp_path: Path) -> None:
    bundle, out = fake(tmp_path / "b"), tmp_path / "app"
    ship([bundle], "python", out, name="old")
    ship([bundle], "python", out, name="fresh", force=True)
    assert (out / "fresh").is_dir()
    assert not (out / "old").exists()
    for place in (bundle, bundle / "inner", tmp_path):
        with pytest.raises(UserError, match="overlap"):
            ship([bundle], "python", place, force=True)
    other = fake(tmp_path / "other")
    with pytest.raises(UserError, match="no package"):
        ship([bundle], "python", other, force=True)


def test_interrupted_package_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fake(tmp_path / "b")
    monkeypatch.setattr(golden, "write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ship([bundle], "python", tmp_path / "app")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = fake(tmp_path / "b"), tmp_path / "app"
    with pytest.raises(SystemExit) as done:
        main(["ship", str(bundle), "--to", "python", "--out", str(out), "--name", "dogs", "--json"])
    assert done.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["name"] == "dogs"
    assert result["variants"] == ["fp32"]
    assert result["files"] == len(files(out))
    assert result["size_bytes"] == sum(map(len, files(out).values()))
    with pytest.raises(SystemExit) as done:
        main(["ship", str(bundle), "--to", "iphone", "--out", str(tmp_path / "x")])
    assert done.value.code == 2
    assert capsys.readouterr().err.startswith("error: --to 'iphone' is unknown")


def test_labels_are_the_nasty_ones() -> None:
    assert any("\n" in x for x in LABELS)
    assert all(any(mark in x for x in LABELS) for mark in ('"', "\\", "$", "🐕"))


WHY = "output 'logits': SQNR 3.5 dB is under 8 dB for w8a8"


@pytest.mark.parametrize("platform", list(PLATFORMS))
def test_what_failed_its_verification_is_not_packed(
    tmp_path: Path, platform: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = fake(tmp_path / "b.rejected", target_for(platform), failures=[WHY])
    with pytest.raises(SystemExit) as stop:
        main(["ship", str(bundle), "--to", platform, "--out", str(tmp_path / "app")])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "is not verified" in err
    assert WHY in err
    assert "--allow-unverified" in err
    assert not (tmp_path / "app").exists()


@pytest.mark.slow
@pytest.mark.parametrize("platform", list(PLATFORMS))
def test_what_is_packed_all_the_same_says_so(
    tmp_path: Path, platform: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = fake(tmp_path / "b.rejected", target_for(platform), failures=[WHY])
    with pytest.raises(SystemExit) as stop:
        main(
            ["ship", str(bundle), f"--to={platform}", f"--out={tmp_path}/app", "--allow-unverified", "--json"]
        )
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["unverified"] == {"fp32": WHY}
    found = files(tmp_path / "app")
    readme = found["README.md"].decode()
    assert "**Not verified: `fp32`.**" in readme.partition("```")[0]  # before anything else
    assert "SQNR 3.5 dB is under 8 dB" in readme
    (variant,) = json.loads(found["repedge-package.json"])["variants"]
    assert (variant["verified"], variant["why_not"]) == (False, WHY)
    # 0.5 is how far it was from the float model: no measure of what is right.
    assert all(t < 0.5 for t in variant["tolerances"])
    assert json.loads(found["manifest.json"])["verification"]["passed"] is False


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "target"), FITS)
def test_what_is_verified_has_no_such_word(tmp_path: Path, platform: str, target: str) -> None:
    made = ship([fake(tmp_path / "b", target)], platform, tmp_path / "app", allow_unverified=True)
    assert not made.unverified
    found = files(tmp_path / "app")
    assert b"erified" not in found["README.md"]
    assert json.loads(found["repedge-package.json"])["variants"][0]["verified"] is True
