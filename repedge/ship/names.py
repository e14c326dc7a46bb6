"""Names and texts of the user's in other languages: identifiers checked, literals escaped.

Everything that comes from a user (names of the model and its outputs, licence text, what a task brings)
passes through here before it stands in generated source.
"""

from __future__ import annotations

import json
import keyword
import re
import sys
from collections.abc import Callable, Collection, Sequence

from repedge import targets
from repedge.errors import UserError

MAX_LENGTH = 64

SWIFT = """
    actor as associatedtype async await break case catch class continue convenience default defer deinit do
    dynamic else enum extension fallthrough false fileprivate final for func get guard if import in indirect
    infix init inout internal is lazy let mutating nil nonisolated open operator optional override postfix
    precedencegroup prefix private protocol public repeat required rethrows return self set some static
    struct subscript super switch throw throws true try typealias unowned var weak where while any Any Self
    Type Protocol Swift Foundation CoreML CoreGraphics CoreVideo CoreImage SwiftUI Combine XCTest Package
    Bundle String Int Float Double Bool Array Data URL Error Result Task
"""
KOTLIN = """
    as break class continue do else false for fun if in interface is null object package return super this
    throw true try typealias typeof val var when while by catch constructor delegate dynamic field file
    finally get import init param property receiver set setparam where abstract enum inner internal open
    operator out override private protected public sealed suspend Any Array Bitmap Boolean Byte ByteArray
    ByteBuffer Class Context Double Float FloatArray Int Interpreter List Long Map Nothing Object Pair
    Result Set String Unit assert boolean byte char const default double extends final float goto implements
    instanceof int long native new short static strictfp switch synchronized throws transient void volatile
"""
CPP = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t
    class compl concept const consteval constexpr constinit const_cast continue co_await co_return co_yield
    decltype default delete do double dynamic_cast else enum explicit export extern false float for friend
    goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
    protected public register reinterpret_cast requires return short signed sizeof static static_assert
    static_cast struct switch template this thread_local throw true try typedef typeid typename union
    unsigned using virtual void volatile wchar_t while xor xor_eq final override import module std ov main
    linux unix classify golden image test model all clean install help
"""
PYTHON = {*keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names, "numpy", "PIL", "repedge", "tests"}

RESERVED: dict[str, set[str]] = {
    "Swift": set(SWIFT.split()),
    "Kotlin": set(KOTLIN.split()),
    "C++": set(CPP.split()),
    "Python": PYTHON,
}
"""Words of each language; `reserved` knows of more."""


def reserved(language: str) -> set[str]:
    """`RESERVED`, and for Python the modules that run artifacts, of whatever target."""
    if language != "Python":
        return RESERVED[language]
    engines = [t.engine for t in targets.installed() if t.engine is not None]
    return RESERVED[language] | {module.partition(".")[0] for e in engines for module in e.needs}


def words(text: str) -> list[str]:
    """The runs of ASCII letters and digits in ``text``, also split where camel case does."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return re.findall(r"[A-Za-z0-9]+", spaced)


def camel(text: str) -> str:
    """A type name out of any text.

    >>> camel("repvit_m0.9"), camel("3 dogs"), camel("")
    ('RepvitM09', 'Model3Dogs', 'Model')
    """
    joined = "".join(w[0].upper() + w[1:] for w in words(text)) or "Model"
    return (joined if joined[0].isalpha() else "Model" + joined)[:MAX_LENGTH]


def snake(text: str) -> str:
    """A module name out of any text.

    >>> snake("RepVit-M0.9"), snake("3 dogs"), snake("")
    ('rep_vit_m0_9', 'model_3_dogs', 'model')
    """
    joined = "_".join(w.lower() for w in words(text)) or "model"
    return (joined if joined[0].isalpha() else "model_" + joined)[:MAX_LENGTH].rstrip("_")


def refusal(name: str, language: str, taken: Collection[str] = ()) -> str | None:
    """Why ``name`` can't name a type or module of ``language``; None if it can.

    ``taken`` are names of other files in the package.

    ASCII only, although the languages allow more: the name is also that of files, of a Gradle
    namespace and of a CMake target.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        return "it must be ASCII letters, digits and _, with a letter first"
    if len(name) > MAX_LENGTH:
        return f"it is longer than {MAX_LENGTH} characters"
    kept = reserved(language)
    if name in kept or (language in ("Kotlin", "C++") and name.lower() in kept):
        return "it is reserved"
    if name.lower() in {word.lower() for word in taken}:
        return "another file of the package has it"
    if language == "C++" and "__" in name:
        return "C++ keeps names with __ for itself"
    return None


def identifier(given: str | None, default: str, language: str, taken: Collection[str] = ()) -> str:
    """The user's name, checked as `refusal` does; or one made of the bundle's.

    Raises:
        UserError: ``given`` does not fit the language; a name that does is suggested.
    """
    form = camel if language in ("Swift", "Kotlin") else snake
    if given is None:
        return _free(form(default), language, taken)
    why = refusal(given, language, taken)
    if why is None:
        return given
    suggestion = _free(form(given), language, taken)
    raise UserError(f"--name {given!r} can't be used in {language}: {why}; try --name {suggestion}")


def _free(name: str, language: str, taken: Collection[str]) -> str:
    if refusal(name, language, taken) is None:
        return name
    return name[: MAX_LENGTH - 6] + ("Model" if language in ("Swift", "Kotlin") else "_model")


def fields(texts: Sequence[str], language: str) -> list[str]:
    """What the fields of a type are called that are named by any texts; no two are called the same.

    >>> fields(["scale", "pos-embed", "2", "犬", "for"], "Swift")
    ['scale', 'posEmbed', 'tensor2', 'tensor', 'for2']
    >>> fields(["a.b", "a b"], "C++")
    ['a_b', 'a_b2']
    """
    found: list[str] = []
    for text in texts:
        stem = snake(text if words(text)[:1] and words(text)[0][0].isalpha() else f"tensor {text}")
        if language in ("Swift", "Kotlin"):
            first, *others = stem.split("_")
            stem = first + "".join(w.capitalize() for w in others)
        stem = stem[: MAX_LENGTH - 4]
        endings = ("", *map(str, range(2, len(texts) + 3)))
        found.append(next(stem + e for e in endings if refusal(stem + e, language, found) is None))
    return found


def swift(text: str) -> str:
    """A Swift string literal: only ASCII, so that nothing depends on how the file is read."""
    return '"' + "".join(_swift(c) for c in text) + '"'


def _swift(c: str) -> str:
    return "\\" + c if c in '"\\' else c if " " <= c <= "~" else f"\\u{{{ord(c):x}}}"


def kotlin(text: str) -> str:
    """A Kotlin string literal: ``$`` would begin a template; beyond ASCII as UTF-16 escapes."""
    return '"' + "".join(_kotlin(c) for c in text) + '"'


def _kotlin(c: str) -> str:
    if c in '"\\$':
        return "\\" + c
    if " " <= c <= "~":
        return c
    units = c.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def cpp(text: str) -> str:
    """A C++ string literal of UTF-8 bytes. Octal escapes end after three digits, hex ones don't."""
    return '"' + "".join(_cpp(b) for b in text.encode("utf-8", "surrogatepass")) + '"'


def _cpp(byte: int) -> str:
    c = chr(byte)
    if c in '"\\?':  # ?: no trigraphs
        return "\\" + c
    return c if " " <= c <= "~" else f"\\{byte:03o}"


def python(text: str) -> str:
    """A Python string literal, only ASCII."""
    return ascii(text)


def markdown(text: str) -> str:
    """One line of text inside Markdown: nothing in it is markup."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>#|$~&!])", r"\\\1", line)


def comment(text: str) -> str:
    """One line of text inside a comment of any of the languages: it can't end it."""
    line = " ".join(text.split()).encode("ascii", "replace").decode()
    for part, harmless in (("\\", "/"), ("*/", "* /"), ("/*", "/ *"), ('"', "'")):
        line = line.replace(part, harmless)
    return line


def toml(text: str) -> str:
    """A TOML basic string: JSON's escapes, without its surrogate pairs."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


LITERALS: dict[str, Callable[[str], str]] = {
    "swift": swift,
    "kotlin": kotlin,
    "cpp": cpp,
    "python": python,
    "markdown": markdown,
    "comment": comment,
    "toml": toml,
}
"""Filters of the templates."""
