"""Take the 16 bundled photos of blood cells, with what is in them, out of BCCD's val part.

    python examples/make_demo_cells.py --data bccd.zip

Writes photos, byte for byte, and VOC files (names and boxes only) to ``repedge/photos/bundled/cells``: 16
photos spread evenly over the list of the part.
"""

from __future__ import annotations

import argparse
import shutil
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

COUNT = 16
CELLS = Path(__file__).parent.parent / "repedge" / "photos" / "bundled" / "cells"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def cleaned(file: bytes, name: str) -> bytes:
    """A VOC file with nothing but the photo's name and size, and the objects that have an area."""
    told = ET.fromstring(file)
    new = ET.Element("annotation")
    ET.SubElement(new, "filename").text = f"{name}.jpg"
    size = told.find("size")
    assert size is not None
    new.append(size)
    for one in told.iter("object"):
        x0, y0, x1, y1 = (int(one.findtext(f"bndbox/{key}", "0")) for key in CORNERS)
        if x0 < x1 and y0 < y1:
            found = ET.SubElement(new, "object")
            ET.SubElement(found, "name").text = one.findtext("name")
            ET.SubElement(found, "difficult").text = one.findtext("difficult", "0")
            box = ET.SubElement(found, "bndbox")
            for key, value in zip(CORNERS, (x0, y0, x1, y1), strict=True):
                ET.SubElement(box, key).text = str(value)
    ET.indent(new)
    return ET.tostring(new) + b"\n"


def main() -> None:
    """Write the photos and what is in them."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, required=True, help="bccd.zip")
    args = parser.parse_args()
    shutil.rmtree(CELLS, ignore_errors=True)
    CELLS.mkdir(parents=True)
    with zipfile.ZipFile(args.data) as z:
        names = z.read("ImageSets/Main/val.txt").decode().split()
        for i in range(COUNT):
            name = names[i * len(names) // COUNT]
            (CELLS / f"{name}.jpg").write_bytes(z.read(f"JPEGImages/{name}.jpg"))
            (CELLS / f"{name}.xml").write_bytes(cleaned(z.read(f"Annotations/{name}.xml"), name))
        (CELLS / "LICENSE").write_bytes(z.read("LICENSE"))


if __name__ == "__main__":
    main()
