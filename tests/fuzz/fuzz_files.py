"""Mutations of weights, images, archives and bundles."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_bytes import NUMBERS, TEXTS, mutate_bytes, mutate_json

from repedge.bundle.manifest import digest_of
from repedge.hashing import sha256


def mutate_weights(file: Path, out: Path, dice: random.Random) -> None:
    import torch

    if file.suffix == ".safetensors" or dice.random() < 0.5:
        data = file.read_bytes()
        if file.suffix == ".safetensors" and dice.random() < 0.6:
            size = int.from_bytes(data[:8], "little")
            head = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), dice)).encode()
            out.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
        else:
            out.write_bytes(mutate_bytes(data, dice))
        return
    state = torch.load(file, weights_only=True)
    torch.save(_odd_state(state, dice), out)


def _odd_state(state: Any, dice: random.Random) -> Any:
    import torch

    keys = list(state)
    key = dice.choice(keys)
    odd: list[Any] = [
        torch.zeros(1).expand(dice.choice((10, 10**6, 10**9)), dice.choice((1, 10**3))),
        torch.sparse_coo_tensor(torch.tensor([[0, 5]]), torch.ones(2), (dice.choice((6, 10**12)),)),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        torch.ones(3, dtype=dice.choice((torch.complex64, torch.bool, torch.float8_e4m3fn, torch.bfloat16))),
        torch.full((3,), dice.choice((float("nan"), float("inf")))),
        torch.ones([1] * dice.choice((30, 64))),
        torch.empty(0, 5), torch.ones(3, device="meta"), {}, [], None, "text", 5, {"a": {"b": {}}},
    ]  # fmt: skip
    kind = dice.randrange(5)
    if kind == 0:
        return {**state, key: dice.choice(odd)}
    if kind == 1:
        return {k: v for k, v in state.items() if k != key}
    if kind == 2:
        return {**state, dice.choice(((1, 2), 5, None, "n" * 10**6, "\ud800", "é", "")): state[key]}
    if kind == 3:
        return dice.choice(
            ({"state_dict": state}, [state], {"a": {"b": state}}, {(1,): state}, {5: state}, key)
        )
    return {f"{dice.choice(('module.', '_orig_mod.', 'x' * 1000))}{k}": v for k, v in state.items()}


def mutate_image(file: Path, out: Path, dice: random.Random) -> None:
    data = file.read_bytes()
    if file.suffix == ".png" and dice.random() < 0.3:
        sides = (0, 1, 100, 13000, 60000, 2**31 - 1)
        head = struct.pack(">II", dice.choice(sides), dice.choice(sides)) + data[24:29]
        crc = struct.pack(">I", zlib.crc32(b"IHDR" + head))
        data = data[:16] + head + crc + data[33:]
    out.write_bytes(mutate_bytes(data, dice) if dice.random() < 0.9 else data)


def mutate_archive(file: Path, out: Path, dice: random.Random) -> None:
    if dice.random() < 0.5:
        out.write_bytes(mutate_bytes(file.read_bytes(), dice))
        return
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = dice.choice(list(members))
    kind = dice.randrange(5)
    if kind == 0:
        members[name] = mutate_bytes(members[name], dice)
    elif kind == 1:
        odd = dice.choice([t for t in TEXTS if t and "\ud800" not in t and len(t) < 65000])
        members[odd + Path(name).suffix] = members[name]
    elif kind == 2:
        members[name] = bytes(dice.choice((10**6, 10**8)))
    elif kind == 3:
        members = {n: d for n, d in members.items() if n != name}
    else:
        members["x.npy" if file.suffix == ".npz" else "labels.json"] = _odd_member(file, dice)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for n, d in members.items():
            archive.writestr(n, d)


def _odd_member(file: Path, dice: random.Random) -> bytes:
    if file.suffix != ".npz":
        return json.dumps(mutate_json({"0/0.png": 1, "1.png": 2}, dice)).encode()
    shape = tuple(dice.choice((0, 1, 3, 8, -1, 10**9)) for _ in range(dice.randrange(6)))
    descr = dice.choice(
        ("'|u1'", "'<f4'", "'|O'", "'<U9'", "'<f8'", "[('a', '<f4')]", "'<c8'", "x", "'" * 99)
    )
    head = (
        f"{{'descr': {descr}, 'fortran_order': {dice.choice((True, False))}, 'shape': {shape}, }}\n".encode()
    )
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(dice.choice((0, 192, 10**5)))


def mutate_dataset(folder: Path, out: Path, dice: random.Random) -> None:
    """A file that says what is in the photos, or the mask of one."""
    shutil.copytree(folder, out)
    said = [f for f in sorted(out.rglob("*")) if f.is_file() and (f.suffix != ".png" or "annot" in str(f))]
    file = dice.choice(said)
    data = file.read_bytes()
    if file.suffix == ".json" and dice.random() < 0.7:
        file.write_text(json.dumps(mutate_json(json.loads(data), dice)))
    elif file.suffix != ".png" and dice.random() < 0.5:
        words = [
            b"nan",
            b"-1",
            b"1e999",
            b"../..",
            b"*a",
            b"&a [",
            b"<!DOCTYPE a>",
            b"{",
            b"\xff",
            b"2020-99-99",
        ]
        at = dice.randrange(len(data) + 1)
        file.write_bytes(data[:at] + dice.choice(words) + data[at + dice.randrange(9) :])
    else:
        file.write_bytes(mutate_bytes(data, dice))


def mutate_bundle(bundle: Path, out: Path, dice: random.Random) -> None:
    """A field of the manifest with a right digest, or a file with or without its right hash.

    Artifacts with a right hash are left out: runtimes are native code that loads what it is given.
    """
    shutil.copytree(bundle, out)
    file = out / "manifest.json"
    data = json.loads(file.read_text())
    kind = dice.randrange(4)
    if kind == 0:
        file.write_bytes(mutate_bytes(file.read_bytes(), dice))
    elif kind in (1, 2):
        for _ in range(dice.choice((1, 1, 3))):
            mutated = mutate_json(data, dice)
            data = mutated if isinstance(mutated, dict) else data
        _seal(file, data)
    else:
        names = [e["path"] for e in data["files"]]
        name = dice.choice(names)
        (out / name).write_bytes(_odd_file(out / name, dice))
        if name == "reference.onnx" or name.startswith("golden/"):
            for entry in data["files"]:
                if entry["path"] == name:
                    entry.update(size=(out / name).stat().st_size, sha256=sha256(out / name))
            _seal(file, data)


def _odd_file(file: Path, dice: random.Random) -> bytes:
    if file.suffix == ".npz" and dice.random() < 0.5:
        odd = io.BytesIO()
        with np.load(file) as arrays:
            found = dict(arrays)
        key = dice.choice(list(found))
        found[key] = found[key][: dice.randrange(3)] if dice.random() < 0.5 else np.zeros(dice.choice((0, 3)))
        np.savez(odd, **found)  # type: ignore[arg-type]
        return odd.getvalue()
    return mutate_bytes(file.read_bytes(), dice)


def _seal(file: Path, data: dict[str, Any]) -> None:
    try:
        data = {**data, "digest": digest_of(data)}
        file.write_text(json.dumps(data))
    except (ValueError, TypeError):
        file.write_text(json.dumps(data, default=str))


__all__ = ["NUMBERS", "mutate_archive", "mutate_bundle", "mutate_image", "mutate_weights"]
