"""Cut the 64 bundled verification photos out of CIFAR-10's test split.

    python examples/make_demo_images.py --data cifar10.zip

Writes ``demo_images.png`` (an 8x8 sheet of 32x32 photos) and ``demo_images.json`` (name and class of
each) beside the bundled weights: the first six or seven test photos of every class.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path

from PIL import Image

COUNT, COLUMNS = 64, 8
WEIGHTS = Path(__file__).parent.parent / "repedge" / "models" / "weights"


def main() -> None:
    """Write the sheet."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, required=True, help="cifar10.zip")
    args = parser.parse_args()
    sheet, entries = Image.new("RGB", (COLUMNS * 32, COUNT // COLUMNS * 32)), []
    with zipfile.ZipFile(args.data) as z:
        names = sorted(n for n in z.namelist() if n.startswith("test/") and n.endswith(".jpg"))
        classes = sorted({n.split("/")[1] for n in names})
        rows = [[n for n in names if n.split("/")[1] == c] for c in classes]
        for i in range(COUNT):
            label = i % len(classes)
            name = rows[label][i // len(classes)]
            photo = Image.open(io.BytesIO(z.read(name))).convert("RGB")
            sheet.paste(photo, (i % COLUMNS * 32, i // COLUMNS * 32))
            entries.append({"name": name.removeprefix("test/"), "label": label})
    sheet.save(WEIGHTS / "demo_images.png", optimize=True)
    (WEIGHTS / "demo_images.json").write_text(json.dumps(entries, indent=0) + "\n")


if __name__ == "__main__":
    main()
