"""How many sequences fit into a memory budget at once, measured on one of them.

On a GPU a micro-batch that is too large raises an error, and half of it is tried (`Job.within_memory`). A CPU has no
such error: the machine swaps, or the system kills the rank. So what the forward pass of one sequence keeps for its
backward pass is counted, once, and a budget is shared out. Costs one forward pass.
"""

import resource

import torch
from torch import Tensor

from tessera.errors import ConfigError
from tessera.train.job import Job

BACKWARD = 1.5
"""Memory of both passes by that of what is kept between them; gradients of a layer come and go beside it."""


def fit(job: Job, *, budget_bytes: int) -> None:
    """Lowers the job's micro-batch so that a rank stays within its budget; the checkpoint keeps it.

    Raises:
        ConfigError: not even one sequence fits beside what the rank holds already.
    """
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    each = int(BACKWARD * kept_bytes(job))
    here = torch.tensor([(budget_bytes - held) // each], device=job.ranks.device)
    fitting = int(job.ranks.gather(here).min())  # the same on all: ranks that share a model gather it together
    if fitting < 1:
        raise ConfigError(
            f"train.memory_bytes is {budget_bytes:,}; a rank holds {held:,} before it begins, and one sequence takes "
            f"about {each:,} more. Give at least {held + each:,}"
        )
    if fitting < job.micro_batch:
        job.note(f"micro-batch {fitting}: a sequence takes about {each / 2**20:,.0f} MiB, which fits so often")
    job.progress.micro_batch = min(fitting, job.micro_batch)


def kept_bytes(job: Job) -> int:
    """What the forward pass of the first sequence keeps for its backward pass, parameters not counted."""
    parameters = {value.untyped_storage().data_ptr() for value in job.model.parameters()}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    before, job.progress.micro_batch = job.progress.micro_batch, 1
    part = next(iter(job.parts()))
    job.progress.micro_batch = before
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        job.nats(part)
    return sum(kept.values())
