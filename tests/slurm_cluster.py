"""A real Slurm on this machine, for tests: one controller and two nodes, without root and without munge.

The nodes are two `slurmd -N` with their own ports. The first has the machine's host name, so that processes find the
coordinator. Debian's packages are slurmctld, slurmd and slurm-client.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel") if not shutil.which(name)]
WHY_NOT = f"Slurm is not installed ({', '.join(MISSING)}): apt install slurmctld slurmd slurm-client"

_SETTINGS = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={controller}
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
NodeName={host} NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=2
NodeName={host}-b NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    """Ports that no process uses at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Slurm:
    """The cluster; `environment` makes Slurm's commands use it. Use it in a `with` block, which ends its daemons."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Slurm:
        host = socket.gethostname().partition(".")[0]
        (self.folder / "state").mkdir(parents=True)
        for node in (host, f"{host}-b"):
            (self.folder / node).mkdir()
        controller, first, second = free_ports(3)
        text = _SETTINGS.format(
            host=host, user=getpass.getuser(), folder=self.folder, controller=controller, first=first, second=second
        )
        (self.folder / "slurm.conf").write_text(text)
        for name, command in (
            ("controller", ["slurmctld", "-D", "-c"]),
            ("first", ["slurmd", "-D", "-N", host]),
            ("second", ["slurmd", "-D", "-N", f"{host}-b"]),
        ):
            with (self.folder / f"{name}.log").open("w") as log:
                words = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
                self._daemons.append(subprocess.Popen(command, env={**os.environ, **self.environment}, **words))
        try:
            wait_for(lambda: self.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"], self.logs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.ask("scancel", "--user", getpass.getuser())
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def ask(self, *command: str) -> str:
        """Output of one of Slurm's commands; '' if it fails."""
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else ""

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job, such as JobState and Restarts."""
        words = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_until(self, number: str, *states: str) -> dict[str, str]:
        """Waits until the job has one of the states, and returns its fields."""
        wait_for(lambda: self.job(number).get("JobState") in states, lambda: f"{self.job(number)}\n{self.logs()}")
        return self.job(number)

    def start_again(self, number: str) -> None:
        """Waits until the job is queued again, and ends the two minutes for which Slurm would hold it."""

        def started() -> bool:
            job = self.job(number)
            if job.get("Restarts", "0") == "0":
                return False
            if job["JobState"] == "PENDING":
                self.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
            return job["JobState"] in ("RUNNING", "COMPLETED", "FAILED")

        wait_for(started, lambda: f"{self.job(number)}\n{self.logs()}")

    def logs(self) -> str:
        """The last lines of the daemons' logs."""
        return "\n".join(file.read_text()[-2000:] for file in sorted(self.folder.glob("*.log")))


def wait_for(condition, explain=lambda: "", seconds: float = 300) -> None:
    """Waits until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in time: {explain()}"
        time.sleep(0.3)
