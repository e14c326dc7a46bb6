"""The compile pipeline, top to bottom: graph, reference, fuse, simplify, one bundle per target."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repedge import targets, tasks
from repedge.bundle.folder import Draft, still_there, writing
from repedge.bundle.golden import PREFIX
from repedge.bundle.manifest import REFERENCE, Manifest, Origin, Tensor, Verification
from repedge.compiler.budget import Search, SearchResult
from repedge.compiler.clock import Clock, Report, silent
from repedge.compiler.quantization import Calibrated, Quantized, quantize
from repedge.compiler.reference import Evidence, choose_samples, gather
from repedge.compiler.refusals import Outcome, Refused, nothing_built, operators_missing
from repedge.compiler.request import BuildRequest, Built, bundle_path
from repedge.compiler.toolchain import toolchain
from repedge.disk.atomic import scratch
from repedge.errors import RepedgeError, UnsupportedModel, UserError
from repedge.judge import verification
from repedge.judge.verdict import Bar
from repedge.passes.fusion.certificate import Certificate
from repedge.precision import Precision
from repedge.targets.base import Artifact, Job, Target
from repedge.tasks.base import Task
from repedge.tasks.comparison import Agreement
from repedge.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

    from repedge.calib.plan import QuantPlan
    from repedge.models.source import Source
    from repedge.photos.tensors import Tensors
    from repedge.scheme import QuantScheme


def compile_source(source: Source, request: BuildRequest, report: Report = silent) -> Outcome:
    """Build every bundle of ``request``; what a target refuses does not stop the others.

    The network is given up as soon as its graph exists (``source.module`` becomes None), so that its
    weights are in memory once.

    Raises:
        UserError: Wrong input, unwritable output, or no bundle that a target does not refuse: each
            operator that is not supported is named.
        CheckFailed: The graph or the fused graph differs from the model. A bundle that differs is
            returned as rejected instead, so that the others are still built.
    """
    request.check()
    request.check_destinations(source.name)
    clock = Clock(report)
    with scratch() as folder:
        work = _prepare(source, request, folder / REFERENCE, clock, report)
        built: list[Built] = []
        refused: list[tuple[Refused, UserError]] = []
        for name, precision in request.builds:
            final = bundle_path(request.out, source.name, name, precision)
            try:
                if name in work.refused:
                    raise UnsupportedModel(work.refused[name])
                with _after(built), writing(final, request.force) as draft:
                    built.append(_Bundling(work, targets.get(name), precision, draft, Clock(report)).build())
            except UserError as error:
                refused.append((Refused(name, precision, str(error)), error))
    if not built:
        raise nothing_built(refused)
    for bundle in built:
        still_there(bundle.path)
    return Outcome(tuple(built), tuple(r for r, _ in refused))


@contextlib.contextmanager
def _after(built: Sequence[Built]) -> Iterator[None]:
    """Let an error say which bundles were already written; they stay, as each is whole."""
    try:
        yield
    except RepedgeError as error:
        if built and not isinstance(error, UserError):  # such a one stops nothing
            error.args = (f"{error}; written before that: {', '.join(str(b.path) for b in built)}",)
        raise


@dataclass(frozen=True)
class _Work:
    """What all bundles of a run share.

    Attributes:
        task: What the outputs mean.
        graph: The clean float graph.
        outputs: Names of its outputs.
        reference: The unfused graph, an ``.onnx`` file.
        evidence: What that makes of real images.
        certificate: Of the fusion.
        refused: Targets that can't take the graph, and why.
        search: For the accuracy budget; None without one.
        clock: Of the stages that were done once.
    """

    source: Source
    request: BuildRequest
    task: Task
    graph: ir.Model
    outputs: tuple[str, ...]
    reference: Path
    evidence: Evidence
    certificate: Certificate
    refused: Mapping[str, str]
    search: Search | None
    clock: Clock


def _prepare(source: Source, request: BuildRequest, reference: Path, clock: Clock, report: Report) -> _Work:
    """Export, run the reference, fuse, and look whether the targets can take what comes of it."""
    from repedge import passes
    from repedge.graph.analysis.parts import parts_of

    with clock.stage("export"):
        graph = source.graph()
        settled = passes.settled(graph)
    outputs = tuple(str(v.name) for v in graph.graph.outputs)
    task = tasks.of_graph(settled, source.labels, request.task, parts_of(settled))
    task.check_labels()
    with clock.stage("reference"):
        photos = choose_samples(request, source.preprocess, task)
        evidence = gather(source, graph, reference, photos)
    source.module = None
    with clock.stage("fuse"):
        certificate = passes.clean(graph, evidence.real, evidence.random, source.tensors)
    refused = operators_missing(graph, [name for name, _ in request.builds])
    search = _search(source, task, graph, request, reference, report)
    return _Work(
        source, request, task, graph, outputs, reference, evidence, certificate, refused, search, clock
    )


def _search(
    source: Source, task: Task, graph: ir.Model, request: BuildRequest, reference: Path, report: Report
) -> Search | None:
    """The search for the accuracy budget, its photos read; names of layers to keep in float are checked."""
    from repedge.calib.mixed.choose import named

    if request.calibration is None:
        return None
    named(graph, request.calibration.keep_float)
    if request.budget is None:
        return None
    search = Search(
        request.budget, request.calibration, source.preprocess, task, reference, request.input_kind,
        toolchain(), report, source.tensors,
    )  # fmt: skip
    search.photos()
    return search


@dataclass(frozen=True)
class _Bundling:
    """One bundle in the making."""

    work: _Work
    target: Target
    precision: Precision
    draft: Draft
    clock: Clock

    def build(self) -> Built:
        """Quantize where asked, compile, verify, and publish the bundle or put it aside as rejected."""
        work, target = self.work, self.target
        job = self._job()
        quantized, outcome = None, None
        scheme = self.work.request.scheme_of(target.name, self.precision)
        if scheme is not None:
            quantized, outcome = self._quantized(scheme, job)
        with self._stage("compile"):
            graph = work.graph if quantized is None else quantized.graph
            artifact = target.compile(graph, job, self.draft.path)
        with self._stage("verify"):
            actual, others = self._run(artifact, job)
            result = self._verified(actual, others, quantized)
        with self._stage("bundle"):
            size = targets.size_of(target.name, self.draft.path / artifact.main)
            self._fill(actual)
            summary = None if quantized is None else quantized.summary
            self.draft.seal(self._manifest(artifact, result, summary))
            path = self.draft.publish() if result.passed else self.draft.reject()
        stages = {name.rsplit(": ")[-1]: s for name, s in self.clock.seconds.items()}
        return Built(
            path,
            target.name,
            self.precision,
            size,
            result,
            {**work.clock.seconds, **stages},
            outcome,
            work.task,
            work.evidence.warnings,
        )

    def _stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self.clock.stage(f"{self.target.name} {self.precision}: {name}")

    def _job(self) -> Job:
        source, request = self.work.source, self.work.request
        return Job(
            name=source.name,
            precision=self.precision,
            preprocess=source.preprocess,
            input_kind=request.input_kind,
            labels=source.labels,
            task=self.work.task,
            options=request.options_of(self.target.name, self.precision),
            **dict(request.about),  # type: ignore[arg-type]
        )

    def _quantized(self, scheme: QuantScheme, job: Job) -> tuple[Quantized, SearchResult | None]:
        """The QDQ graph, and what the search for a budget found."""
        work, search = self.work, self.work.search
        outcomes: list[SearchResult] = []

        def raise_layers(found: Calibrated) -> tuple[ir.Model, QuantPlan]:
            assert search is not None
            with self._stage("search"):
                raised = search.run(self.target, job, work.outputs, found)
            outcomes.append(raised.outcome)
            return raised.model, raised.plan

        with self._stage("calibrate"):
            found = quantize(
                work.graph, scheme, work.source.preprocess, work.request.input_kind,
                work.request.calibration, task=work.task, tensors=work.source.tensors,
                raise_layers=raise_layers if search else None,
            )  # fmt: skip
        outcome = outcomes[0] if outcomes else None
        found.summary["budget"] = None if outcome is None else outcome.as_json()
        return found, outcome

    def _verified(
        self,
        actual: Sequence[np.ndarray],
        others: Mapping[str, Sequence[np.ndarray]],
        quantized: Quantized | None,
    ) -> Verification:
        """The artifact's outputs against the float network's, and its integers against their simulation."""
        evidence = self.work.evidence
        simulated, steps = None, ()
        if quantized is not None:
            simulated = self._compared(quantized.simulate(self._inputs()[: evidence.judged]))
            steps = quantized.summary["output_steps"]
        bar = Bar(
            self.precision, self.target.threshold(self.precision), self.work.request.verify.min_sqnr,
            evidence.real.resolution, steps, simulated,
        )  # fmt: skip
        return verification.summarize(
            self.target, bar, self._compared(actual), source=evidence.samples.source,
            others={how: self._compared(outputs) for how, outputs in others.items()},
            truth=verification.against_truth(
                self.work.task, evidence.samples.truths, actual, evidence.real.outputs
            ),
        )  # fmt: skip

    def _inputs(self) -> np.ndarray:
        """The real images as the artifact takes them, float32 [n, C, H, W]."""
        evidence = self.work.evidence
        if self.work.request.input_kind == "uint8":
            return np.ascontiguousarray(evidence.pixels.transpose(0, 3, 1, 2), dtype=np.float32)
        return evidence.real.inputs

    def _run(self, artifact: Artifact, job: Job) -> tuple[list[np.ndarray], Mapping[str, list[np.ndarray]]]:
        """What the artifact makes of the real images, and what comes of the other ways to run it."""
        evidence = self.work.evidence
        images = evidence.pixels if job.input_kind == "uint8" else evidence.real.inputs
        runner = self.target.open(self.draft.path / artifact.main, job, self.work.outputs)
        try:
            tensors = self.work.source.tensors.named([t.name for t in artifact.inputs[1:]])
            return tensors.from_first(runner.run)(images), tensors.from_first(runner.others)(images)
        finally:
            runner.close()

    def _compared(self, actual: Sequence[np.ndarray]) -> Agreement:
        """Outputs beside those of the reference, on the images that judge."""
        n = self.work.evidence.judged
        exact = self.work.evidence.real.outputs
        return verification.compare(self.work.task, [y[:n] for y in actual], [y[:n] for y in exact])

    def _fill(self, actual: Sequence[np.ndarray]) -> None:
        """Golden vectors and the float reference, beside the artifact."""
        _golden(self.draft.path, self.work.evidence, self.work.source.tensors, self.work.outputs, actual)
        if self.work.request.reference:
            _link(self.work.reference, self.draft.path / REFERENCE)

    def _task_word(self, artifact: Artifact) -> str:
        """The task's name, or nothing where the artifact's signature says it all."""
        guessed = tasks.of_outputs(artifact.outputs, self.work.source.labels)
        task = self.work.task
        return "" if guessed.name == task.name and not task.settings() else task.name

    def _manifest(
        self, artifact: Artifact, result: Verification, quantization: dict[str, Any] | None
    ) -> Manifest:
        source, request = self.work.source, self.work.request
        options = request.options_of(self.target.name, self.precision)
        if request.verify.min_sqnr is not None:
            options["min_sqnr"] = request.verify.min_sqnr
        warned = () if quantization is None else tuple(quantization["calibration"]["warnings"])
        return Manifest(
            repedge=__version__,
            name=source.name,
            target=self.target.name,
            precision=self.precision,
            artifact=artifact.main.as_posix(),
            input_kind=request.input_kind,
            inputs=tuple(Tensor(**vars(t)) for t in artifact.inputs),
            outputs=tuple(Tensor(**vars(t)) for t in artifact.outputs),
            preprocess=source.preprocess,
            preprocess_from=dict(source.origins),
            labels=source.labels,
            task=self._task_word(artifact),
            answer=self.work.task.settings(),
            requires=dict(artifact.requires),
            notes=source.warnings + artifact.notes + warned + self.work.evidence.warnings,
            options=options,
            fusion=self.work.certificate.model_dump(mode="json"),
            quantization=quantization,
            verification=result,
            origin=Origin(
                model=source.kind,
                description=source.description,
                checkpoint_sha256=source.checkpoint_sha256,
                license=source.license,
            ),
            toolchain=toolchain(),
            command=request.command,
        )


def _golden(
    folder: Path, evidence: Evidence, tensors: Tensors, outputs: Sequence[str], actual: Sequence[np.ndarray]
) -> None:
    """A few image files with the pixels they become and the outputs they give, here and in the reference."""
    golden = folder / "golden"
    golden.mkdir()
    few = evidence.samples.golden
    for i, (_, image) in enumerate(evidence.samples.images[few]):
        image.save(golden / f"{i}.png", optimize=False)
    arrays = {"pixels": evidence.pixels[few]}
    arrays |= {f"{PREFIX}{n}": a[few] for n, a in tensors.at(0, len(evidence.pixels)).items()}
    for name, mine, reference in zip(outputs, actual, evidence.real.outputs, strict=True):
        arrays[f"output:{name}"] = mine[few]
        arrays[f"reference:{name}"] = reference[few]
    np.savez(golden / "golden.npz", **arrays)  # type: ignore[arg-type]


def _link(source: Path, destination: Path) -> None:
    """A hard link where the file system allows one (several bundles share a reference), else a copy."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
