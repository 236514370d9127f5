"""A training in two processes, forked from one that has imported everything; torchrun imports torch three times."""

import json
import os
import socket
import subprocess
import sys
from typing import NamedTuple

CODE = """
import json, os, sys
import torch._dynamo  # every optimizer imports it
from pc_ewa import cli

children = []
for rank in (0, 1):
    child = os.fork()
    if not child:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        try:
            code = cli.main(json.loads(sys.argv[1]))
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
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", CODE, json.dumps(["train", *map(str, arguments)])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr)
