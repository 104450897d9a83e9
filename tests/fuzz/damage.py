"""Damage to traces, packed traces and lists of jobs, at random but the same for the same number."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from support.documents import seal_again

VALUES: list[Any] = [
    None, True, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, 1e308, "", "NaN", "a", "../..", "/etc", "\x00", "$\\frac{$",
    "<script>", "float16", "object", "sharding_indexed", [], [[]], [0], [1, 2], {}, {"name": "numcodecs.pickle"},
    "é" * 999,
]  # fmt: skip
BYTES = [b"", b"\x00", b"\xff" * 4, b"PK\x05\x06", b"PK\x01\x02", b"[" * 5000, b"null", b"{}"]


def damaged_bytes(content: bytes, random_: random.Random) -> bytes:
    """Content with some bytes changed, cut, repeated, or replaced."""
    data = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 8))):
        at = random_.randrange(len(data) + 1)
        match random_.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << random_.randrange(8)
            case 1:
                data[at : at + random_.randrange(1, 40)] = b""
            case 2:
                data[at:at] = random_.choice(BYTES)
            case 3:
                data[at : at + 4] = random_.randbytes(4)
            case _:
                data[at:at] = data[max(0, at - random_.randrange(1, 100)) : at]
    return bytes(data)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every member of a JSON document, as its container and key."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, member in items for place in [(value, key), *places(member)]]


def damaged_json(content: bytes, random_: random.Random) -> bytes:
    """A document with members changed, removed, or exchanged."""
    try:
        document = json.loads(content)
    except ValueError:
        return damaged_bytes(content, random_)
    for _ in range(random_.choice((1, 1, 2, 4))):
        found = places(document)
        if not found:
            break
        container, key = random_.choice(found)
        match random_.randrange(4):
            case 0:
                del container[key]
            case 1:
                other, at = random_.choice(found)
                if at in other if isinstance(other, dict) else at < len(other):
                    container[key] = json.loads(json.dumps(other[at]))
            case 2 if isinstance(container[key], int):
                container[key] += random_.choice((-1, 1, 2**20, -(2**33)))
            case _:
                container[key] = deepcopy(random_.choice(VALUES))  # it may be damaged next
    return json.dumps(document).encode()


def damage_folder(path: Path, random_: random.Random) -> None:
    """Change some files of a trace."""
    for _ in range(random_.choice((1, 1, 2, 5))):
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        if not files:
            return
        metadata = [file for file in files if file.name == "zarr.json"]
        file = random_.choice(metadata if metadata and random_.random() < 0.7 else files)
        content = file.read_bytes()
        match random_.randrange(10):
            case 0:
                file.unlink()
            case 1:
                file.unlink()
                file.symlink_to(random_.choice([Path("/dev/zero"), path, Path(".."), file, random_.choice(files)]))
            case 2:
                file.write_bytes(random_.choice(files).read_bytes())
            case 3 | 4:
                file.write_bytes(damaged_bytes(content, random_))
            case _:
                change = damaged_json if file.name == "zarr.json" else damaged_bytes
                file.write_bytes(change(content, random_))


NAMES = [
    "",
    "/",
    "..",
    "../out",
    "/tmp/out",
    "a\\b",
    "zarr.json",
    "images/zarr.json/",
    "step_done/c/0",
    "é" * 300,
    "\x00",
]
"""Names that an entry of a zip file may claim."""


def damage_zip(path: Path, random_: random.Random) -> None:
    """Write a packed trace anew with other entries: renamed, repeated, missing, compressed otherwise, or very long."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(random_.choice((1, 1, 2))):
        at = random_.randrange(len(entries))
        name, content = entries[at]
        match random_.randrange(6):
            case 0:
                entries[at] = (random_.choice(NAMES), content)
            case 1:
                entries.insert(random_.randrange(len(entries)), entries[at])
            case 2:
                del entries[at]
                entries = entries or [("", b"")]
            case 3:
                entries[at] = (name, random_.choice((b"\x00", b"[", b"[1,")) * random_.choice((10, 2**16, 2**24)))
            case 4:
                entries[at] = (name, damaged_json(content, random_) if name.endswith("json") else b"")
            case _:
                random_.shuffle(entries)
    method = random_.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.filename = name or "nameless"
            info.compress_type = method
            with archive.open(info, "w") as entry:
                entry.write(content)
            info.filename = name  # which the directory at the end has
    if random_.random() < 0.5:
        path.write_bytes(_damaged_directory(path.read_bytes(), random_))


def _damaged_directory(content: bytes, random_: random.Random) -> bytes:
    """A zip file with a number changed in one of its headers: a size, an offset, a checksum, a count."""
    data = bytearray(content)
    found = [at for mark in (b"PK\x01\x02", b"PK\x05\x06") for at in _positions(content, mark)]
    at = random_.choice(found) + 4 + 2 * random_.randrange(20)
    number = random_.choice((0, 1, 0xFFFF, 0xFFFFFFFF, 0x80000000, random_.getrandbits(32)))
    data[at : at + 4] = struct.pack("<I", number)
    return bytes(data)


def _positions(content: bytes, mark: bytes) -> list[int]:
    found, at = [], content.find(mark)
    while at >= 0:
        found.append(at)
        at = content.find(mark, at + 1)
    return found


def damage(path: Path, random_: random.Random) -> None:
    """Change a trace at random; of folders half are given a valid digest again."""
    if path.is_dir():
        damage_folder(path, random_)
        if random_.random() < 0.6 and not any(file.is_symlink() for file in path.rglob("zarr.json")):
            # what is no JSON, or no trace, has no digest
            with suppress(ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
                seal_again(path)
    elif random_.random() < 0.5:
        damage_zip(path, random_)
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), random_))


JOBS = [
    {"id": "a", "inputs": {"prompt": "a red car", "image": "@picture.png"}, "seed": 1, "steps": 2},
    {"output": "b.zarr", "inputs": {"strength": 0.5}, "reference": "image", "mask": "picture.png", "scene": "image"},
    {"id": "c", "save_image": "c.png", "inputs": {"image": ["@picture.png", "@picture.png"]}},
]


def damaged_jobs(random_: random.Random) -> bytes:
    """A list of jobs, damaged line by line or as a whole."""
    lines = [json.dumps(job).encode() for job in JOBS]
    for _ in range(random_.choice((1, 1, 2))):
        at = random_.randrange(len(lines))
        lines[at] = random_.choice((damaged_json, damaged_json, damaged_bytes))(lines[at], random_)
    content = b"\n".join(lines)
    return content if random_.random() < 0.8 else damaged_bytes(content, random_)
