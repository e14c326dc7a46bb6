"""The agent's loop: commands in, answers out."""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time

from repedge.devices.agent.clock import Bench
from repedge.devices.agent.engine import AgentError

MARK = "@repedge "


def main(arguments: list[str]) -> int:
    """Serve stdin, or run one request file."""
    sys.path[:] = [p for p in sys.path if p not in ("", os.getcwd())]  # never import from where we stand
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what runtimes print is no answer

    def say(message: dict) -> None:
        answers.write(MARK + json.dumps(message) + "\n")
        answers.flush()

    if arguments:
        with open(arguments[0], encoding="utf-8") as f:
            job = json.load(f)
        lines = [{"do": "open", **job}, {"do": "warm"}]
        lines += [{"do": "time", "runs": job["request"]["runs"], "prime": 0}, {"do": "finish"}]
        return serve(iter(lines), say)
    return serve(iter(_commands().get, None), say)


def _commands() -> queue.Queue:
    """Commands from stdin, read by a thread, so that its end is noticed in the middle of a run."""
    commands: queue.Queue = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            try:
                commands.put(json.loads(line))
            except ValueError:
                commands.put({"do": "garbage"})
        scratch = os.environ.get("REPEDGE_SCRATCH")  # the other side is gone: nothing here is worth finishing
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return commands


def answer(bench, command) -> dict:  # type: ignore[no-untyped-def]
    """What a command gives, once its artifact is open."""
    if bench is None:
        raise AgentError("nothing is loaded yet: the first command must be 'open'")
    if command["do"] == "open":
        return bench.summary()
    if command["do"] == "warm":
        return {"warmup_ms": bench.warm()}
    if command["do"] == "time":
        return {"samples_ms": bench.time(command["runs"], command["prime"])}
    if command["do"] == "finish":
        return {"profile": bench.finish()}
    raise AgentError("unknown command {!r}".format(command["do"]))


def serve(commands, say) -> int:  # type: ignore[no-untyped-def]
    """Answer each command; the first failure is the last answer."""
    bench = None
    last = [time.monotonic()]

    def progress(done: int) -> None:
        if time.monotonic() - last[0] > 1:  # a sign of life, between two runs
            last[0] = time.monotonic()
            say({"progress": done})

    for command in commands:
        try:
            if command["do"] == "open":
                bench = Bench(command["artifact"], command["request"], progress)
            say({"done": command["do"], **answer(bench, command)})
        except AgentError as e:
            say({"error": str(e), "kind": e.kind})
            return 1
        except MemoryError:
            say({"error": "out of memory", "kind": "runtime"})
            return 1
        except Exception as e:  # the other side must hear of it in any case
            say({"error": f"{type(e).__name__}: {e}", "kind": "runtime"})
            return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # runtimes' threads and destructors have nothing to add
