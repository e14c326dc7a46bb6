"""The accuracy budget: integers as far as the real artifact stays accurate, float for the fewest layers.

Single layers are ranked by what they give at the output when they are raised, for the price of it (in
simulation, `calib.raising`); the sets that this ranking proposes are built by the target, run in its
executor on photos, and judged there. Each trial is kept in the user's cache, so that a search that was
interrupted goes on where it was.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repedge.cache import Store
from repedge.disk.atomic import scratch
from repedge.errors import CheckFailed, UserError
from repedge.hashing import key_of, sha256
from repedge.judge.scoring import Score, ScoringSet, affordable, held_out, with_truth
from repedge.photos.tensors import Tensors
from repedge.tasks.base import Limit, Task

if TYPE_CHECKING:
    import onnx_ir as ir

    from repedge.calib.mixed.choose import Trial
    from repedge.calib.mixed.raising import Raise
    from repedge.calib.plan import QuantPlan
    from repedge.compiler.quantization import Calibrated, Calibration
    from repedge.config import InputKind, Preprocess
    from repedge.targets.base import Job, Target

PHOTOS = 2000
"""Most photos that artifacts are judged on by default."""

RANKED_ON = (16, 64)
"""Least and most calibration images that single layers are ranked on."""

RANKED_MACS = 18e9
"""Multiply-accumulates of these images in one run of the network, which bound their number."""

LOWERED = 4
"""Raises that are taken back again, for a try, at the end."""


@dataclass(frozen=True)
class Budget:
    """How much accuracy integers may cost. One of the two limits.

    Attributes:
        max_drop: Points (hundredths): of the task's first metric (top-1, say) where ``data`` says what is
            to be found in its photos, else of the photos where the float model answers something else.
        max_kl: The task's distance from the float model: for class scores mean KL divergence, nats.
        data: Photos to judge on: a folder, .zip or .npz; None takes calibration photos that were not
            calibrated on.
        count: At most this many of them, spread evenly.
    """

    max_drop: float | None = None
    max_kl: float | None = None
    data: Any = None
    count: int = PHOTOS

    def check(self) -> None:
        """Refuse what can't be meant.

        Raises:
            UserError: No limit or two, one that is no positive number, or no photos.
        """
        given = [v for v in (self.max_drop, self.max_kl) if v is not None]
        if len(given) != 1:
            raise UserError("an accuracy budget is one of --max-drop POINTS and --max-kl NATS")
        if not (math.isfinite(given[0]) and given[0] >= 0):
            raise UserError(f"an accuracy budget is a number from 0 up, not {given[0]}")
        if self.count < 1:
            raise UserError(f"--eval-count must be 1 or more, not {self.count}")

    @property
    def limit(self) -> float:
        """The limit, in the unit of the measure."""
        found = self.max_drop if self.max_drop is not None else self.max_kl
        assert found is not None
        return found

    def bound(self, task: Task, has_truth: bool) -> Limit:
        """What is compared with the limit.

        Raises:
            UserError: The task has nothing that could be.
        """
        if self.max_kl is not None:
            return task.bounded("--max-kl", task.divergence)
        return task.bounded("--max-drop", task.drop if has_truth and task.drop else task.disagreement)


@dataclass
class SearchResult:
    """What a search did; ``as_json`` is the manifest's ``budget``.

    Attributes:
        target, precision: Of the artifact.
        bound, limit: What was bounded, and by what.
        source: Where the photos came from.
        layers: Layers of the network that have integers at the start.
        trials: Every attempt in order; the accepted one is the last that kept to the limit.
        scores: Of each trial.
        cached: Whether each came from the cache.
    """

    target: str
    precision: str
    bound: Limit
    limit: float
    source: str
    layers: int
    trials: list[Trial] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    cached: list[bool] = field(default_factory=list)

    @property
    def taken(self) -> int | None:
        """Index of the accepted trial: the last within the limit; None if there is none."""
        within = [i for i, t in enumerate(self.trials) if t.cost <= self.limit]
        return within[-1] if within else None

    def as_json(self) -> dict[str, Any]:
        """For the manifest: nothing in it depends on what was cached."""
        taken = self.taken
        return {
            "measure": self.bound.measure,
            "unit": self.bound.unit,
            "limit": self.limit,
            "met": taken is not None,
            "value": None if taken is None else self.trials[taken].cost,
            "raised": [] if taken is None else list(self.trials[taken].layers),
            "float_weights": [] if taken is None else list(self.trials[taken].weights),
            "layers": self.layers,
            "float_macs": 0.0 if taken is None else self.trials[taken].macs,
            "photos": self.source,
            "score": None if taken is None else self.scores[taken].as_json(),
            "trials": [
                {
                    "raised": list(t.layers),
                    "float_weights": list(t.weights),
                    "nodes": t.nodes,
                    "float_macs": t.macs,
                    "value": t.cost,
                }
                for t in self.trials
            ],
        }


class NotMet(CheckFailed):
    """An accuracy budget can't be met.

    Attributes:
        result: The trials.
        details: What the command line's JSON says beside the message.
    """

    def __init__(self, outcome: SearchResult, most: int) -> None:
        best = min(outcome.trials, key=lambda t: t.cost)
        asked = f"a {outcome.bound.phrase} of {outcome.limit:g} {outcome.bound.unit}".rstrip()
        super().__init__(
            f"{outcome.target} {outcome.precision}: {asked} is not met with up to {most} of {outcome.layers} "
            f"layers in float (least: {best.cost:.3g} with {best.raised}); allow more, calibrate on more "
            "photos or with --recipe best, or compile in fp16"
        )
        self.result = outcome
        self.details = {"budget": outcome.as_json()}


class Search:
    """Accuracy budgets of one compile run: the photos are decoded, and the reference is run, once.

    Args:
        budget: The limit.
        calibration: Where calibration photos come from.
        pre: The model's preprocessing.
        task: What the model's outputs mean.
        reference: The unfused float graph, an ``.onnx`` file.
        kind: What the artifacts take.
        versions: Package -> version of all that has a hand in the result.
        report: Told what is being done.
        tensors: What the model takes beside the image.
    """

    def __init__(
        self, budget: Budget, calibration: Calibration, pre: Preprocess, task: Task,
        reference: Path, kind: InputKind, versions: Mapping[str, str],
        report: Callable[[str], None] = lambda stage: None,
        tensors: Tensors | None = None,
    ) -> None:  # fmt: skip
        self._tensors = tensors or Tensors()
        self.budget = budget
        self._calibration = calibration
        self._pre, self._task, self._reference, self._kind = pre, task, reference, kind
        self._versions = dict(versions)
        self._report = report
        self._photos: ScoringSet | None = None
        self._store = Store("trials")
        self._reference_sha = sha256(reference)

    def photos(self) -> ScoringSet:
        """The photos.

        Raises:
            UserError: See `repedge.judge.scoring.with_truth` and `repedge.judge.scoring.held_out`.
        """
        if self._photos is None:
            self._report("accuracy budget: photos")
            b = self.budget
            count = min(b.count, affordable(self._task))
            if b.data is not None:
                given = with_truth(b.data, self._task, self._pre, count)
            else:
                c = self._calibration
                used = set(c.images(self._pre).record.files.values())
                given = held_out(c.open(self._pre), used, self._pre, c.seed, count)
            self._photos = ScoringSet(given, self._pre, self._reference, self._task, self._tensors)
        return self._photos

    def run(self, target: Target, job: Job, outputs: Sequence[str], found: Calibrated) -> WithinBudget:
        """Raise as few layers of a calibrated graph as the budget asks for.

        Raises:
            NotMet: Half of the layers in float are not enough.
        """
        from repedge.calib.mixed.choose import BudgetNotMet, choose
        from repedge.calib.structure import layers
        from repedge.calib.weights.equalize import replay

        photos = self.photos()
        total = sum(str(la.weight.name) in found.plan.weights for la in layers(found.model))
        outcome = SearchResult(
            target.name, job.precision, self.budget.bound(self._task, photos.has_truth), self.budget.limit,
            photos.source, total,
        )  # fmt: skip
        trial = _Trial(self, target, job, outputs, found, outcome)
        reference = replay(found.graph, found.plan.equalization)
        most = max(1, total // 2)
        try:
            model, plan, outcome.trials = choose(
                found.model,
                reference,
                found.plan,
                lambda: found.feed.batches(RANKED_ON[0]),
                self.budget.limit,
                measure=trial,
                most=most,
                order=lambda: self._order(target, job, found, reference),
                lowered=LOWERED,
            )
        except BudgetNotMet as e:
            outcome.trials = list(e.trials)
            raise NotMet(outcome, most) from e
        return WithinBudget(model, plan, outcome)

    def _order(self, target: Target, job: Job, found: Calibrated, reference: ir.Model) -> list[Raise]:
        from repedge.calib.distance import Distance
        from repedge.calib.mixed.raising import Raise, raises
        from repedge.graph.count import macs_of

        least, most = RANKED_ON
        count = int(min(most, max(least, RANKED_MACS / max(1, sum(macs_of(found.model).values())))))
        key = key_of(
            "raises", str(count), *self._environment(), _bytes(found.model), _bytes(reference),
            found.plan.model_dump_json(),
        )  # fmt: skip
        stored = self._store.get(key)
        if stored is not None:
            return [Raise(**one) for one in stored]
        self._report(f"{target.name} {job.precision}: what each layer gives")
        order = raises(
            found.model, reference, found.plan, lambda: found.feed.batches(count), Distance(self._task)
        )
        self._store.put(key, [asdict(one) for one in order])
        return order

    def _environment(self) -> list[str]:
        return [platform.machine(), *(f"{k} {v}" for k, v in sorted(self._versions.items()))]

    def score(
        self, target: Target, job: Job, outputs: Sequence[str], qdq: ir.Model, stage: str
    ) -> tuple[Score, bool]:
        """An artifact's score on the photos, and whether it was in the cache."""
        photos = self.photos()
        key = key_of(
            "score", self._task.name, *self._environment(), self._reference_sha, photos.digest, target.name,
            job.precision,
            self._kind, self._pre.model_dump_json(), repr(sorted(job.options.items())), _bytes(qdq),
        )  # fmt: skip
        stored = self._store.get(key)
        if stored is not None:
            return Score(**stored), True
        self._report(stage)
        with scratch() as folder:
            artifact = target.compile(qdq, job, folder)
            runner = target.open(folder / artifact.main, job, outputs)
            try:
                tensors = self._tensors.named([t.name for t in artifact.inputs[1:]])
                score = photos.score(tensors.along(runner.run), self._kind)
            finally:
                runner.close()
        self._store.put(key, asdict(score))
        return score, False


@dataclass(frozen=True)
class WithinBudget:
    """A graph and a plan within the budget, and how they were found."""

    model: ir.Model
    plan: QuantPlan
    outcome: SearchResult


class _Trial:
    """The measure that `calib.choose.choose` asks: build, run, score."""

    def __init__(
        self, search: Search, target: Target, job: Job, outputs: Sequence[str], found: Calibrated,
        outcome: SearchResult,
    ) -> None:  # fmt: skip
        self._ask = search.score
        self._target, self._job, self._outputs = target, job, outputs
        self._found, self._outcome = found, outcome

    def __call__(self, model: ir.Model, plan: QuantPlan) -> float:
        from repedge.calib.qdq import to_qdq

        before = len(self._found.plan.float_nodes)
        count = len(plan.float_nodes) - before
        stage = f"{self._target.name} {self._job.precision}: trial with {count} nodes raised to float"
        qdq = to_qdq(model, plan)
        score, cached = self._ask(self._target, self._job, self._outputs, qdq, stage)
        self._outcome.scores.append(score)
        self._outcome.cached.append(cached)
        return score.of(self._outcome.bound)


def _bytes(model: ir.Model) -> bytes:
    """The same graph gives the same bytes."""
    import onnx_ir

    return onnx_ir.serde.serialize_model(model).SerializeToString(deterministic=True)
