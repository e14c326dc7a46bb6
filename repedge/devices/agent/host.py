"""What can be read about the machine; everything that can't is None or empty."""

from __future__ import annotations

import glob
import os
import platform
import subprocess
import sys

_CPUS = "/sys/devices/system/cpu"


def read() -> dict:
    """The fields of HostInfo of repedge.devices.protocol, as they are now."""
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "model": _line("/proc/device-tree/model").strip("\0") or _line("/sys/class/dmi/id/product_name"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "affinity": affinity,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "governor": _line(f"{_CPUS}/cpu{(affinity or [0])[0]}/cpufreq/scaling_governor") or None,
        "mhz": _mhz((affinity or [0])[0]),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "temperature_before": _temperature(),
        "temperature_after": None,
    }


def peak_rss() -> int:
    """Most bytes that this process held in memory so far."""
    for line in _text("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read(1 << 20)
    except OSError:
        return ""


def _line(path: str) -> str:
    return _text(path).split("\n", 1)[0].strip()


def _cpu() -> str:
    if sys.platform == "darwin":
        try:
            return subprocess.run(
                ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
                capture_output=True,
                text=True,
                timeout=5,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return platform.processor()
    for line in _text("/proc/cpuinfo").splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _mhz(core: int) -> float | None:
    text = _line(f"{_CPUS}/cpu{core}/cpufreq/scaling_cur_freq")
    if text.isdigit():
        return int(text) / 1000
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2])
    return None


def _temperature() -> float | None:
    """The hottest of the CPU's thermal zones, degrees Celsius."""
    found = []
    for zone in glob.glob("/sys/class/thermal/thermal_zone*"):
        kind, text = _line(zone + "/type").lower(), _line(zone + "/temp")
        if (
            any(w in kind for w in ("cpu", "soc", "pkg", "package", "x86", "acpitz"))
            and text.lstrip("-").isdigit()
        ):
            found.append(int(text) / 1000)
    return max(found) if found else None
