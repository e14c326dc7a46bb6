"""The compile pipeline, top to bottom: graph, reference, fuse, simplify, one bundle per target."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repedge import __version__, targets, verification
from repedge.atomic import scratch
from repedge.budget import Budget, Search, SearchResult
from repedge.bundle import (
    REFERENCE,
    Draft,
    Manifest,
    Origin,
    Tensor,
    Verification,
    artifact_bytes,
    check_destination,
    writing,
)
from repedge.config import InputKind, Precision
from repedge.errors import RepedgeError, UnsupportedModel, UserError
from repedge.evidence import Evidence, gather
from repedge.quantization import NEEDS_PHOTOS, Calibrated, Calibration, quantize
from repedge.toolchain import toolchain

if TYPE_CHECKING:
    import onnx_ir as ir

    from repedge.calib.plan import QuantPlan
    from repedge.models.source import Source
    from repedge.targets.base import Artifact, Target

SCHEMES_OF = {"gpu": "tensorrt"}  # targets whose quantization scheme has another name
GOLDEN = 4  # golden images per bundle


@dataclass(frozen=True)
class Plan:
    """What to build.

    Attributes:
        builds: (target, precision) of every bundle.
        out: Folder that receives the bundles.
        input_kind: What the artifacts take; see `repedge.config.InputKind`.
        images: Folder of photos to verify on; None for the bundled ones.
        count: How many of them.
        reference: Whether the bundles carry the float reference graph.
        min_sqnr: Replaces the precision's SQNR threshold, dB.
        calibration: Photos for the precisions with integer activations.
        budget: How much accuracy these may cost; layers are raised to float to keep to it.
        options: Target options such as ``deployment_target``.
        about: author, license, description, version for the artifacts' metadata.
        command: The command line, recorded in the manifests.
    """

    builds: tuple[tuple[str, Precision], ...]
    out: Path = Path("build")
    input_kind: InputKind = "uint8"
    force: bool = False
    images: Path | None = None
    count: int = 4
    reference: bool = True
    min_sqnr: float | None = None
    calibration: Calibration | None = None
    budget: Budget | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """One bundle that was written (or rejected, when ``verify.passed`` is false)."""

    path: Path
    target: str
    precision: Precision
    size_bytes: int
    verify: Verification
    seconds: dict[str, float]
    budget: SearchResult | None = None

    def as_json(self) -> dict[str, Any]:
        """One element of ``bundles`` in the JSON of ``repedge compile``."""
        return {
            "path": str(self.path),
            "target": self.target,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "verify": self.verify.model_dump(),
            "seconds": self.seconds,
            **({} if self.budget is None else {"budget": self.budget.as_json()}),
        }


class Clock:
    """Names and times the stages; ``report`` is told when each begins."""

    def __init__(self, report: Callable[[str], None] = lambda stage: None) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._report(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 4)


def bundle_path(out: Path, name: str, target: str, precision: str) -> Path:
    """Where a bundle goes: ``OUT/MODEL-TARGET-PRECISION``."""
    return out / f"{name}-{target}-{precision}"


def scheme_name(target: str, precision: Precision) -> str:
    """The quantization scheme of a target's precision, a key of ``repedge.calib.scheme.SCHEMES``."""
    return f"{SCHEMES_OF.get(target, target)}-{precision}"


def check_plan(name: str, plan: Plan) -> None:
    """Fail before any work where the options don't go together, or a bundle could not be written.

    Raises:
        UserError: Says which.
    """
    check_options(plan)
    for target, precision in plan.builds:
        check_destination(bundle_path(plan.out, name, target, precision), plan.force)


def check_options(plan: Plan) -> None:
    """Fail where a precision lacks what it needs, such as photos to calibrate on.

    Raises:
        UserError: Says which.
    """
    integer = any(precision in NEEDS_PHOTOS for _, precision in plan.builds)
    if plan.calibration is None and integer:
        raise UserError("8-bit activations need photos to calibrate on: pass --calib FOLDER")
    kept = plan.calibration is not None and plan.calibration.keep_float
    if (plan.budget is not None or kept) and not integer:
        raise UserError("an accuracy budget or --keep-float is for w8a8 or w8a16: name one with --precision")


def compile_source(
    source: Source, plan: Plan, report: Callable[[str], None] = lambda stage: None
) -> list[Built]:
    """Build every bundle of ``plan``.

    The network is given up as soon as its graph exists (``source.module`` becomes None), so that its
    weights are in memory once.

    Raises:
        UserError: Wrong input, unsupported operators (all of them named), unwritable output.
        CheckFailed: The graph or the fused graph differs from the model. A bundle that differs is
            returned as rejected instead, so that the others are still built.
    """
    check_plan(source.name, plan)
    chosen = [(targets.get(name), precision) for name, precision in plan.builds]
    clock = Clock(report)
    with scratch() as folder:
        reference = folder / REFERENCE
        with clock.stage("export"):
            graph = to_graph(source)
        outputs = [str(v.name) for v in graph.graph.outputs]
        with clock.stage("reference"):
            evidence = gather(source, graph, reference, plan.images, plan.count)
        source.module = None
        with clock.stage("fuse"):
            certificate = optimize(graph, evidence)
        _check_supported(graph, [t for t, _ in chosen])
        search = _search(source, graph, plan, reference, report)
        built: list[Built] = []
        for target, precision in chosen:
            own = Clock(report)
            final = bundle_path(plan.out, source.name, target.name, precision)
            with _after(built), writing(final, plan.force) as draft:
                built.append(
                    _build(target, precision, graph, source, plan, evidence, certificate, outputs,
                           reference, draft, clock, own, search)
                )  # fmt: skip
    return built


@contextlib.contextmanager
def _after(built: Sequence[Built]) -> Iterator[None]:
    """Let an error say which bundles were already written; they stay, as each is whole."""
    try:
        yield
    except RepedgeError as error:
        if built:
            error.args = (f"{error}; written before that: {', '.join(str(b.path) for b in built)}",)
        raise


def to_graph(source: Source) -> ir.Model:
    """The unfused float graph of a source, static batch 1."""
    if source.onnx is not None:
        from repedge.graph.load import load_onnx

        return load_onnx(source.onnx, source.input_shape[2:] if source.input_shape else None)
    from repedge.graph.export import export_module

    assert source.module is not None, "a source holds a module or an ONNX path"
    return export_module(source.module, source.input_shape)


def settle(graph: ir.Model) -> None:
    """Give every value a fixed shape where some hang on computed ones (files of other exporters); in place.

    The float reference is written before this, so that it rests on nothing but the file.
    """
    from repedge import passes

    if any(v.shape is None or not v.shape.is_static() for node in graph.graph for v in node.outputs):
        passes.prepare(graph)


def optimize(graph: ir.Model, evidence: Evidence | None) -> Any:
    """Canonicalize, fuse and simplify in place; returns the fusion certificate.

    Raises:
        CheckFailed: A merge, or the whole, is not exact.
    """
    from repedge import passes
    from repedge.graph.count import count
    from repedge.graph.run import Session
    from repedge.passes.certificate import certify
    from repedge.passes.fuse import fuse

    settle(graph)
    before = count(graph)
    passes.canonicalize(graph)
    fused = fuse(graph)
    passes.simplify(graph)
    if evidence is None:
        return certify(fused, before, count(graph))
    return certify(fused, before, count(graph), Session(graph).run, evidence.real, evidence.random)


def _check_supported(graph: ir.Model, chosen: Sequence[Target]) -> None:
    """Every node that a chosen target has no lowering for, in one error."""
    lines = []
    for target in dict.fromkeys(chosen):
        for u in target.unsupported(graph):
            where = f" (from {u.source})" if u.source else ""
            lines.append(f"{target.name}: {u.op} node {u.node!r}{where}: {u.why}")
    if not lines:
        return
    others = [n for n in targets.names() if n not in {t.name for t in chosen}]
    able = [n for n in others if not targets.get(n).unsupported(graph)]
    hint = f"; these targets have them all: {', '.join(able)}" if able else ""
    raise UnsupportedModel(
        "the model has operators without a lowering: " + "; ".join(dict.fromkeys(lines)) + hint
    )


def _search(
    source: Source, graph: ir.Model, plan: Plan, reference: Path, report: Callable[[str], None]
) -> Search | None:
    """The search for the accuracy budget, its photos read; names of layers to keep in float are checked."""
    from repedge.calib.choose import named

    if plan.calibration is None:
        return None
    named(graph, plan.calibration.keep_float)
    if plan.budget is None:
        return None
    search = Search(
        plan.budget, plan.calibration, source.preprocess, source.labels, reference, plan.input_kind,
        toolchain(), report,
    )  # fmt: skip
    search.exam()
    return search


def _build(
    target: Target, precision: Precision, graph: ir.Model, source: Source, plan: Plan, evidence: Evidence,
    certificate: Any, outputs: Sequence[str], reference: Path, draft: Draft, shared: Clock, clock: Clock,
    search: Search | None,
) -> Built:  # fmt: skip
    from repedge.targets.base import Job

    job = Job(
        name=source.name,
        precision=precision,
        preprocess=source.preprocess,
        input_kind=plan.input_kind,
        labels=source.labels,
        options={k: v for k, v in plan.options.items() if v is not None},
        **plan.about,
    )
    quantization, outcome = None, None
    if precision in NEEDS_PHOTOS:
        outcomes: list[SearchResult] = []

        def raise_layers(found: Calibrated) -> tuple[ir.Model, QuantPlan]:
            assert search is not None
            with clock.stage(f"{target.name} {precision}: search"):
                raised = search.run(target, job, outputs, found)
            outcomes.append(raised.outcome)
            return raised.model, raised.plan

        with clock.stage(f"{target.name} {precision}: calibrate"):
            graph, quantization = quantize(
                graph, scheme_name(target.name, precision), source.preprocess, plan.input_kind,
                plan.calibration, raise_layers=raise_layers if search else None,
            )  # fmt: skip
        outcome = outcomes[0] if outcomes else None
        quantization["budget"] = None if outcome is None else outcome.as_json()
    with clock.stage(f"{target.name} {precision}: compile"):
        artifact = target.compile(graph, job, draft.path)
    with clock.stage(f"{target.name} {precision}: verify"):
        runner = target.open(draft.path / artifact.main, job, outputs)
        actual = runner.run(evidence.pixels if plan.input_kind == "uint8" else evidence.real.inputs)
        runner.close()
        result = verification.summarize(
            precision, verification.compare(actual, evidence.real.outputs), outputs,
            executor=target.executor, source=evidence.source, min_sqnr=plan.min_sqnr,
        )  # fmt: skip
    with clock.stage(f"{target.name} {precision}: bundle"):
        _golden(draft.path, evidence, outputs, actual)
        if plan.reference:
            _link(reference, draft.path / REFERENCE)
        size = artifact_bytes(draft.path / artifact.main)
        manifest = _manifest(target, precision, artifact, source, plan, result, certificate)
        warned = () if quantization is None else tuple(quantization["calibration"]["warnings"])
        draft.seal(
            manifest.model_copy(update={"quantization": quantization, "notes": manifest.notes + warned})
        )
        path = draft.publish().path if result.passed else draft.reject()
    stages = {name.rsplit(": ")[-1]: s for name, s in clock.seconds.items()}
    return Built(path, target.name, precision, size, result, {**shared.seconds, **stages}, outcome)


def _manifest(
    target: Target, precision: Precision, artifact: Artifact, source: Source, plan: Plan,
    result: Verification, certificate: Any,
) -> Manifest:  # fmt: skip
    options = dict(plan.options)
    if plan.min_sqnr is not None:
        options["min_sqnr"] = plan.min_sqnr
    return Manifest(
        repedge=__version__,
        name=source.name,
        target=target.name,
        precision=precision,
        artifact=artifact.main.as_posix(),
        input_kind=plan.input_kind,
        inputs=tuple(Tensor(**vars(t)) for t in artifact.inputs),
        outputs=tuple(Tensor(**vars(t)) for t in artifact.outputs),
        preprocess=source.preprocess,
        labels=source.labels,
        requires=dict(artifact.requires),
        notes=artifact.notes,
        options={k: v for k, v in options.items() if v is not None},
        fusion=certificate.model_dump(mode="json"),
        verification=result,
        origin=Origin(
            model=source.kind,
            description=source.description,
            checkpoint_sha256=source.checkpoint_sha256,
            license=source.license,
        ),
        toolchain=toolchain(),
        command=plan.command,
    )


def _golden(folder: Path, evidence: Evidence, outputs: Sequence[str], actual: Sequence[np.ndarray]) -> None:
    """A few image files with the pixels they become and the outputs they give, here and in the reference."""
    golden = folder / "golden"
    golden.mkdir()
    for i, (_, image) in enumerate(evidence.samples[:GOLDEN]):
        image.save(golden / f"{i}.png", optimize=False)
    arrays = {"pixels": evidence.pixels[:GOLDEN]}
    for name, mine, reference in zip(outputs, actual, evidence.real.outputs, strict=True):
        arrays[f"output:{name}"] = mine[:GOLDEN]
        arrays[f"reference:{name}"] = reference[:GOLDEN]
    np.savez(golden / "golden.npz", **arrays)  # type: ignore[arg-type]


def _link(source: Path, destination: Path) -> None:
    """A hard link where the file system allows one (several bundles share a reference), else a copy."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
