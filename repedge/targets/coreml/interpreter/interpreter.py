"""Reads a saved Core ML program (.mlpackage) as it lies on disk, for running without Core ML.

This is what verifies the Core ML target off the Mac. Only the protobuf of the specification and the
weight file are read, nothing of what built them: the op functions (``ops``) are written from the
definitions of the MIL ops and share nothing with the lowering that emits them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import sys
import types
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Union, get_args, get_origin, get_type_hints

from repedge.errors import UnsupportedModel, UserError
from repedge.targets.coreml.interpreter.program import Feature, MilProgram, Result, Step
from repedge.targets.coreml.interpreter.weights import CONSTEXPR, WeightFiles, read_value, value_type

__all__ = ["Feature", "MilProgram", "load"]


def load(path: Path) -> MilProgram:
    """Read a saved program.

    Args:
        path: An ``.mlpackage`` folder, or an ``.mlmodel`` file without a weight file.

    Raises:
        UserError: It is missing, damaged, or no ML Program.
        UnsupportedModel: It has ops that the interpreter does not know; all are named.
    """
    path = Path(path)
    spec_path = _spec_path(path)
    spec = _read_spec(path, spec_path)
    main = spec.description.defaultFunctionName or "main"
    function = spec.mlProgram.functions.get(main)
    if function is None or function.opset not in function.block_specializations:
        raise UserError(f"{path.name} has no function {main!r}; compile the model again")
    block = function.block_specializations[function.opset]
    _check_known(path, block)
    files = WeightFiles(spec_path.parent, path.name)
    parameters = {p.name: Result(p.name, *value_type(p.type)) for p in function.inputs}
    try:
        constants, steps = _read_block(block, files, set(parameters))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
        raise UserError(f"{path.name} is damaged: {type(e).__name__}: {e}") from e
    description = _description(spec, main)
    inputs = tuple(_feature(path, f, parameters.get(f.name), True) for f in description.input)
    made = {r.name: r for step in steps for r in step.results} | parameters
    outputs = tuple(_feature(path, f, made.get(f.name), False) for f in description.output)
    return MilProgram(
        inputs, outputs, function.opset, _metadata(spec.description), parameters, constants, steps
    )


def _spec_path(path: Path) -> Path:
    """The protobuf file of a package, found through its manifest."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"there is no Core ML package at {path}")
    try:
        manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        inside = PurePosixPath(entry)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path.name} is no Core ML package: its Manifest.json is missing or damaged") from e
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"the manifest of {path.name} points outside the package, to {entry!r}")
    return path / "Data" / inside


@functools.cache
def _schema() -> types.ModuleType:
    """coremltools' protobuf module ``Model_pb2``, without coremltools around it.

    Importing coremltools takes seconds and logs what this host lacks; its generated ``proto`` package
    stands alone (relative imports, protobuf's runtime), so it is imported under a name of its own. Both
    imports share protobuf's descriptor pool and give the same classes.

    Raises:
        UserError: coremltools is not installed.
    """
    found = importlib.util.find_spec("coremltools")
    if found is None or not found.submodule_search_locations:
        raise UserError("reading a Core ML package needs coremltools, which is not installed")
    folder = Path(found.submodule_search_locations[0]) / "proto"
    name = "_repedge_coreml_proto"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None:
        raise UserError("the installed coremltools has no protobuf definitions; install it again")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{name}.Model_pb2")


def _read_spec(path: Path, spec_path: Path) -> Any:
    from google.protobuf.message import DecodeError

    spec = _schema().Model()
    try:
        spec.ParseFromString(spec_path.read_bytes())
    except OSError as e:
        raise UserError(f"{path.name} is incomplete: its specification {spec_path.name} is missing") from e
    except DecodeError as e:
        raise UserError(f"{path.name} is damaged: {spec_path.name} is no Core ML specification") from e
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise UserError(
            f"{path.name} holds a Core ML model of type {kind or 'unknown'}, not an ML Program; only ML "
            "Programs (iOS 15 and later) can be run here"
        )
    return spec


def _check_known(path: Path, block: Any) -> None:
    from repedge.targets.coreml.interpreter.ops import OPS

    known = {"const", *CONSTEXPR, *OPS}
    unknown = Counter(op.type for op in block.operations if op.type not in known)
    if unknown:
        named = ", ".join(f"{op} ({n}x)" for op, n in sorted(unknown.items()))
        raise UnsupportedModel(f"{path.name} has MIL ops that the interpreter does not know: {named}")


def _read_block(block: Any, files: WeightFiles, known: set[str]) -> tuple[dict[str, Any], tuple[Step, ...]]:
    """Constants by name, and the steps in order.

    Raises:
        UserError: An op reads a value that nothing before it made, or a constant is damaged.
    """
    constants: dict[str, Any] = {}
    steps: list[Step] = []
    for op in block.operations:
        arguments = _arguments(op, files, constants)
        if op.type == "const":
            constants[op.outputs[0].name] = read_value(op.attributes["val"], files)
            continue
        if op.type in CONSTEXPR:
            plain = {p: constants[v[0]] for p, v in arguments.items()}
            constants[op.outputs[0].name] = CONSTEXPR[op.type](**plain)
            continue
        missing = [n for names in arguments.values() for n in names if n not in known and n not in constants]
        if missing:
            raise UserError(f"the program is damaged: nothing makes {missing[0]!r}, which {op.type} reads")
        steps.append(_step(op, arguments, constants))
        known |= {o.name for o in op.outputs}
    undefined = [n for n in block.outputs if n not in known and n not in constants]
    if undefined:
        raise UserError(f"the program is damaged: nothing makes its output {undefined[0]!r}")
    _mark_dead(steps, set(block.outputs))
    return constants, tuple(steps)


def _arguments(op: Any, files: WeightFiles, constants: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Parameter -> names of values; values written in place become constants with made-up names."""
    out: dict[str, tuple[str, ...]] = {}
    if op.type == "const":
        return out
    for parameter, argument in op.inputs.items():
        names = []
        for i, binding in enumerate(argument.arguments):
            if binding.WhichOneof("binding") == "value":
                name = f"{op.outputs[0].name}/{parameter}/{i}"
                constants[name] = read_value(binding.value, files)
            else:
                name = binding.name
            names.append(name)
        out[parameter] = tuple(names)
    for parameter, value in op.attributes.items():  # iOS 16 keeps the parts of compressed weights there
        if parameter != "name":
            constants[f"{op.outputs[0].name}/{parameter}"] = read_value(value, files)
            out[parameter] = (f"{op.outputs[0].name}/{parameter}",)
    return out


def _step(op: Any, arguments: Mapping[str, tuple[str, ...]], constants: Mapping[str, Any]) -> Step:
    from repedge.targets.coreml.interpreter.ops import EXACT, OPS

    function = OPS[op.type]
    wanted = _converters(function)
    name = op.outputs[0].name if op.outputs else op.type
    strange = sorted(set(arguments) - set(wanted))
    if strange:
        raise UnsupportedModel(f"the MIL op {op.type} {name!r} has parameters not known here: {strange}")
    fixed: dict[str, Any] = {}
    values: dict[str, tuple[tuple[str, ...], Callable[[list[Any]], Any]]] = {}
    for parameter, names in arguments.items():
        convert, is_tensor = wanted[parameter]
        if not is_tensor and all(n in constants for n in names):
            fixed[parameter] = convert([constants[n] for n in names])
        else:
            values[parameter] = (names, convert)
    results = tuple(Result(o.name, *value_type(o.type)) for o in op.outputs)
    return Step(op.type, name, function, op.type not in EXACT, results, fixed, values)


def _mark_dead(steps: list[Step], outputs: set[str]) -> None:
    """Note at each step which values it is the last to need, so that a run can drop them."""
    last: dict[str, int] = {}
    for i, step in enumerate(steps):
        for names, _ in step.values.values():
            last.update((n, i) for n in names if n in last)
        last.update((r.name, i) for r in step.results)
    for name, i in last.items():
        if name not in outputs:
            steps[i].dead.append(name)


@functools.cache
def _converters(function: Callable[..., Any]) -> dict[str, tuple[Callable[[list[Any]], Any], bool]]:
    """Parameter -> (what turns its list of values into the argument, whether it takes tensors)."""
    from torch import Tensor

    table: dict[Any, tuple[Callable[[list[Any]], Any], bool]] = {
        Tensor: (lambda v: v[0], True),
        list[Tensor]: (lambda v: v, True),
        int: (lambda v: int(v[0]), False),
        float: (lambda v: float(v[0]), False),
        bool: (lambda v: bool(v[0]), False),
        str: (lambda v: v[0], False),
        list[int]: (lambda v: [int(i) for i in v[0].reshape(-1).tolist()], False),
        list[bool]: (lambda v: [bool(i) for i in v[0].reshape(-1).tolist()], False),
        list[Any]: (lambda v: list(v[0]), False),
    }
    hints = get_type_hints(function)
    return {p: table[_without_none(hints[p])] for p in inspect.signature(function).parameters}


def _without_none(hint: Any) -> Any:
    """X | None -> X."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    return next(a for a in get_args(hint) if a is not types.NoneType)


# --- The description. ---


def _description(spec: Any, main: str) -> Any:
    """The signature: of the model, or of the main function where a package holds several."""
    for function in spec.description.functions:
        if function.name == main:
            return function
    return spec.description


_ARRAY_TYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}
_COLORS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}


def _feature(path: Path, feature: Any, declared: Result | None, is_input: bool) -> Feature:
    kind = feature.type.WhichOneof("Type")
    if kind == "multiArrayType" and declared is not None:
        dtype = _ARRAY_TYPES.get(feature.type.multiArrayType.dataType, "")
        return Feature(feature.name, "multiarray", dtype, declared.shape)
    if kind == "imageType" and declared is not None and is_input:
        image = feature.type.imageType
        size = (-1, -1) if image.WhichOneof("SizeFlexibility") else (image.height, image.width)
        color = _COLORS.get(image.colorSpace, "")
        if color in ("RGB", "BGR"):
            return Feature(feature.name, "image", "uint8", (*size, 3), color)
        if color:
            dtype = "float16" if color.endswith("FLOAT16") else "uint8"
            return Feature(feature.name, "image", dtype, size, color)
    if kind in ("stringType", "int64Type") and not is_input:
        return Feature(feature.name, "string")
    if kind == "dictionaryType" and not is_input:
        return Feature(feature.name, "dictionary")
    way = "input" if is_input else "output"
    raise UnsupportedModel(f"{path.name} has the {way} {feature.name!r} of type {kind}, not known here")


def _metadata(description: Any) -> dict[str, str]:
    meta = description.metadata
    fixed = ("shortDescription", "versionString", "author", "license")
    return {k: getattr(meta, k) for k in fixed if getattr(meta, k)} | dict(meta.userDefined)
