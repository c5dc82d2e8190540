"""The real pynvml over a small `libnvidia-ml.so.1` of our own: what the driver says is told by a text file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

COMPILER = shutil.which("gcc") or shutil.which("cc")

LIBRARY = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef void *device;
/* NVML_SCRIPT holds lines "function number code value"; functions that it does not name are not supported. */
static int ask(const char *function, int number, unsigned long long *value) {
    FILE *file = fopen(getenv("NVML_SCRIPT"), "r");
    char name[64]; int which, code, found = 3; unsigned long long told;
    while (file && fscanf(file, "%63s %d %d %llu", name, &which, &code, &told) == 4)
        if (!strcmp(name, function) && which == number) { found = code; *value = told; }
    if (file) fclose(file);
    return found;
}
int nvmlInitWithFlags(unsigned flags) { unsigned long long v; return ask("init", 0, &v); }
int nvmlInit_v2(void) { unsigned long long v; return ask("init", 0, &v); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "some error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { unsigned long long v = 0; int c = ask("count", 0, &v); *count = v; return c; }
int nvmlDeviceGetHandleByIndex_v2(unsigned number, device *handle) { *handle = (device)(unsigned long)(number + 1); return 0; }
static int number_of(device handle) { return (int)(unsigned long)handle - 1; }
int nvmlDeviceGetUUID(device handle, char *uuid, unsigned size) { snprintf(uuid, size, "GPU-%d", number_of(handle)); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(device handle, unsigned long long *mj) { return ask("energy", number_of(handle), mj); }
int nvmlDeviceGetPowerUsage(device handle, unsigned *mw) {
    unsigned long long v = 0; int c = ask("power", number_of(handle), &v); *mw = v; return c; }
int nvmlDeviceGetPowerManagementDefaultLimit(device handle, unsigned *mw) { *mw = 700000; return 0; }
"""

DRIVER = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    from datalocal.metering import MeterAccumulator, joules

    class Clock:
        now = 0.0
        def __call__(self):
            return self.now

    clock, looks = Clock(), json.loads(sys.argv[1])
    script = Path(sys.argv[2])
    script.write_text(looks[0][1])
    meters = MeterAccumulator(powercap_root=Path("/nowhere"), virtual=False, clock=clock, watch=False)
    first = last = meters.read()
    for at, text in looks[1:]:
        clock.now = at
        script.write_text(text)
        last = meters.read()
    rows = joules({"h": first}, {"h": last}, stage="s", nodes={"h": ["n"]})
    print(json.dumps({"poll": meters.poll_seconds, "rows": [row.to_json() for row in rows], "gpus": last["gpus"]}))
    meters.close()
    """
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the library."""
    if COMPILER is None:
        pytest.skip("no C compiler on this machine")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(LIBRARY)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"], check=True)
    return folder


def look(folder: Path, tmp_path: Path, *looks: tuple[float, str]) -> dict[str, Any]:
    """What is measured when the driver says these texts at these times."""
    script = tmp_path / "script"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(looks), str(script)],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "NVML_SCRIPT": str(script)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def gpu_rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["component"]: row for row in found["rows"] if row["component"].startswith("gpu")}


UP = "init 0 0 0\ncount 0 0 2\n"


def test_energy_counters_become_joules_by_uuid(library: Path, tmp_path: Path) -> None:
    found = look(
        library, tmp_path,
        (0, UP + "energy 0 0 5000000\nenergy 1 0 100\n"),
        (10, UP + "energy 0 0 8000000\nenergy 1 0 1250100\n"),
    )  # fmt: skip
    assert {name: (row["joules"], row["origin"]) for name, row in gpu_rows(found).items()} == {
        "gpu GPU-0": (3000.0, "measured.counter"),
        "gpu GPU-1": (1250.0, "measured.counter"),
    }


def test_a_board_without_a_counter_is_sampled_for_its_power(library: Path, tmp_path: Path) -> None:
    texts = [
        (float(second), UP + f"energy 0 0 {second * 1000}\npower 1 0 {300000 + 1000 * second}\n") for second in range(5)
    ]
    found = look(library, tmp_path, *texts)
    row = gpu_rows(found)["gpu GPU-1"]
    assert (row["joules"], row["origin"]) == (pytest.approx(302.0 * 4), "measured.sampled")
    assert gpu_rows(found)["gpu GPU-0"]["origin"] == "measured.counter"
    assert found["poll"] == 1.0


def test_a_board_that_tells_nothing_is_missing(library: Path, tmp_path: Path) -> None:
    found = look(library, tmp_path, (0, "init 0 0 0\ncount 0 0 1\n"), (5, "init 0 0 0\ncount 0 0 1\n"))
    row = gpu_rows(found)["gpu GPU-0"]
    assert (row["joules"], row["origin"]) == (None, "missing")
    assert row["reason"].startswith("not_supported")


def test_a_gpu_that_falls_off_the_bus_keeps_what_was_read(library: Path, tmp_path: Path) -> None:
    found = look(
        library, tmp_path,
        (0, UP + "energy 0 0 1000\nenergy 1 0 1000\n"),
        (5, UP + "energy 0 0 901000\nenergy 1 0 901000\n"),
        (10, UP + "energy 0 15 0\nenergy 1 0 1901000\n"),
    )  # fmt: skip
    rows = gpu_rows(found)
    assert rows["gpu GPU-0"]["joules"] == 900.0
    assert rows["gpu GPU-0"]["reason"].startswith("lower bound, 50 % of the time covered: lost")
    assert rows["gpu GPU-1"]["joules"] == 1900.0


def test_a_driver_that_was_loaded_again_is_a_gap(library: Path, tmp_path: Path) -> None:
    one = "init 0 0 0\ncount 0 0 1\n"
    found = look(
        library, tmp_path,
        (0, one + "energy 0 0 9000000000\n"), (5, one + "energy 0 0 1000\n"), (10, one + "energy 0 0 501000\n"),
    )  # fmt: skip
    row = gpu_rows(found)["gpu GPU-0"]
    assert row["joules"] == 500.0
    assert "1 gap(s)" in row["reason"] and "reset" in row["reason"]


@pytest.mark.parametrize(("code", "reason"), [(4, "no_permission"), (999, "read_error")])
def test_a_driver_that_does_not_answer_is_missing_with_its_reason(
    library: Path, tmp_path: Path, code: int, reason: str
) -> None:
    found = look(library, tmp_path, (0, f"init 0 {code} 0\n"), (1, f"init 0 {code} 0\n"))
    (row,) = gpu_rows(found).values()
    assert (row["joules"], row["origin"]) == (None, "missing")
    assert row["reason"].startswith(reason)


def test_without_a_driver_there_is_no_gpu_and_none_is_missing(tmp_path: Path) -> None:
    code = (
        "import json; from pathlib import Path; from datalocal.metering import *\n"
        "a = MeterAccumulator(powercap_root=Path('/nowhere'), watch=False); s = a.read(); e = a.read()\n"
        "rows = joules({'h': s}, {'h': {**e, 'monotonic': s['monotonic'] + 1}}, stage='s', nodes={'h': ['n']})\n"
        "print(json.dumps([s['gpus'], [row.component for row in rows]]))"
    )
    empty = tmp_path / "libnvidia-ml.so.1"
    empty.write_text("no library")
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    gpus, components = json.loads(done.stdout)
    assert [(gpu["joules"], gpu["reason"].split(":")[0]) for gpu in gpus] == [(None, "no_gpu")]
    assert components == ["cpu"]
