"""What is measured: a bundle, an artifact file, or a torch model as the reference."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge import targets
from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import MANIFEST
from repedge.config import Preprocess
from repedge.devices.protocol import SampleFile, SampleTensor
from repedge.errors import UserError
from repedge.targets.base import Engine, Target

if TYPE_CHECKING:
    import numpy as np

SAMPLES = 4

TORCH = Engine(
    runtime="torch", agent="repedge.profile.torch_engine:TorchEager", needs=("torch",), package="torch"
)
"""torch eager, the reference, which only this machine runs."""


@dataclass(frozen=True)
class Subject:
    """One thing to measure.

    Attributes:
        name: For tables: the bundle's folder, the file's name, or the model's.
        artifact: What the runtime loads (for torch, a stand-in that is not read).
        engine: What loads it.
        target, precision: As in the JSON; precision is empty where it is not known.
        files: Every file that the runtime reads, in a fixed order.
        bundle: The bundle it came from.
        factory_args: For torch: which model.
    """

    name: str
    artifact: Path
    engine: Engine
    target: str
    precision: str = ""
    files: tuple[Path, ...] = ()
    bundle: Bundle | None = None
    factory_args: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Digest over the artifact's files; for torch, over what was asked for."""
        digest = hashlib.sha256(repr(sorted(self.factory_args.items())).encode())
        for file in self.files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()

    def write_samples(self, file: Path) -> SampleFile:
        """Real images in the artifact's input form: the bundle's golden ones, else bundled photos."""
        import numpy as np

        pre = self.bundle.manifest.preprocess if self.bundle else Preprocess()
        pixels = np.stack(self._pixels(pre))
        layout = "NHWC"
        if self.bundle and self.bundle.manifest.input_kind == "float32":
            from repedge.photos.images import normalise

            pixels, layout = normalise(pixels, pre), "NCHW"
            if self.bundle.manifest.inputs[0].layout == "NHWC":
                pixels, layout = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), "NHWC"
        beside = self._beside(len(pixels))
        file.write_bytes(pixels.tobytes() + b"".join(a.tobytes() for a in beside.values()))
        return SampleFile(
            path=str(file),
            dtype=pixels.dtype.name,
            shape=(1, *pixels.shape[1:]),
            count=len(pixels),
            layout=layout,
            beside=tuple(
                SampleTensor(name=name, dtype=a.dtype.name, shape=a.shape[1:]) for name, a in beside.items()
            ),
        )

    def _beside(self, count: int) -> dict[str, np.ndarray]:
        """What a bundle's artifact takes beside the image, by its names, from the golden vectors."""
        from repedge.bundle.golden import beside
        from repedge.photos.tensors import Tensors

        if self.bundle is None:
            return {}
        names = [t.name for t in self.bundle.manifest.inputs[1:]]
        return Tensors(beside(self.bundle)).named(names).at(0, count)

    def _pixels(self, pre: Preprocess) -> list[np.ndarray]:
        from repedge.photos import images
        from repedge.photos.photos import bundled_photos, stacked

        golden = sorted((self.bundle.path / "golden").glob("*.png")) if self.bundle else []
        if golden:
            return [images.pixels(images.decode(p), pre) for p in golden[:SAMPLES]]
        return list(stacked(bundled_photos(pre), pre, SAMPLES))


def find(what: str | Path, allow_unverified: bool = False, **source_options: Any) -> Subject:
    """The subject that a command line word names.

    Args:
        what: A bundle, an artifact file or a model.
        allow_unverified: Take a bundle that failed its verification, too.
        source_options: For models.

    Raises:
        UserError: There is no such thing, or the bundle is damaged or not verified.
    """
    path = Path(what)
    target = targets.of_file(path)
    if path.is_dir() and target is None:
        return _bundle(path, allow_unverified)
    if target is not None:
        if not path.exists():
            raise UserError(f"there is no artifact at {path}")
        return Subject(path.name, path, _engine(target, path), target.name, files=tuple(target.files(path)))
    if path.exists():
        known = ", ".join(t.suffix for t in targets.installed() if t.engine is not None)
        raise UserError(f"{path} is no bundle and no artifact ({known}); `repedge compile` makes bundles")
    if "/" in str(what) or "\\" in str(what):
        raise UserError(f"there is nothing at {path}; `repedge compile --out DIR` makes bundles")
    return _model(str(what), source_options)


def _engine(target: Target, path: Path) -> Engine:
    if target.engine is None:
        raise UserError(f"{path} is for the target {target.name!r}, which no runtime here measures")
    return target.engine


def _bundle(path: Path, allow_unverified: bool) -> Subject:
    if not (path / MANIFEST).is_file():
        raise UserError(
            f"{path} is a folder without a {MANIFEST}, not a bundle; `repedge compile` makes bundles"
        )
    bundle = Bundle.open(path, allow_unverified)
    m = bundle.manifest
    target = targets.get(m.target)
    return Subject(
        path.resolve().name, bundle.artifact, _engine(target, path), m.target, m.precision,
        tuple(target.files(bundle.artifact)), bundle,
    )  # fmt: skip


def _model(name: str, options: dict[str, Any]) -> Subject:
    from repedge.models.registry import MODELS

    if name != "demo" and name not in MODELS and ":" not in name:
        raise UserError(f"{name!r} is no bundle, no artifact file and no model; see `repedge models`")
    args = {"model": None if name == "demo" else name, **options}
    return Subject(f"{name} (torch eager)", Path("torch"), TORCH, "torch", "fp32", factory_args=args)


def eager(model: str | None, **options: Any) -> tuple[Any, tuple[int, ...]]:
    """The module of a model and its input shape; the agent calls this on the machine that measures."""
    from repedge.models.source import resolve

    source = resolve(model, **options)
    if source.module is None:
        raise UserError(f"{model} is an ONNX file; profile it as it is, in ONNX Runtime")
    return source.module, tuple(source.input_shape)
