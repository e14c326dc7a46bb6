"""What a device is asked and what it answers: JSON in, JSON out, the same for every device.

`ProfileRequest` says how to measure, `RawProfile` holds what was measured, raw. Statistics are made
from it on this side (`repedge.profile.stats`), so that every device is summarised alike.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PROTOCOL = 1

Runtime = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""A runtime's word; open, as targets bring their own."""

Hint = Literal["latency", "throughput"]
InferPrecision = Literal["f32", "bf16", "f16", "auto"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SampleTensor(_Model):
    """An input beside the image: its name in the artifact, its type (numpy's name), a sample's shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class SampleFile(_Model):
    """Input samples as raw little-endian numbers, one after the other, in C order.

    Attributes:
        path: The file, on the machine that reads it: a device that copies it changes the path.
        dtype: numpy's name of the element type.
        shape: Shape of one sample, batch axis included, such as [1, 224, 224, 3].
        count: How many samples the file holds; runs take them in turn.
        layout: ``NHWC`` or ``NCHW``; with it, samples are fitted to another input shape.
        beside: What the artifact takes beside the image: behind the images, for each in this order, as many.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    count: int = Field(ge=1)
    layout: str = "NHWC"
    beside: tuple[SampleTensor, ...] = ()


class EngineRef(_Model):
    """What the agent loads to run an artifact; see `repedge.targets.base.Engine`.

    Attributes:
        agent: ``module:class``.
        modules: Further modules that it imports, which travel with it.
        needs: Modules that hold the runtime, the first found is used.
        package: What pip installs to have it.
    """

    agent: str
    modules: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    package: str = ""


class ProfileRequest(_Model):
    """How to measure one artifact.

    Attributes:
        runtime: What runs it.
        engine: What the agent loads for that.
        files: The artifact's files, by paths relative to its folder; devices copy them.
        runs: Timed runs.
        warmup: Untimed runs before them; None: until the times are stable (bounded).
        threads: CPU threads; None: as many as the process may use, at most 4.
        per_op: Whether to time the operators as well, after the timed runs.
        hint: OpenVINO: one request at a time, or as many at once as the plugin thinks best.
        infer_precision: OpenVINO on a CPU: ``f32`` is how artifacts were verified and how shipped packages
            run them; ``auto`` is what the plugin chooses by itself, bf16 or f16 where the CPU has it.
        unit: Where to run: an OpenVINO device, an ONNX Runtime provider, Core ML compute units.
        samples: Input data; None: the device makes seeded noise.
        factory: ``module:function`` that returns a torch module, for the runtime ``torch`` only.
        factory_args: Its keyword arguments.
        timeout_s: Longest silence of a device before it is given up.
    """

    runtime: Runtime
    engine: EngineRef
    files: tuple[str, ...] = ()
    runs: int = Field(default=100, ge=1)
    warmup: int | None = Field(default=None, ge=0)
    threads: int | None = Field(default=None, ge=1)
    per_op: bool = False
    hint: Hint = "latency"
    infer_precision: InferPrecision = "f32"
    unit: str = ""
    samples: SampleFile | None = None
    factory: str = ""
    factory_args: dict[str, object] = Field(default_factory=dict)
    timeout_s: float = Field(default=120, gt=0)


class Op(_Model):
    """One operator (or fused group) of the artifact as the runtime runs it.

    Attributes:
        name: Name in the artifact.
        type: The format's own word, such as ``CONV_2D`` or ``Convolution``.
        ms: Mean time of one run; None where the runtime does not say.
        where: What ran it: ``XNNPACK``, ``CPU``, a primitive such as ``brgemm_avx512_bf16``, ``ane``.
        precision: What it computed in, where the runtime says.
        shape: Of its first output, where the runtime says.
    """

    name: str
    type: str
    ms: float | None = None
    where: str = ""
    precision: str = ""
    shape: tuple[int, ...] = ()


class HostInfo(_Model):
    """The machine that ran the artifact, as far as it can be read; None: it can't."""

    model: str = ""
    cpu: str = ""
    cores: int | None = None
    affinity: tuple[int, ...] | None = None
    os: str = ""
    python: str = ""
    governor: str | None = None
    mhz: float | None = None
    load_average: float | None = None
    temperature_before: float | None = None
    temperature_after: float | None = None


class RawProfile(_Model):
    """What a device measured, nothing computed from it.

    Attributes:
        protocol: Version of this form.
        runtime, runtime_version: What ran the artifact.
        threads: CPU threads it was given.
        unit: Where it ran, such as ``CPU`` or ``CUDAExecutionProvider``.
        precision_used: What the arithmetic really was, where the runtime says (``bf16``, ``i8``).
        load_ms: From the file to ready for the first run.
        first_ms: The first run.
        warmup_ms: The warm-up runs, in order.
        stable: Whether the warm-up ended because the times were stable; None: a fixed number.
        samples_ms: The timed runs, in order.
        throughput_per_s: Runs per second, measured with the hint ``throughput`` only.
        peak_rss_bytes: Most memory that the process held, the runtime's own code included.
        partitions: Parts that run inside the delegate or on the accelerator; None: no such thing.
        outside: Names of the operators outside of them, in order.
        residency: Share (0 to 1) of the work on each unit, by the unit's name in lower case.
        ops, ops_note: Per-operator times (asked for with ``per_op``) and how they were obtained.
        host: The machine.
        notes: Sentences worth telling the user.
    """

    protocol: int = PROTOCOL
    runtime: str
    runtime_version: str = ""
    threads: int | None = None
    unit: str = ""
    precision_used: str = ""
    load_ms: float | None = None
    first_ms: float | None = None
    warmup_ms: tuple[float, ...] = ()
    stable: bool | None = None
    samples_ms: tuple[float, ...] = Field(min_length=1)
    throughput_per_s: float | None = None
    peak_rss_bytes: int | None = None
    partitions: int | None = None
    outside: tuple[str, ...] = ()
    residency: dict[str, float] = Field(default_factory=dict)
    ops: tuple[Op, ...] = ()
    ops_note: str = ""
    host: HostInfo = HostInfo()
    notes: tuple[str, ...] = ()
