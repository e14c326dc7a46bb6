"""One measurement as users and programs see it: the summary, the raw samples, and where it was taken."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from repedge.devices.protocol import HostInfo, Op, RawProfile
from repedge.profile import stats
from repedge.profile.subject import Subject
from repedge.version import __version__


class Profile(BaseModel):
    """The object that ``repedge profile --json`` prints; times in milliseconds.

    Attributes:
        name, sha256: The artifact.
        device: URI of where it ran.
        p50_low, p50_high: 95 % interval of the median.
        warmup: Untimed runs before the timed ones.
        samples_ms: Every timed run, in order.
        ratio_p50, ratio_p50_interval, verdict: Against the first artifact of a comparison.
        warnings: What makes the numbers doubtful.

    The other fields are those of `repedge.devices.protocol.RawProfile`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repedge: str = __version__
    name: str
    sha256: str
    device: str
    runtime: str
    runtime_version: str
    target: str
    precision: str
    precision_used: str
    unit: str
    hint: str
    threads: int | None
    runs: int
    warmup: int
    load_ms: float | None
    first_ms: float | None
    min_ms: float
    p50_ms: float
    p50_low: float
    p50_high: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    throughput_per_s: float | None
    peak_rss_bytes: int | None
    partitions: int | None
    outside: tuple[str, ...]
    residency: dict[str, float]
    ops: tuple[Op, ...]
    ops_note: str
    host: HostInfo
    ratio_p50: float | None = None
    ratio_p50_interval: tuple[float, float] | None = None
    verdict: str | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    warmup_ms: tuple[float, ...]
    samples_ms: tuple[float, ...]

    def against(self, ratio: stats.Ratio) -> Profile:
        """The same with its ratio to another."""
        return self.model_copy(
            update={
                "ratio_p50": ratio.value,
                "ratio_p50_interval": (ratio.low, ratio.high),
                "verdict": ratio.verdict,
            }
        )


def summarize(subject: Subject, device: str, hint: str, raw: RawProfile) -> Profile:
    """The statistics of one raw measurement."""
    s = stats.summarize(raw.samples_ms)
    same = {k: getattr(raw, k) for k in RawProfile.model_fields if k in Profile.model_fields}
    return Profile(
        **same,
        name=subject.name,
        sha256=subject.sha256,
        device=device,
        target=subject.target,
        precision=subject.precision,
        hint=hint,
        runs=len(raw.samples_ms),
        warmup=len(raw.warmup_ms),
        min_ms=s.min,
        p50_ms=s.p50,
        p50_low=s.low,
        p50_high=s.high,
        p90_ms=s.p90,
        p99_ms=s.p99,
        mean_ms=s.mean,
        std_ms=s.std,
        warnings=(*(subject.bundle.warnings if subject.bundle else ()), *stats.warnings(raw)),
    )
