"""Compiles JSON schemas in a separate process first, where a slow or crashing compilation does no harm.

Run as a script, this file is that process; it imports llguidance and nothing of justright.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

CPU_SECONDS = 2
"""Processor seconds for one schema; the process rounds its total up to a whole second."""
MEMORY = 2**30
"""Address space of the process, in bytes."""
STACK = 2**20
"""Stack size in bytes; a schema nested too deeply for it crashes the process, and would crash a server."""
SPACED: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
}
"""JSON on one line, as models write it (if white space is free, a weak model writes nothing else)."""


class SchemaTrial:
    """The process, started on first use and again after it ends.

    Args:
        cpu_seconds: processor seconds for one schema.
    """

    def __init__(self, cpu_seconds: int = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def run(self, schema: str) -> str | None:
        """Compile a schema, given as JSON text; may take seconds.

        Returns:
            The schema's error; None if it is valid.
        """
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                self._discard()
                process = self._process = self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(schema) + "\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                self._discard()
                if process.returncode == -signal.SIGXCPU:
                    return f"compiling it takes more than {self._cpu_seconds} s: simplify it"
                return "compiling it fails, because it nests too deeply or needs too much memory: simplify it"
            found: str | None = json.loads(answer)
            return found

    def stop(self) -> None:
        """Stop the current compilation, from any thread; the next schema gets a new process."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop the process for good."""
        self.stop()
        with self._lock:
            self._discard()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", __file__, str(self._cpu_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def _discard(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(BrokenPipeError), process:  # exiting closes its pipes
                pass


def compiled(schema: str, tokens: LLTokenizer) -> LLMatcher:
    """Return the llguidance matcher of a schema, given as JSON text.

    Raises:
        ValueError: the schema is invalid, or no answer to it can end; the message is one line.
    """
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=SPACED)
    except RecursionError as error:
        raise ValueError("it nests too deeply: simplify it") from error
    matcher = LLMatcher(tokens, grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(first_line(matcher.get_error()))
    matcher.compute_bitmask()  # copies keep this result, which takes up to 0.4 s
    begun = matcher.deep_copy()
    forced = begun.compute_ff_tokens()  # the tokens that begin every answer: infinitely many in some schemas
    begun.consume_tokens(forced)
    begun.compute_bitmask()
    if begun.is_error():
        raise ValueError(f"no answer can begin ({first_line(begun.get_error())}): simplify it")
    return matcher


def first_line(error: str) -> str:
    """Return the first line of a llguidance message, which may continue with the parser's state."""
    return error.strip().partition("\n")[0]


def _serve(cpu_seconds: int) -> None:
    """Read a schema from each line of stdin, and answer it with a line."""
    import os
    import resource

    from llguidance import LLTokenizer

    os.nice(10)
    with contextlib.suppress(ValueError, OSError):  # a lower limit is set already, or the system has none
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK)
    tokens = LLTokenizer("byte")

    def answer(line: str) -> None:
        fault = None
        try:
            compiled(json.loads(line), tokens)
        except ValueError as error:
            fault = str(error)
        except BaseException:  # out of memory, or a panic in llguidance: the caller sees the process end
            os._exit(1)
        print(json.dumps(fault), flush=True)

    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds
        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (limit if most < 0 else min(limit, most), most))
        thread = threading.Thread(target=answer, args=(line,))
        thread.start()
        thread.join()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
