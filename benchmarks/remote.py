"""Averaging from a bucket into a bucket, on the loopback: rate, memory, faults and kills.

    python benchmarks/remote.py average --models 5 --size 1GB
    python benchmarks/remote.py faults --models 5 --size 1GB
    python benchmarks/remote.py kills --models 5 --size 300MB
    python benchmarks/remote.py nodes --models 3 --size 400MB --rate 30MB
    python benchmarks/remote.py ray --models 3 --size 400MB --rate 30MB
    python benchmarks/remote.py clients --size 1GB [--python VENV/bin/python]

`average` makes k model folders, puts them into a bucket of `benchmarks/object_store.py`, which runs
in a process of its own, and alternates two programs as whole processes:

- stockpot: `stockpot average s3://… -o s3://…/out`, its caches empty, fingerprints included;
- copy: the store's own client (obstore) fetches the same inputs by parallel ranges and drops them,
  and uploads as many bytes as the output has at the same time; it computes nothing.

The bytes of the output are compared with those of a local average. With `--rate 600MB` the store
sends no more than that a second, as a network does. `faults` makes 5 % of requests
fail (503, cut in the middle, never answered) and compares the bytes; then it replaces an input
while it is read. `kills` ends the program with SIGKILL at ten moments, says what is visible then,
and runs it again. `nodes` gives each of three nodes a line of its own with `--rate` bytes a second
to the same models, and compares with one node; then one of three is killed half-way and started
again. `ray` does the same with the nodes of a Ray cluster on this machine, and starts nothing
again: what takes as long on a tiny model, Ray's start, is taken off. Its speed-up is that of making
the files, by the last node to finish, as with `nodes`. `clients` compares obstore and
s3fs (for which `--python` has to have both).

The data go to `--data` (a temporary folder by default) and are removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # run as a script, it has neither

from benchmarks.average import measure  # noqa: E402
from benchmarks.llama import make_models  # noqa: E402
from benchmarks.measuring import parse_bytes  # noqa: E402
from benchmarks.object_store import Server, serving  # noqa: E402

STEP = 8 << 20
_SAME = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}


def environment(endpoint: str, cache: Path) -> dict[str, str]:
    """What leads the programs to the store, their caches empty."""
    return {
        **os.environ,
        **_SAME,
        "AWS_ENDPOINT_URL": endpoint,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "STOCKPOT_CACHE": str(cache),
    }


def average(inputs: Sequence[str], output: str, *options: str) -> list[str]:
    """The command line of an average."""
    start = "import sys; from stockpot.cli import main; sys.exit(main())"
    return [sys.executable, "-c", start, "average", *inputs, "-o", output, "--json", *options]


@contextlib.contextmanager
def store_process(folder: Path, put: dict[str, Path], *options: str) -> Iterator[str]:
    """The address of a store in a process of its own."""
    given = [text for key, path in put.items() for text in ("--put", f"{key}={path}")]
    command = [sys.executable, "-m", "benchmarks.object_store", str(folder), *given, *options]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def run_copy(bucket: str, keys: Sequence[str], n_out: int) -> None:
    """Fetch `keys` by parallel ranges and upload `n_out` bytes, both at once."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(bucket, client_options={"allow_http": True})
    sizes = {key: obstore.head(store, key)["size"] for key in keys}
    ranges = [(k, a, min(a + STEP, n)) for k, n in sizes.items() for a in range(0, n, STEP)]
    block = os.urandom(STEP)

    def get(one: tuple[str, int, int]) -> int:
        return len(obstore.get(store, one[0], options={"range": one[1:]}).bytes())

    def put() -> None:
        pieces = (block[: min(STEP, n_out - at)] for at in range(0, n_out, STEP))
        obstore.put(store, "copied", pieces, chunk_size=STEP, max_concurrency=6)

    began = time.perf_counter()
    upload = threading.Thread(target=put)
    upload.start()
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(get, ranges)) == sum(sizes.values())
    upload.join()
    print(json.dumps({"seconds": time.perf_counter() - began}))


def rates(
    data: Path, *, models: int, n_bytes: int, repeat: int, rate: float | None = None
) -> dict[str, Any]:
    """Wall time of whole processes, and what the engine and the copy took without their start.

    With `rate` the store sends no more bytes a second, as a network would.
    """
    paths = make_models(data / "models", models, n_bytes, moved=0.003)
    keys = [f"{p.name}/{f.name}" for p in paths for f in sorted(p.glob("*.safetensors"))]
    n_in = sum(f.stat().st_size for p in paths for f in p.glob("*.safetensors"))
    n_out = n_in // models
    local = data / "local"
    measure(average([str(p) for p in paths], str(local)), environment("", data / "cache-local"))
    rows: dict[str, list[tuple[float, float, int]]] = {"stockpot": [], "copy": []}
    line = [] if rate is None else ["--rate", str(rate)]
    with store_process(data / "store", {f"b/{p.name}": p for p in paths}, *line) as endpoint:
        copy = [sys.executable, __file__, "copy", "b", str(n_out), *keys]
        ours = average([f"s3://b/{p.name}" for p in paths], "s3://b/out", "--force")
        for number in range(repeat):
            for name, command in (("stockpot", ours), ("copy", copy)):
                wall, _, peak, ended = measure(
                    command, environment(endpoint, data / f"cache-{number}")
                )
                if ended.returncode:
                    raise SystemExit(f"{name} failed:\n{ended.stdout}\n{ended.stderr}")
                rows[name].append((wall, json.loads(ended.stdout)["seconds"], peak))
                print(f"{name:9} {wall:7.2f} s, {rows[name][-1][1]:7.2f} s without start, "
                      f"{peak / 1e6:6.0f} MB", flush=True)  # fmt: skip
        equal = _equal(endpoint, local, data)
    best = {
        name: [min(column) for column in zip(*found, strict=True)] for name, found in rows.items()
    }
    middle = {name: statistics.median(one[1] for one in found) for name, found in rows.items()}
    return {
        "bytes_in": n_in, "bytes_out": n_out, "equal": equal,
        "gb_per_second": {name: (n_in + n_out) / middle[name] / 1e9 for name in middle},
        "ratio_median": middle["copy"] / middle["stockpot"],
        "ratio_best": best["copy"][1] / best["stockpot"][1],
        "ratio_best_whole_process": best["copy"][0] / best["stockpot"][0],
        "peak_anonymous": max(one[2] for one in rows["stockpot"]),
    }  # fmt: skip


def _equal(endpoint: str, local: Path, data: Path) -> bool:
    """Whether the weights and the side files in the bucket are those of the local average."""
    os.environ.update(environment(endpoint, data))
    import obstore
    from obstore.store import S3Store

    store = S3Store("b", client_options={"allow_http": True})
    there = {meta["path"].removeprefix("out/") for meta in obstore.list(store, "out").collect()}
    described = {"stockpot.json", "README.md"}  # which name their inputs
    return there == {p.name for p in local.iterdir()} and all(
        bytes(obstore.get(store, f"out/{name}").bytes()) == (local / name).read_bytes()
        for name in there - described
    )


def faults(data: Path, *, models: int, n_bytes: int) -> dict[str, Any]:
    """With failing requests: the same bytes; with an input that is replaced: a refusal."""
    paths = make_models(data / "models", models, n_bytes, moved=0.003)
    measure(average([str(p) for p in paths], str(data / "local")), environment("", data / "c0"))
    names = [f"s3://b/{p.name}" for p in paths]
    with serving(data / "store", fail=0.05) as server:
        for path in paths:
            server.put_folder(f"b/{path.name}", path)
        where = environment(server.endpoint, data / "c1")
        ended = measure(average(names, "s3://b/out"), where)[3]
        asked, failed = len(server.requests), server.failed
        server.fail = 0.0
        equal = ended.returncode == 0 and _equal(server.endpoint, data / "local", data)
        if ended.returncode:
            print(ended.stderr)
        begun = len(server.requests)
        with subprocess.Popen(
            average(names, "s3://b/other"), env={**where, "STOCKPOT_CACHE": str(data / "c2")},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as process:  # fmt: skip
            _until(lambda: _n_uploaded(server, begun, "other") >= 3, process)
            other = sorted(paths[0].glob("*.safetensors"))[-1]
            server.put_file(f"b/{paths[1].name}/{other.name}", other)
            said = json.loads(process.communicate()[0]).get("error", "")
        visible = [key for key in server.objects if key.startswith("b/other")]
    return {
        "requests": asked, "failed": failed, "equal": equal,
        "replaced": {"rc": process.returncode, "said": said, "visible": visible},
    }  # fmt: skip


def kills(data: Path, *, models: int, n_bytes: int, moments: int = 10) -> dict[str, Any]:
    """SIGKILL at moments spread over the run; what is visible then, and after the next run."""
    paths = make_models(data / "models", models, n_bytes, moved=0.003)
    measure(average([str(p) for p in paths], str(data / "local")), environment("", data / "c"))
    names = [f"s3://b/{p.name}" for p in paths]
    rows: list[dict[str, Any]] = []
    with serving(data / "store") as server:
        for path in paths:
            server.put_folder(f"b/{path.name}", path)
        where = environment(server.endpoint, data / "c")
        measure(average(names, "s3://b/warm"), where)
        began = len(server.requests)
        measure(average(names, "s3://b/whole"), where)
        total = len(server.requests) - began
        for number in range(moments):
            begun = len(server.requests)
            # The last moments lie in the commit, which is a dozen requests.
            at = (
                total * (number + 1) // moments
                if number < moments // 2
                else total - (moments - number) * 2
            )
            with subprocess.Popen(
                average(names, "s3://b/out"), env=where,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            ) as process:  # fmt: skip
                _until(lambda: len(server.requests) - begun >= at, process)  # noqa: B023
                process.send_signal(signal.SIGKILL)
            time.sleep(0.3)  # requests under way end
            found = sorted(key for key in server.objects if key.startswith("b/out/"))
            loads = _loads(server)
            n_left = len(server.uploads)
            force = ["--force"] if loads else []
            again = measure(average(names, "s3://b/out", *force), where)[3]
            rows.append({
                "after_requests": at, "of": total, "visible": len(found), "loads": loads,
                "open_uploads": n_left, "rerun": again.returncode,
                "equal": _equal(server.endpoint, data / "local", data),
                "left": len(server.uploads),
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
            for key in [key for key in server.objects if key.startswith("b/out/")]:
                server.forget(server.objects.pop(key))
    return {"moments": rows}


def _line_of_models(
    data: Path, models: int, n_bytes: int
) -> tuple[dict[str, Path], list[str], list[str]]:
    """What a store holds, the names of the models, and options; their mean is in `data/local`."""
    paths = make_models(data / "models", models, n_bytes, moved=0.003)
    shard = ["--max-shard-size", str(n_bytes // 6)]
    measure(
        average([str(p) for p in paths], str(data / "local"), *shard),
        environment("", data / "cache"),
    )
    return {f"b/{p.name}": p for p in paths}, [f"s3://b/{p.name}" for p in paths], shard


@contextlib.contextmanager
def _three_lines(data: Path, put: dict[str, Path], rate: float) -> Iterator[list[str]]:
    """Addresses of three stores that give `rate` bytes a second each."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(store_process(data / f"store-{i}", put, "--rate", str(rate)))
            for i in range(3)
        ]


def _equal_to_local(data: Path, *outs: str) -> tuple[int, dict[str, bool]]:
    """How many files of weights the local mean has, and whether those of `outs` have its bytes."""
    weights = [p.name for p in (data / "local").iterdir() if p.suffix == ".safetensors"]

    def equal(out: str) -> bool:
        pairs = ((data / out / name, data / "local" / name) for name in weights)
        return all(one.read_bytes() == other.read_bytes() for one, other in pairs)

    return len(weights), {out: equal(out) for out in outs}


def _wait_for_parts(data: Path, out: str, n: int) -> None:
    """Until `n` parts of the output are finished; at most five minutes."""
    began = time.perf_counter()
    while time.perf_counter() - began < 300:
        if len(list(data.glob(f".{out}.parts-*/*.digests.json"))) >= n:
            return
        time.sleep(0.01)


def nodes(data: Path, *, models: int, n_bytes: int, rate: float) -> dict[str, Any]:
    """One node and three, each behind its own slow line; then three of which one is killed."""
    put, names, shard = _line_of_models(data, models, n_bytes)

    def begin(endpoint: str, out: str, rank: int, n: int) -> subprocess.Popen[str]:
        options = [*shard, "--nodes", str(n), "--node-rank", str(rank)]
        return subprocess.Popen(
            average(names, str(data / out), *options), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=environment(endpoint, data / f"cache-{out}-{rank}"),
        )  # fmt: skip

    def seconds(*running: subprocess.Popen[str]) -> float:
        return max(float(json.loads(one.communicate()[0])["seconds"]) for one in running)

    with _three_lines(data, put, rate) as lines:
        one = seconds(begin(lines[0], "one", 0, 1))
        three = seconds(*(begin(line, "three", i, 3) for i, line in enumerate(lines)))
        running = [begin(line, "killed", i, 3) for i, line in enumerate(lines)]
        _wait_for_parts(data, "killed", 2)
        running[1].send_signal(signal.SIGKILL)
        for process in running:
            process.communicate()
        before = (data / "killed").exists()
        seconds(begin(lines[1], "killed", 1, 3))
    files, equal = _equal_to_local(data, "one", "three", "killed")
    return {
        "seconds_one": one, "seconds_three": three, "speed_up": one / three,
        "files": files, "visible_after_kill": before, "equal": equal,
    }  # fmt: skip


@contextlib.contextmanager
def _ray_cluster(data: Path, lines: Sequence[str], temporary: Path) -> Iterator[Any]:
    """A Ray cluster on this machine with a node of one CPU behind each of `lines`."""
    variables = {
        **environment("", data / "cache-ray"),
        "RAY_TMPDIR": str(temporary),  # sockets have short names
        "RAY_worker_niceness": "0",
    }
    before = dict(os.environ)
    os.environ.update(variables)
    (temporary / "ray").mkdir(parents=True)
    from ray.cluster_utils import Cluster

    def node(i: int) -> dict[str, Any]:
        own = {"AWS_ENDPOINT_URL": lines[i], "STOCKPOT_CACHE": str(data / f"cache-ray-{i}")}
        return {"num_cpus": 1, "env_vars": own}

    cluster = Cluster(initialize_head=True, head_node_args={**node(0), "include_dashboard": False})
    try:
        for i in range(1, len(lines)):
            cluster.add_node(**node(i))
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def ray_nodes(data: Path, *, models: int, n_bytes: int, rate: float) -> dict[str, Any]:
    """One Ray node and three, each behind its own slow line; then three of which one is killed."""
    put, names, shard = _line_of_models(data, models, n_bytes)
    put["b/tiny"] = make_models(data / "tiny", 1, 1 << 20, moved=0.003)[0]

    def begin(cluster: Any, line: str, inputs: Sequence[str], out: str) -> subprocess.Popen[str]:
        options = [*shard, "--ray", cluster.address]
        return subprocess.Popen(
            average(inputs, str(data / out), *options), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment(line, data / f"cache-{out}"),
        )  # fmt: skip

    def seconds(*given: Any) -> tuple[float, float]:
        began = time.perf_counter()
        process = begin(*given)
        said = process.communicate()
        if process.returncode:
            raise RuntimeError(str(said))
        return time.perf_counter() - began, float(json.loads(said[0])["seconds"])

    found: dict[str, Any] = {}
    # In the folder of temporary files, since the path of a socket is at most 107 bytes long.
    with (
        _three_lines(data, put, rate) as lines,
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary,
    ):
        for word, n in (("one", 1), ("three", 3)):
            with _ray_cluster(data, lines[:n], Path(temporary) / word) as cluster:
                start, _ = seconds(cluster, lines[0], ["s3://b/tiny"], f"tiny-{word}")
                whole, made = seconds(cluster, lines[0], names, word)
                # Before it makes files, every node looks at the first values of all tensors.
                found |= {f"whole_{word}": whole - start, f"seconds_{word}": made}
                print(f"{n} nodes: {made:.1f} s of {whole - start:.1f} s", flush=True)
                if word == "three":
                    process = begin(cluster, lines[0], names, "killed")
                    _wait_for_parts(data, "killed", 2)
                    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
                    found["finished_after_kill"] = process.wait() == 0
    found["speed_up"] = found["seconds_one"] / found["seconds_three"]
    found["files"], found["equal"] = _equal_to_local(data, "one", "three", "killed")
    return found


def _loads(server: Server) -> bool:
    """Whether a reader finds an output: a whole one, since nothing else opens."""
    import stockpot

    os.environ.update(server.environment())
    try:
        return len(stockpot.open("s3://b/out")) > 0
    except stockpot.errors.CheckpointError:
        return False


def _n_uploaded(server: Server, begun: int, name: str) -> int:
    return sum(f"/b/{name}" in line and "partNumber" in line for line in server.requests[begun:])


def _until(reached: Any, process: subprocess.Popen[Any]) -> None:
    for _ in range(600_000):
        if reached() or process.poll() is not None:
            return
        time.sleep(0.001)


def run_client(kind: str, n_bytes: int) -> None:
    """One client: ranges of 8 MiB by eight threads, and a multipart upload in parts of 8 MiB."""
    ranges = [(a, min(a + STEP, n_bytes)) for a in range(0, n_bytes, STEP)]
    block, begun = os.urandom(STEP), time.perf_counter()
    if kind == "obstore":
        import obstore
        from obstore.store import S3Store

        store = S3Store("b", client_options={"allow_http": True})

        def get(span: tuple[int, int]) -> int:
            return len(obstore.get(store, "big/file", options={"range": span}).bytes())

        def put() -> None:
            pieces = (block for _ in ranges)
            obstore.put(store, "up/obstore", pieces, chunk_size=STEP, max_concurrency=8)
    else:
        import s3fs

        there = s3fs.S3FileSystem(
            endpoint_url=os.environ["AWS_ENDPOINT_URL"], key="x", secret="y", max_concurrency=8
        )

        def get(span: tuple[int, int]) -> int:
            return len(there.cat_file("b/big/file", start=span[0], end=span[1]))

        def put() -> None:
            with there.open("b/up/s3fs", "wb", block_size=STEP) as file:
                for _ in ranges:
                    file.write(block)

    imported, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(get, ranges)) == n_bytes
    read, cpu_read = time.perf_counter(), time.process_time()
    put()
    written, cpu_written = time.perf_counter(), time.process_time()
    print(
        f"{kind:8} start {imported - begun:.2f} s | "
        f"read {n_bytes / (read - imported) / 1e9:.2f} GB/s, CPU {cpu_read - cpu:.2f} s | "
        f"write {n_bytes / (written - read) / 1e9:.2f} GB/s, CPU {cpu_written - cpu_read:.2f} s"
    )


def clients(data: Path, *, n_bytes: int, repeat: int, python: str) -> None:
    """obstore and s3fs in turns."""
    (data / "big").mkdir(parents=True)
    with (data / "big" / "file").open("wb") as file:
        for at in range(0, n_bytes, STEP):
            file.write(os.urandom(min(STEP, n_bytes - at)))
    with store_process(data / "store", {"b/big": data / "big"}) as endpoint:
        for _ in range(repeat):
            for kind in ("obstore", "s3fs"):
                command = [python, __file__, "client", kind, str(n_bytes)]
                subprocess.run(command, env=environment(endpoint, data), check=True)


def main() -> None:
    """Run what the command line asks for."""
    if sys.argv[1:2] == ["copy"]:
        return run_copy(sys.argv[2], sys.argv[4:], int(sys.argv[3]))
    if sys.argv[1:2] == ["client"]:
        return run_client(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["average", "faults", "kills", "nodes", "ray", "clients"])
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--size", type=parse_bytes, default=parse_bytes("1GB"))
    parser.add_argument("--rate", type=parse_bytes, help="of each line; nodes: 30MB by default")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--python", default=sys.executable)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.data) as name:
        data, load = Path(name), os.getloadavg()[0]
        if given.what == "clients":
            clients(data, n_bytes=given.size, repeat=given.repeat, python=given.python)
            return None
        if given.what == "average":
            found = rates(
                data, models=given.models, n_bytes=given.size, repeat=given.repeat, rate=given.rate
            )
        elif given.what == "faults":
            found = faults(data, models=given.models, n_bytes=given.size)
        elif given.what in ("nodes", "ray"):
            compare = nodes if given.what == "nodes" else ray_nodes
            rate = given.rate or parse_bytes("30MB")
            found = compare(data, models=given.models, n_bytes=given.size, rate=rate)
        else:
            found = kills(data, models=given.models, n_bytes=given.size)
    print(json.dumps({**found, "load_before": load}, indent=2))
    return None


if __name__ == "__main__":
    main()
