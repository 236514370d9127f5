"""Damaged and hostile files: flipped bits in weights, edited bytes in shapes, files made to do harm."""

import collections
import json
import random
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from pc_ewa.benchmark.disturbed import Toy, leaves, start
from pc_ewa.benchmark.hostile import CASES
from pc_ewa.benchmark.memory import peak_of
from pc_ewa.data.formats.readers import Shape, read_shape
from pc_ewa.errors import CheckpointError, DataError
from pc_ewa.models.checkpoints.read import read_content

_HEADER = "ply\nformat {} 1.0\nelement vertex 4\n" + "".join(f"property float {axis}\n" for axis in "xyz")
_HEADER += "element face 4\nproperty list uchar int vertex_indices\nend_header\n"
_PATIENCE, _HOSTILE_PATIENCE = 10, 60  # seconds for a damaged file of less than a kilobyte, and for a hostile file
MOST_SECONDS, MOST_MEMORY = 1, 200  # limits: seconds of processor time, MB beyond those of the process before


def flips(toy: Toy, trials: int, seed: int) -> dict[str, Any]:
    """Flip one random bit in a file of our weights and read the file, `trials` times per format.

    A flip counts as noticed if the file is refused, as harmless if its content is read unchanged, and else as missed.
    """
    weights = toy.whole.folder / "checkpoints" / "merged_last.pt"
    converted = toy.folder / "weights.safetensors"
    process = start(_convert, weights, converted, printed=toy.folder / "convert.log")
    process.join()
    results = {}
    for path in (weights, converted):
        draw = random.Random(f"{seed} {path.suffix}")
        sound, expected = path.read_bytes(), dict(leaves(read_content(path), ""))
        damaged = toy.folder / f"flipped{path.suffix}"
        counts = collections.Counter[str]()
        missed = []
        for _ in range(trials):
            bit = draw.randrange(8 * len(sound))
            content = bytearray(sound)
            content[bit // 8] ^= 1 << bit % 8
            damaged.write_bytes(content)
            try:
                outcome = "harmless" if dict(leaves(read_content(damaged), "")) == expected else "missed"
            except CheckpointError:
                outcome = "noticed"
            counts[outcome] += 1
            if outcome == "missed":
                missed.append(bit)
        results[path.suffix] = {
            "trials": trials,
            "bytes": len(sound),
            **{outcome: counts[outcome] for outcome in ("noticed", "harmless", "missed")},
            "missed_bits": missed,
        }
    return results


def fuzz(toy: Toy, trials: int, seed: int) -> dict[str, Any]:
    """Edit random bytes of small valid files and read them. Each must give a one-line error or a valid shape."""
    place = toy.folder / "fuzz.json"
    # In a child process: a reader that crashes the interpreter is then a failure, and not the end of the benchmark.
    process = start(_fuzz, toy.folder, place, trials, seed, printed=toy.folder / "fuzz.log")
    process.join()
    if process.exitcode != 0:
        return {"trials": trials, "failures": [f"the process ended with {process.exitcode}"], "kinds": {}}
    result: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return result


def hostile(toy: Toy, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Make each hostile file, run the command that reads it, and measure exit code, output, time and memory."""
    results = {}
    for number, name in enumerate(CASES if names is None else names):
        folder = toy.folder / f"hostile-{number}"
        folder.mkdir()
        arguments = CASES[name](toy, folder)
        printed, place = folder / "printed", folder / "measured.json"
        process = start(_measured, arguments, place, printed=printed)
        process.join(_HOSTILE_PATIENCE)
        process.kill()
        process.join()
        measured: dict[str, Any] = (
            json.loads(place.read_text()) if place.exists() else {"seconds": None, "memory": None}
        )
        lines = printed.read_text(encoding="utf-8", errors="replace").splitlines()
        problems = []
        if not place.exists():
            problems.append(f"no end within {_HOSTILE_PATIENCE} s, exit code {process.exitcode}")
        elif process.exitcode != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
            problems.append(f"exit code {process.exitcode}, {len(lines)} lines")
        if place.exists() and measured["seconds"] > MOST_SECONDS:
            problems.append(f"more than {MOST_SECONDS} s")
        if place.exists() and measured["memory"] > MOST_MEMORY:
            problems.append(f"more than {MOST_MEMORY} MB")
        if (folder / "the code ran").exists():
            problems.append("the code ran")
        said = lines[-1].replace(str(folder), "").replace(str(toy.folder), "")[:200] if lines else ""
        results[name] = {**measured, "said": said, "problems": problems}
    return results


def samples() -> dict[str, bytes]:
    """Return a small valid file of each format that needs no extra, by the name of the format."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4")
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    rows = "".join(" ".join(map(str, row)) + "\n" for row in corners.tolist())
    lists = "".join(f"3 {a} {b} {c}\n" for a, b, c in faces)
    packed = b"".join(b"\x03" + np.array(face, "<i4").tobytes() for face in faces)
    triangle = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("colour", "<u2")])
    triangles = np.zeros(4, triangle)
    triangles["corners"] = corners[np.array(faces)]
    facets = "".join(
        "facet normal 0 0 0\nouter loop\n"
        + "".join("vertex {} {} {}\n".format(*corners[i]) for i in face)
        + "endloop\nendfacet\n"
        for face in faces
    )
    pcd = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 4\nHEIGHT 1\nPOINTS 4\nDATA {}\n"
    array = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }".ljust(127) + b"\n"
    return {
        "off": f"OFF\n4 4 0\n{rows}{lists}".encode(),
        "obj": ("".join(f"v {row}\n" for row in rows.splitlines()) + "f 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n").encode(),
        "text.ply": (_HEADER.format("ascii") + rows + lists).encode(),
        "binary.ply": _HEADER.format("binary_little_endian").encode() + corners.tobytes() + packed,
        "text.stl": f"solid a\n{facets}endsolid a\n".encode(),
        "binary.stl": bytes(80) + np.array(4, "<u4").tobytes() + triangles.tobytes(),
        "text.pcd": (pcd.format("ascii") + rows).encode(),
        "binary.pcd": pcd.format("binary").encode() + corners.tobytes(),
        "npy": array + corners.tobytes(),
        "xyz": rows.encode(),
        "csv": ("x,y,z\n" + rows.replace(" ", ",")).encode(),
    }


def edit(content: bytes, draw: random.Random) -> bytes:
    """Return `content` with bytes changed, inserted, removed or repeated in one to four places, or truncated."""
    edited = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(edited) + 1), draw.choice((1, 1, 2, 4, 16))
        # Random bytes rarely pass the first check. Repeated bytes, digits and separators reach deeper into a parser.
        some = draw.choice(
            (draw.randbytes(length), edited[at : at + length], b"9" * length, b"-", b"nan", b"\n", b"1e")
        )
        kind = draw.randrange(8)
        if kind == 0:
            del edited[at:]
        elif kind == 1:
            del edited[at : at + length]
        elif kind < 4:
            edited[at:at] = some
        else:
            edited[at : at + len(some)] = some
    return bytes(edited)


def is_sound(shape: Shape) -> bool:
    """Return True if all points are finite and all faces refer to points."""
    points, faces = shape
    whole = points.ndim == 2 and points.shape[1] == 3 and len(points) > 0 and bool(np.isfinite(points).all())
    return whole and (faces is None or (faces.min() >= 0 and faces.max() < len(points)))


def _convert(weights: Path, converted: Path) -> None:
    from pc_ewa.cli import main

    if main(["merge", str(weights), "-o", str(converted), "--format", "safetensors"]):
        raise RuntimeError("the weights cannot be converted")


def _fuzz(folder: Path, place: Path, trials: int, seed: int) -> None:
    """Read damaged files in this process, with a limit of 4 GB more address space than it uses now."""
    # With the limit, a header that declares a huge array raises MemoryError instead of swapping the machine.
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**32, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _too_long)
    draw = random.Random(seed)
    failures: list[str] = []
    kinds = {kind: {"cases": 0, "refused": 0, "sound": 0} for kind in samples()}
    sound = list(samples().items())
    for number in range(trials):
        kind, content = sound[number % len(sound)]
        damaged = edit(content, draw)
        path = folder / f"fuzzed.{kind}"
        path.write_bytes(damaged)
        # An alarm interrupts Python code that loops. It cannot interrupt C code, which the caller would notice.
        signal.alarm(_PATIENCE)
        try:
            outcome = "sound" if is_sound(read_shape(path)) else "an unsound shape"
        except DataError as error:
            outcome = "refused" if "\n" not in str(error) else "a refusal of several lines"
        except Exception as error:  # any other error is a defect of the reader
            outcome = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        kinds[kind]["cases"] += 1
        if outcome in ("refused", "sound"):
            kinds[kind][outcome] += 1
        elif len(failures) < 20:
            failures.append(f"{kind}: {outcome[:200]}: {damaged.hex()[:4000]}")
    place.write_text(json.dumps({"trials": trials, "failures": failures, "kinds": kinds}), encoding="utf-8")


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {_PATIENCE} s")


def _measured(arguments: list[str], place: Path) -> None:
    """Run a command and write its time and memory to a file, then exit with its code."""
    from pc_ewa.cli import main

    # Processor time is judged: wall time also depends on other work on the machine.
    code = 1
    begin, wall = time.process_time(), time.perf_counter()

    def call() -> None:
        nonlocal code
        code = main(arguments)

    memory = peak_of(call)
    measured = {"seconds": time.process_time() - begin, "wall": time.perf_counter() - wall, "memory": memory}
    place.write_text(json.dumps(measured), encoding="utf-8")
    sys.exit(code)
