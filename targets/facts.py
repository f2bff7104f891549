#!/usr/bin/env python3
"""What a machine is, and which runtimes it has, as JSON on standard output.

    python facts.py tflite onnxruntime

Needs Python 3.7 or later and its standard library only; probes.py and the backends lie beside this file.
"""

import importlib.util
import json
import os
import platform
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SCHEMA_VERSION = 1


def load(name, path):
    """A module from a file beside this one."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(HERE, path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runtime(name):
    """A runtime's package and version, or why it cannot be imported."""
    try:
        found = load("backend_" + name, os.path.join(name, "backend.py")).import_runtime()
    except ImportError as exc:  # numpy may be what is missing
        return {"error": str(exc).splitlines()[0]}
    return {"package": found.package, "version": found.version}


def main():
    host = load("probes", "probes.py").Probes()
    info = host.cpu()
    memory = re.search(r"MemTotal:\s+(\d+) kB", host.read("proc/meminfo") or "")
    facts = {
        "schema_version": SCHEMA_VERSION,
        "device": host.device() or platform.node(),
        "machine": platform.machine(),
        "core": info["model"] or platform.processor(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": 1024 * int(memory.group(1)) if memory else 0,
        "runtimes": {name: runtime(name) for name in sys.argv[1:]},
    }
    json.dump(facts, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
