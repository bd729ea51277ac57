"""The ranks of a run and what they say to each other: sums and gathers.

Collectives are few and small: a step sums one buffer of gradients and two numbers, and gathers Muon's updates.
"""

import contextlib
import fcntl
import os
import socket
import struct
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from tessera.errors import SetupError
from tessera.train.pulse import Pulse
from tessera.train.settings import TrainSettings

GET_ADDRESS = 0x8915
"""SIOCGIFADDR of Linux: the address of an interface."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    pulse: Pulse = field(default_factory=Pulse)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, in place, equal on all."""
        if self.world > 1:
            with self.pulse.waiting():
                dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """[world * n, ...] from every rank's [n, ...], in the order of ranks."""
        if self.world == 1:
            return value
        gathered = value.new_empty((self.world * value.shape[0], *value.shape[1:]))
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.14
        with self.pulse.waiting():
            gather(gathered, value.contiguous())
        return gathered

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            with self.pulse.waiting():
                dist.barrier()


def join(settings: TrainSettings) -> Ranks:
    """Joins the process group that torchrun's environment names, and takes this rank's device and threads.

    Raises:
        SetupError: a GPU is asked for and there are not enough.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = _device(settings.device, local=local, num_local=num_local)
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // num_local)
    torch.set_num_threads(threads)  # TorchDistributor and torchrun set OMP_NUM_THREADS=1 whatever the machine has
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks, before its first product
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        if interface := interface_towards(os.environ["MASTER_ADDR"]):
            for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(variable, interface)
        backend, timeout = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=settings.timeout_seconds)
        store, _, _ = next(rendezvous("env://", rank, world, timeout=timeout))
        # Torchrun keeps one store over its restarts: without a prefix, ranks find addresses of those that died.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"restart-{restart}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    return Ranks(rank=rank, world=world, device=device, threads=threads)


def interface_towards(address: str) -> str | None:
    """The name of this machine's network interface from which `address` is reached; None where it cannot be told.

    Left to itself gloo may take an interface that the other machines do not see. Nothing is sent.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            own = socket.inet_aton(probe.getsockname()[0])
        except OSError:
            return None
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                asked = fcntl.ioctl(probe, GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
                if asked[20:24] == own:
                    return name
    return None


def leave(ranks: Ranks) -> None:
    """Leaves the process group."""
    if ranks.world > 1:
        dist.destroy_process_group()


def _device(wanted: str, *, local: int, num_local: int) -> torch.device:
    available = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and available < num_local:
        raise SetupError(
            f"train.device is cuda with {num_local} ranks on this machine, which has {available} GPUs; "
            "give train.ranks a GPU each, or set train.device=cpu"
        )
    return torch.device("cuda", local) if available >= num_local and available else torch.device("cpu")
