"""Per-operator times of a .tflite file: every operator is cut out as a file of its own and run alone."""

from __future__ import annotations

import importlib
import time

from repedge.devices.agent.engine import AgentError


def alone(path: str, package: str, threads: int, count: int, runs: int) -> list:
    """Median milliseconds of each operator of the first subgraph, run alone; None where it can't be.

    The schema's Python classes come with ai-edge-litert; tflite-runtime has none.
    """
    try:
        schema = importlib.import_module(package + ".schema_py_generated")
        import flatbuffers
    except ImportError as e:
        raise AgentError(f"{package} has no schema to cut the file with") from e
    interpreter = importlib.import_module(package + ".interpreter").Interpreter
    with open(path, "rb") as f:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(f.read(), 0))
    operators = model.subgraphs[0].operators
    if len(operators) != count:
        raise AgentError("the file's operators are not those that run")
    times: list = []
    for operator in operators:
        try:
            content = _cut(model, operator, schema, flatbuffers)
            times.append(_time(interpreter(model_content=content, num_threads=threads), runs))
        except (RuntimeError, ValueError):
            times.append(None)
    return times


def _cut(model, operator, schema, flatbuffers) -> bytes:  # type: ignore[no-untyped-def]
    """A file with one operator: what it reads that is no constant becomes an input."""
    graph = model.subgraphs[0]
    buffers, tensors, numbers = [schema.BufferT()], [], {-1: -1}

    def take(i: int) -> int:
        if i in numbers:
            return numbers[i]
        old = graph.tensors[i]
        new = schema.TensorT()
        new.__dict__.update(old.__dict__)
        new.buffer = 0
        data = model.buffers[old.buffer].data
        if data is not None and len(data):
            buffers.append(model.buffers[old.buffer])
            new.buffer = len(buffers) - 1
        tensors.append(new)
        numbers[i] = len(tensors) - 1
        return numbers[i]

    part = schema.OperatorT()
    part.__dict__.update(operator.__dict__)
    part.inputs = [take(int(i)) for i in operator.inputs]
    part.outputs = [take(int(i)) for i in operator.outputs]
    part.opcodeIndex = 0
    cut = schema.SubGraphT()
    cut.name, cut.tensors, cut.operators = b"main", tensors, [part]
    cut.inputs = [i for i in dict.fromkeys(part.inputs) if i >= 0 and not tensors[i].buffer]
    cut.outputs = list(part.outputs)
    alone = schema.ModelT()
    alone.version, alone.description = 3, b"one operator"
    alone.operatorCodes = [model.operatorCodes[operator.opcodeIndex]]
    alone.subgraphs, alone.buffers = [cut], buffers
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(alone.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _time(interpreter, runs: int) -> float:  # type: ignore[no-untyped-def]
    interpreter.allocate_tensors()
    for _ in range(2):
        interpreter.invoke()
    times = []
    for _ in range(runs):
        began = time.perf_counter_ns()
        interpreter.invoke()
        times.append(time.perf_counter_ns() - began)
    return sorted(times)[len(times) // 2] / 1e6
