"""Artifacts that are small: float16 constants where they pay, and an .xml without what nobody reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from repedge.targets.openvino.importing import import_openvino

XML_OF_A_CONVERT = 400
"""Bytes of the .xml, about, that a float16 constant takes more than a float32 one."""


DECOMPRESSION = b'<rt_info><attribute name="decompression" version="0"/></rt_info>'


FLOAT16 = "float16/"  # begins the names of constants that a Convert follows


def _compress(lowered: Any) -> None:
    """float32 constants -> float16 and a Convert, as ``save_model(compress_to_fp16=True)`` makes them.

    Except the small ones: what such a pair needs in the .xml beyond a plain constant is about 400 bytes,
    more than a bias of 200 channels saves, which so stays exact.
    """
    openvino = import_openvino()
    for count, node in enumerate(lowered.get_ops()):
        wide = node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f32
        if not wide or 2 * node.data.size <= XML_OF_A_CONVERT:
            continue
        half = openvino.opset13.constant(node.data.astype(np.float16))
        half.set_friendly_name(f"{FLOAT16}{count}")
        convert = openvino.opset13.convert(half, np.float32)
        convert.set_friendly_name(node.get_friendly_name())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(convert.output(0))


def _slim(path: Path) -> None:
    """Take out of the .xml what OpenVINO doesn't read: half of a file that is 5 % of a small network.

    That is white space, defaults, and what is written twice: an input port has the sizes and precision of
    the output that it reads, a Const the sizes of its ``shape``, many other layers those of their first
    input. Every other output keeps its sizes. In attribute values, ``<``, ``>`` and ``"`` are escaped, so
    that only tags match.
    """
    xml = re.sub(rb">\s+<", b"><", path.read_bytes())
    xml = re.sub(rb' (dilations="1, 1"|auto_pad="explicit"|auto_broadcast="numpy")', b"", xml)
    xml = re.sub(rb" />", b"/>", xml)
    xml = re.sub(rb'(?<= )(?:shape|strides|pads_begin|pads_end)="[\d, ]*"', _without_spaces, xml)
    xml = re.sub(rb'type="(?:Group)?Convolution" version="opset1"><data[^>]*>', _without_defaults, xml)
    xml = re.sub(rb"<layer .*?</layer>", _without_repeats, xml.replace(b"<data/>", b""))
    # What tells plugins that compute in float16 to take it as it is has no form in the Python API.
    widening = rb'(<layer [^>]*name="%s\d+".*?</layer><layer [^>]*><data [^>]*>)' % FLOAT16.encode()
    path.write_bytes(re.sub(widening, rb"\1" + DECOMPRESSION, xml))


def _without_repeats(found: re.Match[bytes]) -> bytes:
    layer = found[0]
    sizes = [
        re.findall(rb"<dim>[^<]*</dim>", port) for port in re.findall(rb"<port .*?(?:/>|</port>)", layer)
    ]
    if b'type="Const"' in layer or (b"<input>" in layer and len(sizes) > 1 and sizes[0] == sizes[-1]):
        layer = _without_sizes(layer)
    return re.sub(rb"<input>.*?</input>", _without_type, layer)


def _without_type(found: re.Match[bytes]) -> bytes:
    return re.sub(rb' precision="[^"]*"', b"", _without_sizes(found[0]))


def _without_sizes(text: bytes) -> bytes:
    return re.sub(rb"(<port [^>]*)></port>", rb"\1/>", re.sub(rb"<dim>[^<]*</dim>", b"", text))


def _without_defaults(found: re.Match[bytes]) -> bytes:
    return re.sub(rb' (?:strides="1,1"|pads_begin="0,0"|pads_end="0,0")', b"", found[0])


def _without_spaces(found: re.Match[bytes]) -> bytes:
    return found[0].replace(b", ", b",")
