"""What a package can be for, and the files it is made of. A new platform is a row and its templates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    """Where a package goes.

    Attributes:
        name: The word after ``--to``; also the folder of its templates.
        title: What comes out, for people.
        language: Whose rules names follow; a key of `repedge.ship.names.RESERVED`.
        targets: Targets whose artifacts run there, the one to suggest first.
        model_dir: Where artifacts go, ``{variant}`` being the precision word.
        golden_dir: Where the golden vectors go.
        files: Template -> place in the package. A template may be bound to one target: ``name@target``.
        next_step: Printed after shipping.
    """

    name: str
    title: str
    language: str
    targets: tuple[str, ...]
    model_dir: str
    golden_dir: str
    files: dict[str, str]
    next_step: str


PYTHON = Platform(
    name="python",
    title="Python package",
    language="Python",
    targets=("tflite", "openvino", "gpu"),
    model_dir="{name}/model/{variant}",
    golden_dir="golden/{variant}",
    files={
        "README.md": "README.md",
        "pyproject.toml": "pyproject.toml",
        "requirements.txt": "requirements.txt",
        "init.py": "{name}/__init__.py",
        "main.py": "{name}/__main__.py",
        "image.py": "{name}/image.py",
        "runtime_tflite.py@tflite": "{name}/runtime.py",
        "runtime_openvino.py@openvino": "{name}/runtime.py",
        "runtime_gpu.py@gpu": "{name}/runtime.py",
        "test_golden.py": "test_golden.py",
    },
    next_step="pip install -r {out}/requirements.txt && python {out}/test_golden.py",
)

CPP = Platform(
    name="cpp",
    title="CMake project",
    language="C++",
    targets=("openvino", "tflite"),
    model_dir="model/{variant}",
    golden_dir="golden/{variant}",
    files={
        "README.md": "README.md",
        "CMakeLists.txt": "CMakeLists.txt",
        "model.hpp": "include/{name}.hpp",
        "model.cpp": "src/model.cpp",
        "image.cpp": "src/image.cpp",
        "decode.cpp": "src/decode.cpp",
        "runtime.hpp": "src/runtime.hpp",
        "runtime_openvino.cpp@openvino": "src/runtime.cpp",
        "runtime_litert.cpp@tflite": "src/runtime.cpp",
        "litert_c.h@tflite": "src/litert_c.h",
        "sample.cpp": "samples/sample.cpp",
        "golden.cpp": "tests/golden.cpp",
    },
    next_step="see {out}/README.md for the four commands that build and check it",
)

PLATFORMS: dict[str, Platform] = {p.name: p for p in (CPP, PYTHON)}
