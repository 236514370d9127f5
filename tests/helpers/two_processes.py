"""Trainings in two processes, forked from one that has imported everything; torchrun imports torch three times."""

import json
import os
import socket
import subprocess
import sys
from typing import NamedTuple

import torch

# Tests of FSDP2 are marked sharded: tools/check_torch.sh leaves them out where it needs a GPU, with torch 2.6.
CAN_SHARD = hasattr(torch.cpu.Stream, "record_event")

CODE = """
import json, os, pathlib, shutil, sys, time
import torch._dynamo  # every optimizer imports it
from pc_ewa import cli

def stopped(rank, source, step, target):
    # A run folder as it was when a run was killed after that step.
    source, target = map(pathlib.Path, (source, target))
    if rank == 0:
        copy = target.with_name(target.name + " copy")
        shutil.copytree(source, copy)
        (copy / "summary.json").unlink()
        for path in (copy / "checkpoints").iterdir():
            if path.name != f"step-{int(step):08d}.pt":
                path.unlink()
        copy.rename(target)
    while not target.exists():
        time.sleep(0.01)
    return 0

commands, ports = json.loads(sys.argv[1]), json.loads(sys.argv[2])
children = []
for rank in (0, 1):
    child = os.fork()
    if not child:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        code = 0
        try:
            for port, command in zip(ports, commands, strict=True):
                os.environ["MASTER_PORT"] = str(port)
                code = code or (stopped(rank, *command[1:]) if command[0] == "stopped" else cli.main(command))
            sys.stdout.flush()
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 70
        os._exit(code)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


class Done(NamedTuple):
    """The worse exit code of both, and what they printed."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def train_in_two(*arguments: object) -> Done:
    """Run `pc-ewa train` with these arguments, as the environment of torchrun tells two processes to."""
    return commands_in_two(["train", *arguments])


def commands_in_two(*commands: list[object]) -> Done:
    """Run commands of pc-ewa one after the other, each in the same two processes, until one of them fails.

    `["stopped", source, step, target]` copies a run folder, as it was after that step.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    texts, ports = [list(map(str, command)) for command in commands], [free_port() for _ in commands]
    command = [sys.executable, "-c", CODE, json.dumps(texts), json.dumps(ports)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr)
