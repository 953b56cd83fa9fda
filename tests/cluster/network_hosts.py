"""Hosts as network namespaces: each with its own sshd, processes, home and temporary folder.

A bridge in a namespace of its own joins a client and three hosts, so that the machine's own network
is not touched. A host sees the machine's files through overlays that keep what it writes to itself;
only /mnt/shared is the same folder on all, as shared storage is. Needs root.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
ADDRESSES = ("10.77.0.10", "10.77.0.11", "10.77.0.12")
CLIENT = "10.77.0.2"
PACKAGES = {"sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "ip": "iproute2"}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LIMIT_S = 1200

# $1 name, $2 address, $3 the folder of all hosts. Overlays over a tmpfs: an overlay cannot hold the
# upper folder of another, which is what the root of a container often is.
HOST = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 none /mnt
mkdir -p /mnt/shared /mnt/own
mount --bind "$3/shared" /mnt/shared
mount -t tmpfs none /mnt/own
for place in {home} /tmp; do
    mkdir -p /mnt/own$place/upper /mnt/own$place/work
    chmod --reference=$place /mnt/own$place/upper
    mount -t overlay -o lowerdir=$place,upperdir=/mnt/own$place/upper,workdir=/mnt/own$place/work \\
        overlay $place
done
mount -t tmpfs -o size=1g none /dev/shm
hostname "$1"
rm -rf {home}/.ray {home}/.fundamentals /tmp/ray
mkdir -p /run/sshd {home}/.fundamentals
cp -r "$3/programs" {home}/.fundamentals/bin
echo 'export PYTHONPATH={home}/fundamentals:{home}/fundamentals/tests/toys' > {home}/.bashrc
printf 'Port 22\\nListenAddress %s\\nHostKey %s/host_key\\nAuthorizedKeysFile %s/key.pub\\n' \\
    "$2" "$3" "$3" > "$3/$1.conf"
printf 'StrictModes no\\nUsePAM no\\nPidFile none\\n' >> "$3/$1.conf"
exec {sshd} -D -e -f "$3/$1.conf"
"""


def missing():
    """What keeps this machine from running the hosts, or None."""
    if "FDL_CLUSTER_TESTS" not in os.environ:
        return "runs with make test-cluster"
    if not sys.platform.startswith("linux") or os.geteuid():
        return "needs Linux and root, for network namespaces"
    for program, package in PACKAGES.items():
        if not shutil.which(program, path=SYSTEM_PATH):
            return f"{program} is not installed (Debian: apt-get install {package})"
    tried = subprocess.run(
        [
            *("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--mount-proc"),
            *(
                "sh",
                "-c",
                "mount -t tmpfs none /mnt && ip link add veth0 type veth peer name veth1",
            ),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"may not make namespaces: {tried.stderr.strip()}" if tried.returncode else None


class Network:
    """The hosts h0 (the head), h1 and h2 and a client, while the context lasts."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="fdl-net-", dir="/tmp"))
        self.name = f"fdl{os.getpid()}"
        self.processes = {}
        self.commands = []
        self.store = self.folder / "shared" / "fundamentals"

    def __enter__(self):
        try:
            self._prepare()
            self._ip(f"netns add {self.name}-br")
            self._ip(f"-n {self.name}-br link add br0 type bridge")
            self._ip(f"-n {self.name}-br link set br0 up")
            self._connect("client", CLIENT)
            for number, address in enumerate(ADDRESSES):
                self._connect(f"h{number}", address)
                self.start(f"h{number}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for command in self.commands:
            end_session(command)
        for process in self.processes.values():
            process.kill()
            process.wait()
        for end in ("client", "h0", "h1", "h2", "br"):
            subprocess.run(
                ["ip", "netns", "del", f"{self.name}-{end}"], capture_output=True, check=False
            )
        # Ray puts ssh's control sockets there, in a folder named after the user.
        user = hashlib.sha256(self.name.encode()).hexdigest()[:10]
        shutil.rmtree(f"/tmp/ray_ssh_{user}", ignore_errors=True)
        shutil.rmtree(self.folder)

    def _prepare(self):
        for name in ("shared", "programs", "client"):
            (self.folder / name).mkdir()
        for key in ("host_key", "key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key)
        ray = Path(sys.executable).parent / "ray"
        for name, command in {
            "python": sys.executable,
            "suite": f"{sys.executable} -m suite",
            "ray": ray,
        }.items():
            program = self.folder / "programs" / name
            program.write_text(f'#!/bin/bash\nexec {command} "$@"\n')
            program.chmod(0o755)
        sshd = shutil.which("sshd", path=SYSTEM_PATH)
        (self.folder / "host.sh").write_text(HOST.format(home=Path.home(), sshd=sshd))

    def _ip(self, command):
        _run("ip", *command.split())

    def _connect(self, end, address):
        here, bridge = f"{self.name}-{end}", f"{self.name}-br"
        self._ip(f"netns add {here}")
        self._ip(f"-n {here} link set lo up")
        self._ip(f"-n {bridge} link add {end} type veth peer name eth0 netns {here}")
        self._ip(f"-n {bridge} link set {end} master br0 up")
        self._ip(f"-n {here} addr add {address}/24 dev eth0")
        self._ip(f"-n {here} link set eth0 up")

    def start(self, host):
        """Boot a host: its processes, and a disk as it was at first."""
        log = (self.folder / f"{host}.log").open("a")
        address = ADDRESSES[int(host[1:])]
        self.processes[host] = subprocess.Popen(
            [
                *("ip", "netns", "exec", f"{self.name}-{host}"),
                *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--uts", "--ipc"),
                *("--kill-child", "bash", self.folder / "host.sh", host, address, self.folder),
            ],
            stdout=log,
            stderr=log,
            env={"PATH": SYSTEM_PATH},
        )
        log.close()
        ssh = ("ssh", *self._ssh_options(), f"root@{address}", "true")
        until(lambda: self.popen(*ssh).wait() == 0, f"{host} to answer ssh")

    def _ssh_options(self):
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=10")
        return ["-i", str(self.folder / "key"), *(f"-o{option}" for option in options)]

    def link(self, host, state):
        """Take a host's network away without a word to anyone, or give it back."""
        self._ip(f"-n {self.name}-br link set {host} {state}")

    def cut_power(self, host):
        """End a host at once: nobody hears from it again, and it writes nothing more."""
        self.link(host, "down")
        self.processes[host].kill()
        self.processes[host].wait()

    def config(self, source):
        """A shipped configuration for these hosts; only addresses and sizes are replaced."""
        config = yaml.safe_load(source.read_text())
        config["cluster_name"] = self.name
        config["provider"] |= {"head_ip": ADDRESSES[0], "worker_ips": list(ADDRESSES[1:])}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": f"{self.folder}/key"}
        config["file_mounts"]["~/.ray"] = f"{self.folder}/token"
        config["setup_commands"] = [c for c in config["setup_commands"] if "pip install" not in c]
        less = "--num-cpus=1 --object-store-memory=100000000 --memory=1000000000"
        for part in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[part] = [c.replace("ray start", f"ray start {less}") for c in config[part]]
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def popen(self, *command, output=subprocess.DEVNULL):
        """Start a command on the client, in a session of its own."""
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": f"{self.folder}/client",
            "TMPDIR": f"{self.folder}/client",
            "RAY_TMPDIR": f"{self.folder}/client",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": f"{self.folder}/token/auth_token",
            "LOGNAME": self.name,
        }
        process = subprocess.Popen(
            ["ip", "netns", "exec", f"{self.name}-client", *map(str, command)],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        self.commands.append(process)
        return process

    def run(self, *command):
        """Run a command on the client; return what it printed, and require success."""
        process = self.popen(*command, output=subprocess.PIPE)
        try:
            said, _ = process.communicate(timeout=LIMIT_S)
        finally:
            end_session(process)
        assert process.returncode == 0, f"{command}:\n{said}"
        return said


def end_session(process):
    """End a client's command with all it started: its connection is gone at once."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition, what):
    """Wait for a condition, however slow the machine is."""
    last = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < last, f"waited in vain for {what}"
        time.sleep(0.5)


def _run(*command):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
