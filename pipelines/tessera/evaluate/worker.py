"""What a rank of an evaluation runs: `python -m tessera.evaluate.worker FOLDER`, under torchrun.

It asks its share of the items and leaves the outcomes in rank-N.json; ranks do not speak to each other. Its parent is
torchrun, which ends its ranks with itself; should it be killed outright, the rank ends when its parent has changed.
"""

import os
import sys
import threading
import time
from pathlib import Path

POLL_SECONDS = 1.0


def main() -> None:
    """Runs one rank."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    folder = Path(sys.argv[1])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    import torch

    from tessera.evaluate import sharing
    from tessera.evaluate.examination import ask_here
    from tessera.evaluate.subject import open_subject

    local, beside = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // beside))  # torchrun sets one, whatever the machine has
    asked, tasks = sharing.read_asked(folder)
    device = f"cuda:{local % torch.cuda.device_count()}" if asked.device == "cuda" else asked.device
    subject = open_subject(
        Path(asked.checkpoint), expected_sha256=asked.weights_sha256, device=device,
        document_start=asked.document_start, batch_tokens=asked.batch_tokens,
    )  # fmt: skip
    own = {name: sharing.part(task, rank=rank, ranks=ranks) for name, task in tasks.items()}
    sharing.write_outcomes(folder, rank=rank, asked=ask_here(own, subject=lambda: subject))


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
