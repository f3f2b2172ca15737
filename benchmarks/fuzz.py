"""Damaged and hostile files of every kind that the pack reads: each must end in a clear sentence or a harmless load.

A child process loads one mutated file after another; it may not talk to the network, start a process, run what lies in
a model's folder, take more than 20 s or more than 2 GiB. The parent counts, and starts the child again behind a file
that killed or stopped it. Kinds that need a package this Python lacks are named and left out.

Seconds are those in which the loader computed or waited for anything but a processor. On a busy machine an OpenCLIP
file's half a second of computing takes 25 s by the clock, because other programs come first; that is no hang. A loader
that sleeps, waits for an answer or for a lock is not excused. Linux only: seconds and peak memory are read from /proc.

    python benchmarks/fuzz.py --mutations 4000
    python benchmarks/fuzz.py --only "CLIP folder" --mutations 200
    python benchmarks/fuzz.py --replay 123              # one mutation of that seed, with its traceback
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

SECONDS, GIB = 20.0, 2**30
PEAK, ADDRESS_SPACE = 2 * GIB, 4 * GIB
SENTENCE, LOADED = "sentence", "loaded"
BAD = ("other exception", "hang", "memory", "crash", "forbidden")
OUTCOMES = (SENTENCE, LOADED, *BAD)
GRACE = 5.0  # seconds more, after which the parent stops a child that has not come back
FIRST_LOAD = 240.0  # seconds: libraries are imported then
FARTHEST = 1800.0  # seconds by the clock, after which nobody waits any longer, whatever the reason
LONGEST_SENTENCE = 500
STACK = "stack.txt"
#: Of a slow kind, how many mutations there are for one of a fast kind.
SLOW_SHARE = 0.2
#: Audit events that no loader may cause. https://docs.python.org/3/library/audit_events.html
FORBIDDEN = (
    "socket.__new__", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.fork",
    "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn", "urllib.Request", "webbrowser.open", "builtins.input",
)  # fmt: skip


# The child
# ----------------------------------------------------------------------------------------------------------------


class Watch:
    """An audit hook, which cannot be taken out again: it looks only while ``folder`` is set."""

    def __init__(self) -> None:
        self.folder, self.seen = "", []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        """Note what is forbidden."""
        if not self.folder:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}"[:200])
        elif event in ("import", "compile", "exec", "marshal.loads"):
            names = [getattr(part, "co_filename", part) for part in arguments]
            self.seen += [f"{event} of {name}" for name in names if isinstance(name, str) and self.folder in name]


def chosen(samples: dict, seed: int, index: int) -> tuple[str, random.Random]:
    """Which kind is mutated in a run's ``index``-th try, and the numbers to do it with."""
    rng, names = random.Random(f"{seed} {index}"), list(samples)
    if index < len(names):  # each once, then as often as its cost allows
        return names[index], rng
    return rng.choices(names, [SLOW_SHARE if sample.slow else 1.0 for sample in samples.values()])[0], rng


def original(samples: dict, name: str, home: Path) -> tuple[Path, Path]:
    """``(folder, what a loader is given in it)`` of an undamaged sample, made when it is first needed."""
    folder = home / "".join(character if character.isalnum() else "_" for character in name)
    note = home / f"{folder.name}.path"
    if not note.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(str(samples[name].make(folder).relative_to(folder)))
    return folder, folder / note.read_text()


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def waited(process: int | str = "self") -> float:
    """Seconds in which a process's main thread could have run, and other programs had the processors; 0 where the
    kernel does not count them. https://docs.kernel.org/scheduler/sched-stats.html"""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out somewhere on the way to an error, also where a loader made a sentence of it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, MemoryError) or "enough memory" in str(error) or "allocate memory" in str(error):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def tried(sample: Any, path: Path, watch: Watch, folder: Path) -> dict[str, Any]:
    """Load one file; what came out, its seconds without those of other programs, and its peak in bytes."""
    from semantic_editing.core.errors import EditingError

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = status("VmRSS"), time.perf_counter() - waited()
    outcome, said, watch.seen, watch.folder = LOADED, "", [], str(folder)
    try:
        sample.load(path)
    except EditingError as error:
        outcome, said = SENTENCE, str(error)
        if is_out_of_memory(error):
            outcome = "memory"
        elif (
            not said.isprintable()
            or len(said) > LONGEST_SENTENCE
            or str(folder) in said
            or not said[-1:].isalnum() | (said[-1:] in ".)")
        ):
            outcome, said = "other exception", f"an unclear sentence: {said!r}"
    except BaseException as error:
        outcome = "memory" if is_out_of_memory(error) else "other exception"
        said = "".join(traceback.format_exception(error))
    watch.folder = ""
    seconds, peak = time.perf_counter() - waited() - start, status("VmHWM") - before
    if peak > PEAK:
        outcome = "memory"
    elif watch.seen or list(folder.rglob("*.ran")):
        outcome, said = "forbidden", "; ".join(watch.seen)
    elif seconds > SECONDS:
        outcome = "hang"
    return {"outcome": outcome, "said": said[-3000:], "seconds": seconds, "peak": peak}


def child(options: argparse.Namespace) -> None:
    """Try the mutations from ``start`` on; a line of JSON before and after each."""
    import resource

    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is not a report
    watch = Watch()

    import torch

    from semantic_editing.benchmarks.fuzz_mutations import spoil

    torch.set_num_threads(1)
    samples = available(options.only)[0]
    ready: set[str] = set()
    for index in range(options.start, options.mutations):
        name, rng = chosen(samples, options.seed, index)
        first = name not in ready
        if first:
            print(json.dumps({"begin": index, "kind": name, "limit": FIRST_LOAD}), file=report, flush=True)
            folder, path = original(samples, name, options.home)
            samples[name].load(path)  # imports what it needs; and a sample that does not load tests nothing
            ready.add(name)
        folder, path = original(samples, name, options.home)
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / "x"
            shutil.copytree(folder, copy)
            target = copy / path.relative_to(folder)
            how = spoil(rng, target)
            print(
                json.dumps({"begin": index, "kind": name, "how": how, "limit": SECONDS + GRACE}),
                file=report,
                flush=True,
            )
            resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + ADDRESS_SPACE, resource.RLIM_INFINITY))
            with (options.home / STACK).open("w") as stack:  # where it stands, should it hang
                faulthandler.dump_traceback_later(SECONDS, repeat=True, file=stack)
                result = tried(samples[name], target, watch, copy)
                faulthandler.cancel_dump_traceback_later()
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(json.dumps({"end": index, "kind": name, "how": how, **result}), file=report, flush=True)


def available(only: list[str]) -> tuple[dict, dict[str, str]]:
    """``(samples, kind -> the package that it lacks)``."""
    from semantic_editing.benchmarks.fuzz_samples import SAMPLES

    wanted = {name: sample for name, sample in SAMPLES.items() if not only or name in only}
    lacking = {name: sample.missing() for name, sample in wanted.items() if sample.missing()}
    return {name: sample for name, sample in wanted.items() if name not in lacking}, lacking


# The parent
# ----------------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All mutations, one result each; the child is started as often as needed."""
    results: list[dict[str, Any]] = []
    start = 0
    while start < options.mutations:
        command = [
            sys.executable, __file__, "--child", "--start", str(start), "--mutations", str(options.mutations),
            "--seed", str(options.seed), "--home", str(options.home),
        ]  # fmt: skip
        command += ["--only", *options.only] if options.only else []
        with (options.home / "stderr.txt").open("a") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        try:
            start = follow(process, start, results, options.home)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
    return results


def follow(process: subprocess.Popen, start: int, results: list[dict[str, Any]], home: Path) -> int:
    """Read a child's reports until it ends or has to be stopped; the number of the next mutation."""
    begun: dict[str, Any] = {"begin": start, "kind": "?", "limit": FIRST_LOAD}
    buffer, limit = b"", FIRST_LOAD
    since, excused = time.monotonic(), waited(process.pid)
    while True:
        clock = time.monotonic() - since
        left = min(limit - clock + waited(process.pid) - excused, FARTHEST - clock)
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, left))
        if not readable and left > 0:  # was it the child's own time? it may have waited for a processor meanwhile
            continue
        data = os.read(process.stdout.fileno(), 65536) if readable else b""
        if not data:
            if readable and process.wait() == 0:
                return sys.maxsize
            outcome = "crash" if readable else "hang"
            stack = home / STACK
            where = stack.read_text().rpartition("!\n")[2] if stack.is_file() else ""  # the last of several
            said = f"exit code {process.returncode}" if readable else f"not back after {clock:.0f} s\n{where}"
            results.append(
                {"end": begun["begin"], **begun, "outcome": outcome, "said": said, "seconds": 0.0, "peak": 0}
            )
            return begun["begin"] + 1
        *lines, buffer = (buffer + data).split(b"\n")
        for line in map(json.loads, lines):
            if "begin" in line:
                begun, limit = line, line["limit"]
            else:
                results.append(line)
                limit = FIRST_LOAD
            since, excused = time.monotonic(), waited(process.pid)


def table(results: list[dict[str, Any]], lacking: dict[str, str]) -> str:
    """Markdown: what came out, by kind and in all."""
    lines = [f"| kind | {' | '.join(OUTCOMES)} | longest, s | peak, MiB |", "|---" * (len(OUTCOMES) + 3) + "|"]
    for name in [*dict.fromkeys(result["kind"] for result in results), "all"]:
        own = [result for result in results if name in ("all", result["kind"])]
        counts = Counter(result["outcome"] for result in own)
        longest, peak = (max(result[key] for result in own) for key in ("seconds", "peak"))
        cells = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {name} | {cells} | {longest:.2f} | {peak / 2**20:.0f} |")
    lines += [f"\nNot tried without {package}: {name}." for name, package in lacking.items()]
    return "\n".join(lines)


def replay(options: argparse.Namespace) -> None:
    """One mutation in this process, its file kept."""
    from semantic_editing.benchmarks.fuzz_mutations import spoil

    samples = available(options.only)[0]
    name, rng = chosen(samples, options.seed, options.replay)
    folder, path = original(samples, name, options.home)
    copy = options.home / "replayed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    target = copy / path.relative_to(folder)
    print(f"{name}: {spoil(rng, target)}, in {target}")
    print(samples[name].load(target))


def main() -> None:
    """Run, print the table and every bad outcome, and end with 1 if there was one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND", help="these kinds of file alone")
    parser.add_argument("--out", type=Path, help="where to write all results as JSON")
    parser.add_argument("--replay", type=int, metavar="NUMBER", help="this mutation alone, with its traceback")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help="folder for the undamaged files (default: a temporary one)")
    options = parser.parse_args()
    if options.child:
        return child(options)
    with tempfile.TemporaryDirectory() as temporary:
        options.home = options.home or Path(temporary)
        options.home.mkdir(parents=True, exist_ok=True)
        if options.replay is not None:
            return replay(options)
        start = time.monotonic()
        results = run(options)
    lacking = available(options.only)[1]
    bad = [result for result in results if result["outcome"] in BAD]
    if options.out:
        figures = {"results": results, "lacking": lacking, "seconds": time.monotonic() - start}
        options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(table(results, lacking))
    for result in bad:
        print(f"\n{result['outcome']}: number {result['end']}, {result['kind']}, {result.get('how')}\n{result['said']}")
    print(f"\n{len(results)} mutations, {len(bad)} bad, {time.monotonic() - start:.0f} s")
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
