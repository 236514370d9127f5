"""Trainings under torchrun: agents and workers are forked from one process that has imported everything."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from two_processes import free_port

CODE = """
import ctypes, datetime, json, os, signal, subprocess, sys
import torch._dynamo  # every optimizer imports it
from torch.distributed import run
from pc_ewa import cli
from pc_ewa.train import distributed, launch, loop

distributed.ROLL_CALL = datetime.timedelta(seconds=1)
of_arguments, take_step = run.config_from_args, loop.train_step

def forked(arguments):
    config, _, command = of_arguments(arguments)
    config.start_method = "fork"
    return config, work, command[command.index("pc_ewa") + 1:]

def work(*arguments):
    sys.exit(cli.main(arguments))

def step_then_die(setup, experiment, world, parallel, step):
    metrics = take_step(setup, experiment, world, parallel, step)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    place = os.environ["HOST"], os.environ["LOCAL_RANK"]
    if step == 2 and dies == "worker" and first and place == ("0", "1"):
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 2 and dies == "host" and place == ("1", "0"):
        if namespaces:
            subprocess.run(["ip", "link", "set", os.environ["GLOO_SOCKET_IFNAME"], "down"], check=True)
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return metrics

def enter(namespace):
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    os.environ["GLOO_SOCKET_IFNAME"] = namespace  # its one device has the same name

run.config_from_args, loop.train_step = forked, step_then_die
codes, namespaces = [], sys.argv[3:]
if namespaces:
    distributed.PATIENCE = datetime.timedelta(seconds=20)  # all of it passes before a cut cable is noticed
for dies, hosts in json.loads(sys.argv[1]):
    agents = []
    for number, arguments in enumerate(hosts):
        agent = os.fork()
        if not agent:
            os.environ["HOST"] = str(number)
            if namespaces:
                enter(namespaces[number])
            code = launch.main(arguments)
            sys.stdout.flush()
            os._exit(code)
        agents.append(agent)
    codes.append([os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1]) for agent in agents])
with open(sys.argv[2], "w") as file:
    json.dump(codes, file)
"""

Dies = Literal["nothing", "worker", "host"]  # a worker of two, or the second host, in the middle of the third step
Host = list[str]  # arguments of torchrun


class Ran(NamedTuple):
    """The exit code of each torchrun, and what they printed."""

    codes: list[list[int]]
    out: str
    err: str


def one_host(*options: object, train: Sequence[object]) -> list[Host]:
    """Start torchrun with these options, to train with these arguments."""
    return [[*map(str, options), "-m", "pc_ewa", "train", *map(str, train)]]


def two_hosts(
    *options: object, train: Sequence[object], addresses: Sequence[str] = ("127.0.0.1", "127.0.0.2")
) -> list[Host]:
    """Start a torchrun on each of two addresses; the run goes on with one of them. The first keeps the rendezvous."""
    endpoint = f"{addresses[0]}:{free_port()}"
    hosts = []
    for number, address in enumerate(addresses):
        # Shorter than the defaults: 30 seconds for others to come, 15 until a host that is silent is gone.
        waits = f"is_host={1 - number},last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=6"
        own = ["--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "toy"]
        own += ["--local-addr", address, "--rdzv-conf", waits]
        hosts += one_host(*own, *options, train=train)
    return hosts


def under_torchrun(folder: Path, *plans: tuple[Dies, list[Host]], namespaces: Sequence[str] = ()) -> Ran:
    """Run trainings one after the other, each on its hosts; `folder` takes the exit codes.

    Args:
        folder: takes a file of exit codes.
        plans: what dies, and the hosts.
        namespaces: network namespace of each host. The cable of the second is cut when it dies, so that no
            connection is closed: the first hears nothing, as of a host that has lost its power.
    """
    codes = folder / "codes.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", CODE, json.dumps(plans), str(codes), *namespaces]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert codes.exists(), done.stderr
    return Ran(json.loads(codes.read_text()), done.stdout, done.stderr)
