"""How much memory this process holds, and held at its peak; as the system counts it."""

import resource
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(field: str) -> int | None:
    """Returns a field of /proc/self/status in bytes, None where there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


def resident_bytes() -> int | None:
    """Returns what is resident now; None where the system does not tell."""
    return _status("VmRSS")


def reset_peak() -> bool:
    """Starts the peak anew from what is resident now; False where that is not possible."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return _status("VmHWM") is not None


def peak_bytes() -> int:
    """Returns the peak of resident memory since `reset_peak`, or of the whole process."""
    peak = _status("VmHWM")
    if peak is None:  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak
