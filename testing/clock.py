"""A clock of the day that one sets, for the processes that are started with it.

A small library, made by the machine's C compiler and loaded before all others, adds an offset to
what tells the time of day. What measures durations is left alone, as it is where a clock is set.
"""

from __future__ import annotations

import mmap
import shutil
import subprocess
from pathlib import Path

COMPILER = shutil.which("cc")
OFFSET = "CLOCK_OFFSET_FILE"
SOURCE = f"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

__attribute__((constructor)) static void open_offset(void) {{
    const char *path = getenv("{OFFSET}");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) offset = found;
    close(file);
}}

int clock_gettime(clockid_t clock, struct timespec *time) {{
    int failed = syscall(SYS_clock_gettime, clock, time);
    int of_day = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
    if (!failed && of_day && offset) time->tv_sec += *offset;
    return failed;
}}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {{
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    (void)zone;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return failed;
}}

time_t time(time_t *found) {{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found) *found = now.tv_sec;
    return now.tv_sec;
}}
"""


class Clock:
    """The clock of some processes; raises RuntimeError where there is no C compiler."""

    def __init__(self, folder: Path) -> None:
        if COMPILER is None:
            raise RuntimeError("There is no C compiler to make a clock with (Debian: gcc).")
        self._offset = folder / "offset"
        self._offset.write_bytes(bytes(8))
        source, self._library = folder / "clock.c", folder / "clock.so"
        source.write_text(SOURCE)
        command = [COMPILER, "-shared", "-fPIC", "-O2", "-o", str(self._library), str(source)]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def environment(self) -> dict[str, str]:
        """Return what a process is to be started with, for this to be its clock."""
        return {"LD_PRELOAD": str(self._library), OFFSET: str(self._offset)}

    def set(self, seconds: int) -> None:
        """Set it so many seconds ahead of the machine's."""
        with self._offset.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
            shared[:] = seconds.to_bytes(8, "little", signed=True)
