"""Three hosts on one machine, without root: 127.0.0.1, .2 and .3, and one sshd of this user.

Each address is a host with a home and a Ray folder of its own. Nothing outside one temporary folder
is touched: ``ssh`` reads a configuration of its own through a script in front on PATH, sshd forces
every login through one that sets HOME, and what logins started is found by a mark in its
environment and ended by pid.
"""

import contextlib
import hashlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
MARK = "SUITE_TEST_HOSTS"
LIMIT_S = 600


def missing():
    """What keeps this machine from being three hosts, or None."""
    if not {"FDL_HOST_TESTS", "FDL_CLUSTER_TESTS"} & os.environ.keys():
        return "starts sshds and a cluster: runs with FDL_HOST_TESTS=1, and in make test-cluster"
    if not sys.platform.startswith("linux"):
        return "needs Linux: other systems have no 127.0.0.2"
    for program, package in {
        "sshd": "openssh-server",
        "ssh": "openssh-client",
        "rsync": "rsync",
    }.items():
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            return f"{program} is not installed (Debian: apt-get install {package})"
    for address in ADDRESSES:
        with socket.socket() as probe:
            try:
                probe.bind((address, 0))
            except OSError as error:
                return f"cannot listen on {address}: {error}"
    terminals = [
        line for line in Path("/proc/mounts").read_text().splitlines() if " devpts " in line
    ]
    if os.geteuid() and not any("gid=5" in line for line in terminals):
        return "devpts is not mounted with gid=5, so an sshd without root cannot open a terminal"
    return None


class Hosts:
    """The three hosts, while the context lasts.

    ``env`` is the environment for commands on the client: ``ray up``, ``ray submit``.
    """

    def __init__(self):
        # Not below pytest's folder: the path of a Unix socket has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="fdl-", dir="/tmp"))
        self.name = self.folder.name
        self.ssh_port, self.ray_port = _free_port(), _free_port()
        self.sshd = None
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "PATH": f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": f"{self.folder}/client",
            "TMPDIR": f"{self.folder}/tmp",
            "RAY_TMPDIR": f"{self.folder}/r0",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Names the folder of ssh's control sockets, which Ray puts into /tmp come what may.
            "LOGNAME": self.name,
            MARK: str(self.folder),
        }

    def __enter__(self):
        try:
            self._make_folders()
            self._make_programs()
            self._start_sshd()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # By its pid: sshd writes its state where its environment was.
        if self.sshd:
            self.sshd.kill()
            self.sshd.wait()
        end_marked(MARK, str(self.folder))
        user = hashlib.sha256(self.name.encode()).hexdigest()[:10]
        shutil.rmtree(f"/tmp/ray_ssh_{user}", ignore_errors=True)
        shutil.rmtree(self.folder)

    def _make_folders(self):
        for name in ("bin", "client", "tmp", "r0"):
            (self.folder / name).mkdir()
        for number in (2, 3, 4):
            (self.folder / f"h{number}").mkdir()
            _program(
                self.folder / f"h{number}" / ".fundamentals" / "bin" / "python",
                f'exec {shlex.quote(sys.executable)} "$@"',
            )

    def _make_programs(self):
        real_ssh = shutil.which("ssh")
        _program(self.folder / "bin" / "ssh", SSH.format(ssh=real_ssh, folder=self.folder))
        (self.folder / "ssh_config").write_text(f"Host *\n  Port {self.ssh_port}\n")
        real_ray = Path(sys.executable).parent / "ray"
        for number in (2, 3, 4):
            programs = self.folder / f"h{number}" / ".fundamentals" / "bin"
            (programs / "ssh").symlink_to(self.folder / "bin" / "ssh")
            _program(programs / "suite", f'exec {shlex.quote(sys.executable)} -m suite "$@"')
            # `ray stop` ends every Ray process of the user: here, those of one host.
            stop = f"{shlex.quote(sys.executable)} {__file__} {MARK}_ADDRESS ${MARK}_ADDRESS"
            _program(
                programs / "ray",
                f'[ "$1" = stop ] && exec {stop}\nexec {shlex.quote(str(real_ray))} "$@"',
            )
        _program(self.folder / "login", LOGIN.format(folder=self.folder, mark=MARK))

    def _start_sshd(self):
        for key in ("host_key", "key"):
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key])
        listen = "".join(f"ListenAddress {a}\n" for a in ADDRESSES)
        (self.folder / "sshd_config").write_text(
            f"Port {self.ssh_port}\n{listen}HostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/key.pub\nForceCommand {self.folder}/login\n"
            "StrictModes no\nUsePAM no\nPidFile none\n"
        )
        if os.geteuid() == 0:
            # What Debian's service unit makes before it starts sshd.
            Path("/run/sshd").mkdir(exist_ok=True)
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        self.log = self.folder / "sshd.log"
        with self.log.open("w") as log:
            self.sshd = subprocess.Popen(
                [sshd, "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log, env=self.env
            )
        for address in ADDRESSES:
            _until(lambda a=address: self.sshd.poll() is not None or _answers(a, self.ssh_port))
        assert self.sshd.poll() is None, self.log.read_text()

    def config(self, source, store):
        """A cluster configuration for these hosts, from one that is shipped; return its path.

        Only what names a machine, or would install the suite, is replaced.
        """
        config = yaml.safe_load(source.read_text())
        config["cluster_name"] = self.name
        config["provider"] |= {"head_ip": ADDRESSES[0], "worker_ips": list(ADDRESSES[1:])}
        config["file_mounts"]["~/.ray"] = f"{self.folder}/token"
        user = pwd.getpwuid(os.geteuid()).pw_name
        config["auth"] = {"ssh_user": user, "ssh_private_key": f"{self.folder}/key"}
        config["setup_commands"] = [
            c.replace("/mnt/shared/fundamentals", str(store))
            for c in config["setup_commands"]
            if "pip install" not in c
        ]
        for part in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[part] = [self._small(c) for c in config[part]]
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _small(self, command):
        """A command that starts Ray, with little memory, one core and no dashboard."""
        less = "--num-cpus=1 --object-store-memory=100000000 --memory=1000000000 "
        less += f"--temp-dir={self.folder}/r${{SUITE_TEST_HOSTS_ADDRESS##*.}}/ray"
        if "--head" in command:
            less += " --include-dashboard=false"
            less += f" --ray-client-server-port={_free_port()}"
        return (
            command.replace("ray start", f"ray start {less}")
            .replace(":6379", f":{self.ray_port}")
            .replace("--port=6379", f"--port={self.ray_port}")
        )

    def run(self, *command, check=True):
        """Run a command of the client; return what it printed, both streams together."""
        done = subprocess.run(
            [str(part) for part in command],
            env=self.env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{command}:\n{done.stdout}\n{self.log.read_text()}"
        )
        return done


# ssh takes the ~ of a key's path from the user database and not from HOME.
SSH = """
for argument; do
    [ "$previous" = -i ] && argument=${{argument/#\\~/$HOME}}
    arguments+=("$argument"); previous=$argument
done
exec {ssh} -F {folder}/ssh_config "${{arguments[@]}}"
"""

LOGIN = """
read -r _ _ address _ <<< "$SSH_CONNECTION"
export {mark}={folder} {mark}_ADDRESS=$address
export HOME={folder}/h${{address##*.}}
export LOGNAME=$(basename {folder})
export RAY_TMPDIR={folder}/r${{address##*.}} TMPDIR={folder}/tmp
export PYTHONPATH=$HOME/fundamentals:$HOME/fundamentals/tests/toys
cd "$HOME"
exec bash -c "${{SSH_ORIGINAL_COMMAND:-exec bash}}"
"""


def _program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def _run(command):
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(address, port):
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def _until(condition):
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def marked(name, value):
    """The pids of the processes whose environment has the variable with this value."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{name}={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return sorted({*found} - {*_own_line()})


def _own_line():
    """This process and those that it descends from."""
    pid = os.getpid()
    while pid:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def end_marked(name, value):
    """End the marked processes, and those that they start meanwhile."""
    until = time.monotonic() + LIMIT_S
    while pids := marked(name, value):
        assert time.monotonic() < until, f"processes that cannot be ended: {pids}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    end_marked(*sys.argv[1:])
