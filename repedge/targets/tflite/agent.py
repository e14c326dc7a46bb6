"""TFLite: ai-edge-litert, or tflite-runtime on old boards. XNNPACK is applied by the runtime itself."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata

from repedge.devices.agent.engine import AgentError, Engine, default_threads, refused


class TFLite(Engine):
    """See Engine."""

    def __init__(self, artifact: str, request: dict) -> None:
        package = "ai_edge_litert" if importlib.util.find_spec("ai_edge_litert") else "tflite_runtime"
        self._package, self._path = package, artifact
        self.version = _version(package)
        module = importlib.import_module(package + ".interpreter")
        self.threads = default_threads(request)
        try:
            self._interpreter = module.Interpreter(model_path=artifact, num_threads=self.threads)
            for d in self._interpreter.get_input_details():
                signature = [int(x) for x in d.get("shape_signature", d["shape"])]
                if any(x < 0 for x in signature):
                    shape = [x if x > 0 else int(y) for x, y in zip(signature, d["shape"])]  # noqa: B905
                    self._interpreter.resize_tensor_input(d["index"], shape)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError, OSError) as e:
            raise refused(package.replace("_", "-"), e, self.version) from e
        self._details = self._interpreter.get_input_details()
        self.inputs = [(d["name"], d["dtype"], tuple(int(x) for x in d["shape"])) for d in self._details]

    def feed(self, arrays: list) -> None:
        """See Engine.feed."""
        for d, array in zip(self._details, arrays):  # noqa: B905
            self._interpreter.set_tensor(d["index"], array)

    def invoke(self) -> None:
        """See Engine.invoke."""
        self._interpreter.invoke()

    def outputs(self) -> list:
        """See Engine.outputs."""
        i = self._interpreter
        return [(d["name"], i.get_tensor(d["index"])) for d in i.get_output_details()]

    def _placed(self) -> tuple:
        """(original operators, indices of those inside the delegate, number of parts).

        The interpreter lists the original operators and, after them, one DELEGATE operator per part,
        without saying what is inside. An operator is inside a part if the part's outputs can be
        computed backwards to the part's inputs through it.
        """
        ops = self._interpreter._get_ops_details()  # the runtime has no public way to ask
        parts = [op for op in ops if op["op_name"] == "DELEGATE"]
        plain = [op for op in ops if op["op_name"] != "DELEGATE"]
        producer = {int(t): op for op in plain for t in op["outputs"]}
        inside: set = set()
        for part in parts:
            sources = {int(t) for t in part["inputs"]}
            pending = [int(t) for t in part["outputs"]]
            while pending:
                op = producer.get(pending.pop())
                if op is not None and op["index"] not in inside:
                    inside.add(op["index"])
                    pending += [int(t) for t in op["inputs"] if int(t) not in sources]
        return plain, inside, len(parts)

    def _names(self) -> dict:
        return {int(t["index"]): t["name"] for t in self._interpreter.get_tensor_details()}

    def facts(self) -> dict:
        """See Engine.facts."""
        plain, inside, count = self._placed()
        names = self._names()
        outside = [op for op in plain if op["index"] not in inside]
        labels = ["{} {}".format(op["op_name"], names.get(int(op["outputs"][0]), "")) for op in outside]
        notes = []
        if count == 0:
            notes.append(f"no delegate was applied: the reference kernels of {self._package} ran")
        return {
            "partitions": count,
            "outside": [s.strip() for s in labels],
            "residency": {"xnnpack": len(inside) / max(1, len(plain))},
            "notes": notes,
        }

    def operators(self, runs: int) -> tuple:
        """See Engine.operators."""
        plain, inside, _ = self._placed()
        names = self._names()
        details = self._interpreter.get_tensor_details()
        shapes = {int(t["index"]): [int(d) for d in t["shape"]] for t in details}
        rows = [
            {
                "name": names.get(int(op["outputs"][0]), str(op["index"])),
                "type": op["op_name"],
                "ms": None,
                "where": "XNNPACK" if op["index"] in inside else "CPU",
                "shape": shapes.get(int(op["outputs"][0]), []),
            }
            for op in plain
        ]
        from repedge.targets.tflite import agent_ops

        try:
            times = agent_ops.alone(self._path, self._package, self.threads, len(rows), runs)
        except AgentError as e:
            return rows, f"no times: {e}"
        for row, ms in zip(rows, times):  # noqa: B905
            row["ms"] = ms
        return rows, "each operator measured alone: an estimate, the runtime's Python package has no profiler"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
