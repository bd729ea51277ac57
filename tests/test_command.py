"""What all commands share, as a process sees it."""

import signal
import subprocess
import sys

SCRIPT = """
import time
from tessera.command import guarded, opened
def work():
    with opened("local", None) as pipeline:
        pipeline.close = lambda: print("closed", flush=True)
        print("open", flush=True)
        time.sleep(60)
guarded(work, show=False)
"""


def test_sigterm_ends_a_command_as_ctrl_c_does():
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "open\n"
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=10)

    assert out == "closed\n"
    assert "interrupted; run the command again to go on" in said
