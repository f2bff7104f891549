#!/usr/bin/env python3
"""Runs a model file a number of times with one thread, with a marker around every run that a QEMU plugin sees.

    qemu-aarch64 -plugin insn_count.so,out=counts.txt /usr/bin/python3 count.py --model tflite:a.tflite --runs 5

Between the first markers nothing is done, which gives the cost of a marker itself. Stands beside runner.py.
"""

import argparse
import gc
import importlib.util
import os
import sys

#: A file descriptor that no program has; insn_count.c knows it.
MARKER = -0xED6E
#: Markers before the runs, with nothing in between.
MARKERS = 20


def load_runner():
    """The module runner.py beside this file."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "runner.py")
    spec = importlib.util.spec_from_file_location("runner", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mark():
    try:  # noqa: SIM105 (a context manager would cost more instructions than the marker)
        os.lseek(MARKER, 0, 0)
    except OSError:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="RUNTIME:FILE")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    parser.add_argument("--warmup", type=int, default=2, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--runtime-module", metavar="PACKAGE")
    arguments = parser.parse_args()
    arguments.threads, arguments.inputs = 1, None
    runner = load_runner()
    try:
        _, runtime = runner.import_runtime(0, arguments.model, arguments.runtime_module)
        session = runner.open_session(0, arguments.model, arguments)
        session.set(runner.feed_of(session, 0, arguments))
        gc.disable()
        for _ in range(arguments.warmup):
            runner.invoke_once(session, 0)
        for _ in range(MARKERS):  # Python makes a function quicker while it is called the first times
            mark()
        for _ in range(arguments.runs):
            session.invoke()
            mark()
    except runner.Failure as exc:
        sys.stderr.write("error: " + exc.message + "\n")
        return 1
    print(runtime.package, runtime.version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
