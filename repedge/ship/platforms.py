"""What a package can be for, and the files it is made of. A new platform is a row and its templates.

Which artifacts run on it, the targets say: `repedge.targets.base.Target.ship`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    """Where a package goes.

    Attributes:
        name: The word after ``--to``; also the folder of its templates.
        title: What comes out, for people.
        language: Whose rules names follow; a key of `repedge.ship.names.RESERVED`.
        model_dir: Where artifacts go, ``{variant}`` being the precision word.
        golden_dir: Where the golden vectors go.
        files: Template -> place in the package, of the files that it has whatever the target and the task;
            those list their own.
        next_step: Printed after shipping.
    """

    name: str
    title: str
    language: str
    model_dir: str
    golden_dir: str
    files: dict[str, str]
    next_step: str


PYTHON = Platform(
    name="python",
    title="Python package",
    language="Python",
    model_dir="{name}/model/{variant}",
    golden_dir="golden/{variant}",
    files={
        "README.md": "README.md",
        "pyproject.toml": "pyproject.toml",
        "requirements.txt": "requirements.txt",
        "init.py": "{name}/__init__.py",
        "main.py": "{name}/__main__.py",
        "image.py": "{name}/image.py",
        "test_golden.py": "test_golden.py",
    },
    next_step="pip install -r {out}/requirements.txt && python {out}/test_golden.py",
)

CPP = Platform(
    name="cpp",
    title="CMake project",
    language="C++",
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
        "sample.cpp": "samples/sample.cpp",
        "golden.cpp": "tests/golden.cpp",
    },
    next_step="see {out}/README.md for the four commands that build and check it",
)

IOS = Platform(
    name="ios",
    title="Swift package",
    language="Swift",
    model_dir="Sources/{name}/Models/{variant}",
    golden_dir="Tests/{name}Tests/Golden/{variant}",
    files={
        "README.md": "README.md",
        "Package.swift": "Package.swift",
        "Bitmap.swift": "Sources/{name}/Bitmap.swift",
        "Preprocess.swift": "Sources/{name}/Preprocess.swift",
        "Sample.swift": "Sources/{name}Sample/{name}SampleView.swift",
        "Tests.swift": "Tests/{name}Tests/{name}Tests.swift",
    },
    next_step="open {out}/Package.swift in Xcode and run the tests on a device",
)

ANDROID = Platform(
    name="android",
    title="Gradle project",
    language="Kotlin",
    model_dir="{lower}/src/main/assets/{lower}/{variant}",
    golden_dir="{lower}/src/androidTest/assets/golden/{variant}",
    files={
        "README.md": "README.md",
        "settings.gradle.kts": "settings.gradle.kts",
        "root.gradle.kts": "build.gradle.kts",
        "gradle.properties": "gradle.properties",
        "library.gradle.kts": "{lower}/build.gradle.kts",
        "consumer-rules.pro": "{lower}/consumer-rules.pro",
        "manifest.xml": "{lower}/src/main/AndroidManifest.xml",
        "Tensors.kt": "{lower}/src/main/kotlin/repedge/{lower}/Tensors.kt",
        "Preprocess.kt": "{lower}/src/main/kotlin/repedge/{lower}/Preprocess.kt",
        "Test.kt": "{lower}/src/androidTest/kotlin/repedge/{lower}/{name}Test.kt",
        "sample.gradle.kts": "sample/build.gradle.kts",
        "sample.manifest.xml": "sample/src/main/AndroidManifest.xml",
        "MainActivity.kt": "sample/src/main/kotlin/repedge/{lower}/sample/MainActivity.kt",
    },
    next_step="open {out} in Android Studio and run the tests on a device",
)

PLATFORMS: dict[str, Platform] = {p.name: p for p in (IOS, ANDROID, CPP, PYTHON)}
