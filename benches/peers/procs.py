"""Processes: start, stop, and what they used, from /proc."""
import os
import resource
import signal
import socket
import subprocess
import time

from material import BARE, BIN, RUN, UPSTREAM, UPTOKEN, Place
from rows import PORTS, ROWS

HZ = os.sysconf("SC_CLK_TCK")


def pin(cpus):
    def before_exec():
        os.setsid()
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
    return before_exec


def members(group):
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = open(f"/proc/{name}/stat").read()
            except OSError:
                continue
            fields = text[text.rindex(")") + 2:].split()
            if int(fields[2]) == group:
                yield int(name), fields


def cpu(group):
    """User and system seconds of all processes of a row."""
    user = system = 0
    for _, fields in members(group):
        user += int(fields[11])
        system += int(fields[12])
    return user / HZ, system / HZ


def resident(group):
    total = 0
    for pid, _ in members(group):
        try:
            lines = open(f"/proc/{pid}/smaps_rollup").read().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def switches(group):
    total = 0
    for pid, _ in members(group):
        for task in os.listdir(f"/proc/{pid}/task"):
            try:
                lines = open(f"/proc/{pid}/task/{task}/status").read().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


def machine_busy():
    fields = [int(x) for x in open("/proc/stat").readline().split()[1:]]
    return (fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) / HZ


def ours(processes):
    """CPU seconds of the bench itself, its loads, and these."""
    me, kids = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return (me.ru_utime + me.ru_stime + kids.ru_utime + kids.ru_stime
            + sum(sum(cpu(p.pid)) for p in processes))


def is_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def wait_port(port, process, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        if process.poll() is not None:
            raise RuntimeError(f"exited {process.returncode}")
        if is_open(port):
            return
        time.sleep(0.05)
    raise RuntimeError("port never opened")


def stop(process):
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass
    end = time.time() + 3
    while any(True for _ in members(process.pid)) and time.time() < end:
        process.poll()
        time.sleep(0.05)
    for pid, _ in list(members(process.pid)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def start_upstreams(cpus):
    started = []
    for port, extra in ((UPSTREAM, ["--token", UPTOKEN]), (BARE, [])):
        if is_open(port):
            raise RuntimeError(f"port {port} is taken: an upstream of an earlier run is still up")
        command = [f"{BIN}/release/pb-upstream", "--listen", f"127.0.0.1:{port}", *extra]
        process = subprocess.Popen(command, preexec_fn=pin(cpus), stdin=subprocess.DEVNULL)
        wait_port(port, process)
        started.append(process)
    return started


def start(name, threads, cpus, n):
    """One row. An access log goes to standard output or a file, and both are /dev/null."""
    row = ROWS[name]
    if is_open(PORTS[name]):
        raise RuntimeError(f"port {PORTS[name]} is taken: a row of an earlier run is still up")
    place = Place(name, PORTS[name], threads, n, row.logs)
    command, env = row.command(place)
    errors = open(f"{RUN}/{name}/errors", "w")
    out = subprocess.DEVNULL if row.logs else errors
    process = subprocess.Popen(command, preexec_fn=pin(cpus), stdout=out, stderr=errors, cwd=place.folder,
                               stdin=subprocess.DEVNULL, env={**os.environ, **env})
    try:
        wait_port(PORTS[name], process)
    except Exception:
        stop(process)
        print(open(f"{RUN}/{name}/errors").read()[-1500:])
        raise
    time.sleep(0.3)
    return process
