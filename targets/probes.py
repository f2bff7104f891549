"""What a Linux machine says about itself: cores, clocks, temperatures, throttling, load, memory.

Needs Python 3.7 and its standard library only; runner.py beside this file loads it. Everything is read below ``root``,
so that a copy of another machine's /proc and /sys can be read too. Whatever a machine does not tell is None or empty:
no probe fails.
"""

import contextlib
import functools
import glob
import operator
import os
import re
import subprocess
import threading
import time

#: Bits of the Raspberry Pi's get_throttled (https://www.raspberrypi.com/documentation/computers/os.html#get_throttled).
THROTTLED_BITS = {
    0: "under-voltage now",
    1: "frequency capped now",
    2: "throttled now",
    3: "soft temperature limit now",
    16: "under-voltage has occurred since boot",
    17: "the frequency has been capped since boot",
    18: "throttling has occurred since boot",
    19: "the soft temperature limit has been reached since boot",
}
#: ARM's own cores by "CPU part" of /proc/cpuinfo (implementer 0x41), and a rank: the larger, the bigger the core.
ARM_CORES = {
    "0xc07": ("Cortex-A7", 1), "0xd04": ("Cortex-A35", 1), "0xd03": ("Cortex-A53", 2), "0xd05": ("Cortex-A55", 2),
    "0xd46": ("Cortex-A510", 2), "0xd80": ("Cortex-A520", 2), "0xd07": ("Cortex-A57", 3), "0xd08": ("Cortex-A72", 4),
    "0xd09": ("Cortex-A73", 5), "0xd0a": ("Cortex-A75", 6), "0xd0b": ("Cortex-A76", 7), "0xd0c": ("Neoverse-N1", 7),
    "0xd0d": ("Cortex-A77", 8), "0xd41": ("Cortex-A78", 9), "0xd42": ("Cortex-A78AE", 9), "0xd47": ("Cortex-A710", 9),
    "0xd4d": ("Cortex-A715", 9), "0xd81": ("Cortex-A720", 9), "0xd44": ("Cortex-X1", 10), "0xd48": ("Cortex-X2", 11),
    "0xd4e": ("Cortex-X3", 12), "0xd82": ("Cortex-X4", 13),
}  # fmt: skip
#: Cores of other makers: (implementer, part).
OTHER_CORES = {
    ("0x4e", "0x003"): ("Denver 2", 6), ("0x4e", "0x004"): ("Carmel", 7),
    ("0x51", "0x205"): ("Kryo Gold", 5), ("0x51", "0x201"): ("Kryo Silver", 4), ("0x51", "0x211"): ("Kryo Silver", 4),
    ("0x51", "0x800"): ("Kryo 2xx Gold", 5), ("0x51", "0x801"): ("Kryo 2xx Silver", 2),
    ("0x51", "0x802"): ("Kryo 3xx Gold", 6), ("0x51", "0x803"): ("Kryo 3xx Silver", 2),
    ("0x51", "0x804"): ("Kryo 4xx Gold", 7), ("0x51", "0x805"): ("Kryo 4xx Silver", 2),
}  # fmt: skip
CPU = "sys/devices/system/cpu/"
#: Where the Raspberry Pi's kernel tells the same bits; newer ones tell there what some driver saw last, and complain.
THROTTLED_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def run_program(command):
    """What a program prints, or None where there is no such program or it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


class Probes:
    """The machine whose /proc and /sys lie below ``root``. ``program`` runs a command and gives what it printed."""

    def __init__(self, root="/", program=run_program):
        self.root = root
        self.program = program
        self.has_vcgencmd = None  # not known yet
        self.known_zones = None

    def read(self, path):
        """A small text file of the kernel, stripped; None where it is not there or cannot be read."""
        try:
            with open(os.path.join(self.root, path), errors="replace") as stream:
                return stream.read().strip(" \n\0")
        except (OSError, ValueError):
            return None

    def number(self, path):
        """A file with one integer; None for anything else."""
        text = self.read(path)
        return int(text) if text and re.match(r"^-?\d+$", text) else None

    def paths(self, pattern):
        """The paths below the root that match, in the order of the numbers in them."""
        found = glob.glob(os.path.join(glob.escape(self.root), pattern))
        relative = [os.path.relpath(path, self.root) for path in found]
        return sorted(relative, key=lambda path: [int(n) for n in re.findall(r"\d+", path)])

    # ------------------------------------------------------------------------------------------------- the cores

    def processors(self):
        """The blocks of /proc/cpuinfo, one a processor, then what stands for all: (list of dicts, dict)."""
        blocks, common = [], {}
        for block in re.split(r"\n\s*\n", self.read("proc/cpuinfo") or ""):
            fields = {}
            for line in block.splitlines():
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
            if "processor" in fields:
                blocks.append(fields)
            for key, value in fields.items():
                common.setdefault(key, value)
        return blocks, common

    def cores(self):
        """CPU number -> (name of the core, rank), for ARM; old kernels tell one core for all."""
        blocks, common = self.processors()
        found = {}
        for fields in blocks:
            part = fields.get("CPU part", common.get("CPU part"))
            if part and fields["processor"].isdigit():
                maker = fields.get("CPU implementer", common.get("CPU implementer", "0x41"))
                unknown = ("part " + part, 0)
                core = ARM_CORES.get(part, unknown) if maker == "0x41" else OTHER_CORES.get((maker, part), unknown)
                found[int(fields["processor"])] = core
        return found

    def cpu(self):
        """The CPU's name and its instruction-set flags."""
        _, common = self.processors()
        names = []
        for _, (name, _) in sorted(self.cores().items()):
            if name not in names:
                names.append(name)
        arm = " + ".join(names)
        # Of ARM cores, old kernels give "ARMv8 Processor rev 1 (v8l)" for a name.
        known = [name for name in names if not name.startswith("part ")]
        model = (arm if known else common.get("model name") or arm) or common.get("Hardware") or ""
        return {"model": model, "flags": (common.get("flags") or common.get("Features") or "").split()}

    def device(self):
        """The board's name from the device tree; old kernels tell it in /proc/cpuinfo alone."""
        return self.read("proc/device-tree/model") or self.processors()[1].get("Model")

    def clusters(self):
        """Groups of CPUs that share a clock, the biggest first; empty where the machine does not tell clocks."""
        cores = self.cores()
        found = []
        for folder, cpus in self.policies():
            capacities = [self.number(CPU + f"cpu{cpu}/cpu_capacity") for cpu in cpus]
            known = [capacity for capacity in capacities if capacity is not None]
            names = sorted({cores[cpu][0] for cpu in cpus if cpu in cores})
            cluster = {"cpus": cpus, "core": " + ".join(names) or None, "capacity": max(known) if known else None}
            found.append(dict(cluster, **self.clock(folder)))
        return sorted(found, key=lambda one: min(self.preference(cpu, cores) for cpu in one["cpus"]))

    def policies(self):
        """(folder, CPUs) of each clock; without policy folders, each CPU has its own."""
        found = []
        for folder in self.paths(CPU + "cpufreq/policy*"):
            cpus = cpu_list(self.read(folder + "/related_cpus") or self.read(folder + "/affected_cpus") or "")
            if cpus:
                found.append((folder + "/", cpus))
        if found:
            return found
        return [(path + "/", cpu_list(re.findall(r"cpu(\d+)", path)[-1])) for path in self.paths(CPU + "cpu*/cpufreq")]

    def clock(self, folder):
        """Governor and frequencies in MHz: now, the lowest and highest possible, and the highest allowed at present."""
        names = {"mhz": "scaling_cur_freq", "min_mhz": "cpuinfo_min_freq", "max_mhz": "cpuinfo_max_freq",
                 "allowed_mhz": "scaling_max_freq"}  # fmt: skip
        found = {"governor": self.read(folder + "scaling_governor")}
        for key, name in names.items():
            khz = self.number(folder + name)
            found[key] = None if khz is None else khz / 1000.0
        return found

    def preference(self, cpu, cores=None):
        """A sort key: big cores, the first hardware thread of a core, and not CPU 0, which serves interrupts."""
        root = CPU + f"cpu{cpu}/"
        size = self.number(root + "cpu_capacity") or 0
        fastest = self.number(root + "cpufreq/cpuinfo_max_freq") or 0
        for folder, cpus in self.policies() if not fastest else ():
            if cpu in cpus:
                fastest = self.number(folder + "cpuinfo_max_freq") or 0
        rank = (self.cores() if cores is None else cores).get(cpu, ("", 0))[1]
        siblings = re.split("[,-]", self.read(root + "topology/thread_siblings_list") or str(cpu))
        return -size, -rank, -fastest, siblings[0] != str(cpu), -cpu

    def biggest(self, allowed, count):
        """The ``count`` CPUs to measure on, of those allowed."""
        cores = self.cores()
        return sorted(sorted(allowed, key=lambda cpu: self.preference(cpu, cores))[:count])

    # ------------------------------------------------------------------------------------------------- what changes

    def state(self, cpus):
        """What may change while measuring. ``cpus`` are those that the measurement runs on."""
        clusters = self.clusters()
        ours = [one for one in clusters if set(one["cpus"]) & set(cpus)] or clusters
        clocks = [one["mhz"] for one in ours if one["mhz"] is not None]
        if not clocks:
            clocks = [float(mhz) for mhz in re.findall(r"cpu MHz\s*: ([\d.]+)", self.read("proc/cpuinfo") or "")]
        real = self.firmware_mhz()
        governors = sorted({one["governor"] for one in ours if one["governor"]})
        return {
            "load": self.load(),
            "frequency_mhz": real or (max(clocks) if clocks else None),
            "governor": " ".join(governors) or None,
            "temperature_c": self.temperature(),
            "memory_available_bytes": self.memory_available(),
            "throttled": self.throttled(),
            "cooling": self.cooling(),
            "clusters": clusters,
        }

    def load(self):
        """The load average of the last minute."""
        fields = (self.read("proc/loadavg") or "").split()
        try:
            return float(fields[0]) if fields else os.getloadavg()[0]
        except (OSError, AttributeError, ValueError):
            return None

    def memory_available(self):
        """Bytes that programs can still have without swapping; kernels before 3.14 tell the unused ones only."""
        text = self.read("proc/meminfo") or ""
        for field in ("MemAvailable", "MemFree"):
            match = re.search(field + r":\s+(\d+) kB", text)
            if match:
                return 1024 * int(match.group(1))
        return None

    def zones(self):
        """(folder, type) of each thermal zone, the CPU's own first: found once, since phones have a hundred."""
        if self.known_zones is None:
            every = [(f, self.read(f + "/type") or "") for f in self.paths("sys/class/thermal/thermal_zone*")]
            # What Qualcomm calls "soc" is not the chip but the battery's state of charge.
            ours = [zone for zone in every if re.search("cpu|soc|x86_pkg", zone[1].lower()) and zone[1] != "soc"]
            self.known_zones = (ours, [zone for zone in every if zone not in ours and zone[1] != "soc"])
        return self.known_zones

    def celsius(self, folder):
        """The temperature of a zone; None where it is switched off, which shows as 0 or less, or cannot be read."""
        value = self.number(folder + "/temp")
        if not value:
            return None
        # Thousandths by the kernel's rules, but some phones' drivers tell whole degrees.
        celsius = value / 1000.0 if abs(value) >= 1000 else float(value)
        return celsius if 0 < celsius < 150 else None

    def temperature(self):
        """The hottest of the CPU's thermal zones, or of all zones where none says it is the CPU's."""
        for zones in self.zones():
            found = [celsius for celsius in (self.celsius(folder) for folder, _ in zones) if celsius is not None]
            if found:
                return max(found)
        return None

    def vcgencmd(self, *words):
        """What the Raspberry Pi's firmware answers; None on other machines, which are asked once."""
        if self.has_vcgencmd is False:
            return None
        text = self.program(["vcgencmd", *words])
        # A program that answered before is there still, though it may be too slow for once.
        self.has_vcgencmd = self.has_vcgencmd or text is not None
        return text

    def throttled(self):
        """The Raspberry Pi's bits (THROTTLED_BITS), None on other machines."""
        text = self.vcgencmd("get_throttled") or self.read(THROTTLED_FILE)
        match = re.search(r"(?:^|=)(?:0x)?([0-9a-fA-F]{1,8})\s*$", text or "")
        return int(match.group(1), 16) if match else None

    def firmware_mhz(self):
        """The clock that a Raspberry Pi really has: its kernel tells the one it asked for, whatever is throttled.

        https://github.com/raspberrypi/linux/issues/2986
        """
        match = re.search(r"frequency\(\d+\)=(\d+)", self.vcgencmd("measure_clock", "arm") or "")
        return int(match.group(1)) / 1e6 if match else None

    def cooling(self):
        """How far each of the kernel's means that slow the CPU is turned up: type -> state; fans do not count."""
        found = {}
        for folder in self.paths("sys/class/thermal/cooling_device*"):
            kind, level = self.read(folder + "/type") or "", self.number(folder + "/cur_state")
            if level is not None and level > 0 and re.search("cpu|processor", kind.lower()):
                found[kind] = max(level, found.get(kind, 0))
        return found

    def clocks_of(self, cpus):
        """The folders of the clocks of some CPUs."""
        return [folder for folder, ours in self.policies() if set(ours) & set(cpus)]

    def sample(self, folders, programs=True):
        """The part of the state that is worth watching while measuring; `clocks_of` gives the folders.

        Without ``programs`` only files are read, and what a Raspberry Pi's firmware alone knows is None.
        """
        bits = self.throttled() if programs else None
        real = self.firmware_mhz() if programs else None
        clocks = [] if self.has_vcgencmd else [self.number(folder + "scaling_cur_freq") for folder in folders]
        known = [khz / 1000.0 for khz in clocks if khz is not None]
        return {
            "at_s": time.monotonic(),
            "frequency_mhz": real or (max(known) if known else None),
            "temperature_c": self.temperature(),
            "throttled": bits,
            "cooling": self.cooling(),
        }


def summary(passes):
    """Samples of several passes in one: what was usual, the extremes, how far the clock fell; None without samples.

    The clock's fall is that from the first third of a pass to the last, each by its fastest sample, since a sample may
    meet the moment between two processes.
    """
    samples = [one for each in passes for one in each]
    if not samples:
        return None
    clocks = sorted(one["frequency_mhz"] for one in samples if one["frequency_mhz"] is not None)
    celsius = [one["temperature_c"] for one in samples if one["temperature_c"] is not None]
    bits = [one["throttled"] for one in samples if one["throttled"] is not None]
    cooling = {}
    for one in samples:
        for kind, level in one["cooling"].items():
            cooling[kind] = max(level, cooling.get(kind, 0))
    return {
        "samples": len(samples),
        "clock_samples": len(clocks),
        "frequency_mhz": clocks[len(clocks) // 2] if clocks else None,
        "frequency_mhz_lowest": clocks[0] if clocks else None,
        "frequency_fall": max(fall(each) for each in passes),
        "temperature_c_highest": max(celsius) if celsius else None,
        "throttled": functools.reduce(operator.or_, bits) if bits else None,
        "cooling": cooling,
    }


def fall(samples):
    """The share of the clock lost between the first third of the samples and the last; 0 where it cannot be told."""
    clocks = [one["frequency_mhz"] for one in samples if one["frequency_mhz"] is not None]
    third = len(clocks) // 3
    return max(0.0, 1.0 - max(clocks[-third:]) / max(clocks[:third])) if third > 1 else 0.0


def cpu_list(text):
    """``0-2,5`` or ``0 1 2 5`` as [0, 1, 2, 5]."""
    found = []
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.match(r"^(\d+)(?:-(\d+))?$", part)
        if match:
            found += range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1)
    return found


class Watch:
    """Samples from a thread while a ``with`` block runs; ``samples`` holds what it saw, and ``tell`` gets each.

    The thread keeps to the CPUs that the measurement does not use, where there are any.
    """

    #: A program to start for each look costs milliseconds: not as often as files are read.
    PROGRAM_EVERY_S = 2.0

    def __init__(self, probes, cpus, others, every_s=0.5, tell=None):
        self.probes = probes
        self.folders = probes.clocks_of(cpus)
        self.others = others
        self.every_s = every_s
        self.tell = tell
        self.samples = []
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join()

    def look(self):
        if self.others and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self.others)  # of this thread alone
        due = time.monotonic()
        while not self.ending.wait(self.every_s):
            asked = time.monotonic() >= due
            if asked:
                due = time.monotonic() + self.PROGRAM_EVERY_S
            self.samples.append(self.probes.sample(self.folders, programs=asked))
            if self.tell is not None:
                self.tell(self.samples[-1])
