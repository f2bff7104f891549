"""Plays ``sudo -n``."""

from __future__ import annotations

import os
import sys

from host import record, settings

record("sudo")
if not settings().get("sudo", True):
    sys.exit("sudo: a password is required")
words = sys.argv[2:] if sys.argv[1] == "-n" else sys.argv[1:]
os.execvp(words[0], words)
