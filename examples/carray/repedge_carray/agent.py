"""What measures the C file: it is compiled where it runs. Needs Python 3.9, numpy and a C compiler."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import tempfile

import numpy as np

from repedge.devices.agent.engine import AgentError, Engine


def load(path: str) -> tuple:
    """Compile a file: (function, [(name, dtype, shape) of the input], [the same of each output]).

    The signature stands in the file's first line.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise AgentError("there is no C compiler (cc) to build the artifact with", "user")
    with open(path, encoding="utf-8") as f:
        head = f.readline()
    try:
        signature = json.loads(head[head.index("{") : head.rindex("}") + 1])
    except ValueError as e:
        raise AgentError(f"{path} is not a network of this target: {e}", "user") from e
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "network.so")
        command = [compiler, "-O2", "-std=c99", "-shared", "-fPIC", path, "-o", library, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise AgentError(f"{compiler} does not build {path}: {done.stderr[-300:]}", "user")
        function = getattr(ctypes.CDLL(library), signature["function"])  # stays loaded without its file
    sides = [
        [(t["name"], np.dtype(t["dtype"]), tuple(t["shape"])) for t in signature[s]] for s in ("in", "out")
    ]
    return function, sides[0], sides[1]


class Loop(Engine):
    """See Engine."""

    def __init__(self, artifact: str, request: dict) -> None:
        self._function, self.inputs, outputs = load(artifact)
        self._results = [(name, np.empty(shape, dtype)) for name, dtype, shape in outputs]
        self.version = "1"

    def feed(self, arrays: list) -> None:
        """See Engine.feed."""
        self._arrays = [np.ascontiguousarray(a) for a in arrays]  # what the pointers point into
        everything = [*self._arrays, *(y for _, y in self._results)]
        self._pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in everything]

    def invoke(self) -> None:
        """See Engine.invoke."""
        self._function(*self._pointers)

    def outputs(self) -> list:
        """See Engine.outputs."""
        return self._results
