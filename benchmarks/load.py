"""From nothing to a loaded model: sdconvert beside safetensors, a bare map, and bare reads.

    python -m benchmarks.load --layers 24 --rounds 5

Makes a single-precision transformer (24 layers of width 1024 are 1.4 GB) whose embedding and head are tied, saves
it, and then loads it in a fresh process each, the ways in turn, several times, the file in the page cache. Every
process imports torch and sdconvert first, which does not count, builds the model, loads, and sums
every parameter, so that pages that are only mapped are paid for too.

    load_model   build with torch's initialisation, safetensors.torch.load_model: the everyday way
    mapped       sdconvert.skeleton, sdconvert.load_into
    raw map      the same bare model; one private map, torch.frombuffer, parameters set by name: the limit of mapping
    owned        sdconvert.skeleton, sdconvert.load_into(copy="read")
    raw read     the same bare model; two threads of preadv into final storages: the limit of owning
    many         a flat list of 16,000 linear layers, 32,000 names: load_into alone

Prints medians of build + load, of all with the sum, ratios pair by pair, and the largest growth of
anonymous memory, sampled by a thread. ``benchmarks.peers`` goes these ways too, from a .pt beside the file:

    mapped .pt   sdconvert.skeleton, sdconvert.load_into
    torch        build with torch's initialisation, torch.load(mmap=True), load_state_dict
    torch assign built on the meta device, torch.load(mmap=True), load_state_dict(assign=True): what no file
                 holds, such as a buffer that is not persistent, is without values afterwards, and ties are gone
    accelerate   init_empty_weights, load_checkpoint_in_model, the tie tied again by hand; from the .safetensors
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import environment, warm

WAYS = ("load_model", "mapped", "raw map", "owned", "raw read")
PEERS = ("mapped", "mapped .pt", "owned", "load_model", "torch", "torch assign", "accelerate")
_WIDTH, _WORDS = 1024, 50_257


def model(layers: int) -> Any:
    """Embedding, transformer layers, and a head tied to the embedding; a buffer that no file holds."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(_WORDS, _WIDTH)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(_WIDTH, 16, 4 * _WIDTH, batch_first=True) for _ in range(layers)
            )
            self.head = nn.Linear(_WIDTH, _WORDS, bias=False)
            self.head.weight = self.embedding.weight
            self.register_buffer("inv_freq", 1e4 ** -(torch.arange(0, 64, 2) / 64), persistent=False)

    return Model()


def put(root: Any, name: str, tensor: Any) -> None:
    """Make a tensor the parameter of that name, the same object for the same."""
    owner, _, leaf = name.rpartition(".")
    root.get_submodule(owner)._parameters[leaf] = tensor


def header_of(path: str) -> tuple[dict[str, Any], int]:
    """The tensors of a safetensors file, and where their bytes begin."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def raw_map(bare: Any, path: str) -> None:
    """One map, and nothing else that can be left out."""
    import torch

    header, start = header_of(path)
    fd = os.open(path, os.O_RDONLY)
    data = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(fd)
    for name, info in header.items():
        begin, end = info["data_offsets"]
        flat = torch.frombuffer(data, dtype=torch.float32, count=(end - begin) // 4, offset=start + begin)
        put(bare, name, torch.nn.Parameter(flat.view(info["shape"])))
    bare.head.weight = bare.embedding.weight


def raw_read(bare: Any, path: str) -> None:
    """Two threads that read each tensor into its storage."""
    import torch

    header, start = header_of(path)
    fd = os.open(path, os.O_RDONLY)
    todo: list[tuple[int, memoryview]] = []
    for name, info in header.items():
        begin, end = info["data_offsets"]
        tensor = torch.empty(info["shape"])
        put(bare, name, torch.nn.Parameter(tensor))
        view = memoryview((ctypes.c_char * (end - begin)).from_address(tensor.data_ptr())).cast("B")
        step = 16 << 20
        todo += [(start + begin + at, view[at : at + step]) for at in range(0, end - begin, step)]
    bare.head.weight = bare.embedding.weight
    lock, items = threading.Lock(), iter(todo)

    def work() -> None:
        while True:
            with lock:
                item = next(items, None)
            if item is None:
                return
            at, view = item
            done = 0
            while done < len(view):
                done += os.preadv(fd, [view[done:]], at + done)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)


def anonymous() -> int:
    """KiB of anonymous memory of this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def bytes_read() -> int:
    """Bytes that this process has read by calls; pages of a map are not among them."""
    with open("/proc/self/io") as counts:
        return int(next(line for line in counts if line.startswith("rchar")).split()[1])


def one(way: str, path: str, layers: int) -> None:
    """Load in this process, print what it took as JSON."""
    import torch
    from safetensors.torch import load_model

    import sdconvert
    import sdconvert.load.into

    if way == "accelerate":
        import accelerate
    torch.set_num_threads(2)
    pickled = str(Path(path).with_suffix(".pt"))
    peak = before = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()

    def bare() -> Any:
        with sdconvert.skeleton():
            return model(layers)

    def meta() -> Any:
        with torch.device("meta"):
            return model(layers)

    def empty() -> Any:
        with accelerate.init_empty_weights(include_buffers=False):
            return model(layers)

    def by_accelerate(made: Any) -> None:
        accelerate.load_checkpoint_in_model(made, path, device_map={"": "cpu"})
        made.head.weight = made.embedding.weight

    def by_torch(made: Any, assign: bool) -> None:
        made.load_state_dict(torch.load(pickled, mmap=True, weights_only=True), assign=assign)

    ways: dict[str, Callable[[Any], object]] = {
        "load_model": lambda made: load_model(made, path),
        "torch": lambda made: by_torch(made, False),
        "torch assign": lambda made: by_torch(made, True),
        "accelerate": by_accelerate,
        "mapped .pt": lambda made: sdconvert.load_into(made, pickled),
        "mapped": lambda made: sdconvert.load_into(made, path),
        "owned": lambda made: sdconvert.load_into(made, path, copy="read"),
        "raw map": lambda made: raw_map(made, path),
        "raw read": lambda made: raw_read(made, path),
    }
    read = bytes_read()
    began = time.perf_counter()
    builds = {"load_model": lambda: model(layers), "torch": lambda: model(layers), "torch assign": meta}
    made = {**builds, "accelerate": empty}.get(way, bare)()
    built = time.perf_counter()
    ways[way](made)
    loaded = time.perf_counter()
    read = bytes_read() - read
    # By their memory: a way that unties two names has them as two parameters.
    distinct = {param.data_ptr(): param.detach() for param in made.parameters()}
    total = sum(float(param.sum()) for param in distinct.values())
    ended = time.perf_counter()
    done.set()
    watcher.join()
    seconds = {"build": built - began, "load": loaded - built, "ready": loaded - began, "all": ended - began}
    empties = sum(buffer.is_meta for buffer in made.buffers())
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = max(peak, anonymous()) - before
    facts = {"peak": grown, "sum": total, "resident": resident, "read": read, "left empty": empties}
    print(json.dumps({**seconds, **facts, "untied": made.head.weight is not made.embedding.weight}))


def many(count: int) -> None:
    """Seconds of `load_into` for a flat list of `count` linear layers, and of torch for an eighth of it."""
    import torch
    from torch import nn

    import sdconvert

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "many.safetensors"
        full = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))
        sdconvert.save(full, path)
        times = []
        for _ in range(3):
            with sdconvert.skeleton():
                bare = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))
            began = time.perf_counter()
            sdconvert.load_into(bare, path)
            times.append(time.perf_counter() - began)
        assert all(torch.equal(a, b) for a, b in zip(full.parameters(), bare.parameters(), strict=True))
        few = nn.ModuleList(nn.Linear(4, 4) for _ in range(count // 8))
        state = few.state_dict()
        began = time.perf_counter()
        few.load_state_dict(state)
        print(json.dumps({"ours": statistics.median(times), "torch_of_an_eighth": time.perf_counter() - began}))


def run(*arguments: str, python: str = sys.executable) -> dict[str, float]:
    """What a fresh process prints."""
    command = [python, "-m", "benchmarks.load", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
    result: dict[str, float] = json.loads(done.stdout)
    return result


def save(path: str, layers: int) -> None:
    """Make the file, and a .pt beside it."""
    import torch
    from safetensors.torch import save_model

    made = model(layers)
    torch.save(made.state_dict(), Path(path).with_suffix(".pt"))
    save_model(made, path, metadata={"format": "pt"})


def in_turn(
    path: str, ways: tuple[str, ...], layers: int, rounds: int, python: str
) -> dict[str, list[dict[str, float]]]:
    """What each way took, each time; those that read the .safetensors of `path` and those that read the .pt."""
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    command = [python, "-m", "benchmarks.load", "--save", path, str(layers)]
    subprocess.run(command, check=True, env=environment())
    for number in range(rounds):
        for way in ways if number % 2 else reversed(ways):
            warm([Path(path), Path(path).with_suffix(".pt")])
            os.sync()
            taken[way].append(run("--one", way, path, str(layers), python=python))
    sums = {round(result["sum"], 1) for results in taken.values() for result in results}
    if len(sums) != 1:
        raise SystemExit(f"the ways do not agree on the weights: {sums}")
    return taken


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    if sys.argv[1:2] == ["--many"]:
        many(int(sys.argv[2]))
        return
    if sys.argv[1:2] == ["--save"]:
        save(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modules", type=int, default=16_000)
    parser.add_argument("--dir", help="where to work (default: a temporary directory)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        path = f"{directory}/model.safetensors"
        taken = in_turn(path, WAYS, args.layers, args.rounds, sys.executable)
        print(f"{os.stat(path).st_size / 1e9:.2f} GB, {args.layers} layers, embedding and head tied")
    for way, results in taken.items():
        row = "   ".join(
            f"{part} {statistics.median(r[part] for r in results):6.3f} s" for part in ("build", "load", "ready", "all")
        )
        print(f"{way:11} {row}   peak anonymous {max(r['peak'] for r in results) / 1024:7.1f} MiB")

    def ratio(a: str, b: str, part: str) -> float:
        return statistics.median(x[part] / y[part] for x, y in zip(taken[a], taken[b], strict=True))

    for a, b in (("load_model", "mapped"), ("mapped", "raw map"), ("owned", "raw read")):
        print(f"{a} / {b}: ready {ratio(a, b, 'ready'):.2f}, all {ratio(a, b, 'all'):.2f}")
    result = run("--many", str(args.modules))
    print(
        f"{2 * args.modules:,} names in a flat list: {result['ours']:.2f} s "
        f"(torch's load_state_dict, a dict in memory, an eighth of them: {result['torch_of_an_eighth']:.2f} s)"
    )


if __name__ == "__main__":
    main()
