"""What this process may use of the machine: `make` asks before there is an environment, so the standard library is all.

A hub or a batch system lends some cores and some memory of a large node.
"""

import os
from pathlib import Path

CHAPTER = 1.5 * 2**30  # bytes: a chapter with TensorFlow and its samples


def _limits(variable: str, *files: str) -> list[float]:
    """Numbers of an environment variable and of files of the control group, where there are some."""
    texts = [os.environ.get(variable, "")]
    for file in files:
        try:
            texts.append(Path(file).read_text(encoding="ascii"))
        except OSError:
            continue
    found = []
    for text in texts:
        try:  # one number, or a quota and its period
            words = [float(word) for word in text.split()]
        except ValueError:  # "max" is no limit
            continue
        found += [words[0] / words[-1] if words[1:] else words[0]] if words else []
    return [limit for limit in found if limit > 0]


def cores() -> int:
    """Cores lent to this process: by affinity, by its control group, and by what a hub says."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = _limits("CPU_LIMIT", "/sys/fs/cgroup/cpu.max")
    return max(1, int(min([usable, *limits])))


def memory() -> float:
    """Bytes of memory lent to this process, infinite where nobody says."""
    limits = _limits("MEM_LIMIT", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return min(limits, default=float("inf"))


def chapters() -> int:
    """Chapters that may run side by side: one a core, as far as the memory reaches."""
    return int(max(1, min(cores(), memory() // CHAPTER)))


if __name__ == "__main__":
    print(chapters())
