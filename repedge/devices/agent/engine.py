"""What a runtime is to the agent, and which one a request asks for."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time


class AgentError(Exception):
    """A failure in one sentence. ``kind`` is ``user`` (the request can't be met here) or ``runtime``."""

    def __init__(self, message: str, kind: str = "runtime") -> None:
        super().__init__(message)
        self.kind = kind


class Engine:
    """An artifact loaded in a runtime.

    Attributes:
        version: The runtime's version.
        threads: CPU threads it was given.
        unit: Where it runs.
        inputs: (name, numpy dtype, shape) each; -1 for a dynamic axis.
    """

    version = ""
    threads = 1
    unit = "CPU"
    inputs: list = []  # noqa: RUF012 - replaced by each instance

    def feed(self, arrays: list) -> None:
        """Put the inputs where `invoke` finds them; not timed."""
        raise NotImplementedError

    def invoke(self) -> None:
        """One whole inference; this is what is timed."""
        raise NotImplementedError

    def timed(self) -> float:
        """`invoke`, and how long it took in milliseconds."""
        began = time.perf_counter_ns()
        self.invoke()
        return (time.perf_counter_ns() - began) / 1e6

    def outputs(self) -> list:
        """(name, array) of the last run."""
        raise NotImplementedError

    def facts(self) -> dict:
        """Further fields of the profile: partitions, outside, precision_used, residency, notes."""
        return {}

    def operators(self, runs: int) -> tuple:
        """(list of {name, type, ms, where, precision}, how they were obtained), over ``runs`` runs."""
        return [], "this runtime has no per-operator times"

    def saturate(self, runs: int, arrays: list) -> tuple:
        """(latencies in ms, runs per second) with as many requests at once as the runtime likes."""
        raise AgentError("the hint 'throughput' is for OpenVINO", "user")


def open_engine(artifact: str, request: dict) -> Engine:
    """Load an artifact; AgentError names the pip package where the runtime is missing."""
    wanted = request["engine"]
    needs = wanted["needs"]
    if needs and not any(importlib.util.find_spec(n) for n in needs):
        raise AgentError(
            "no runtime for this artifact is installed there: pip install {}".format(wanted["package"]),
            "user",
        )
    if request["runtime"] != "torch" and not os.path.exists(artifact):
        raise AgentError(f"there is no artifact at {artifact}", "user")
    module, _, name = wanted["agent"].partition(":")
    return getattr(importlib.import_module(module), name)(artifact, request)


def default_threads(request: dict) -> int:
    """The threads asked for, else as many as the process may use, at most 4: the same for all runtimes."""
    if request.get("threads"):
        return int(request["threads"])
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, usable)


def refused(what: str, error: Exception, version: str) -> AgentError:
    """The runtime does not take the artifact: damaged, of another kind, or newer than the runtime."""
    text = " ".join(str(error).split())
    newer = any(
        w in text.lower() for w in ("version", "not supported", "unsupported", "didn't find op", "opset")
    )
    text = text if len(text) <= 300 else text[:60] + " ... " + text[-235:]  # C++ names fill the middle
    hint = "; the artifact may be newer than the runtime: upgrade the runtime" if newer else ""
    return AgentError(f"{what} {version} does not load the artifact: {text}{hint}", "user")
