"""A trainer is alive exactly as long as its process is, whatever else bears its number or files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from headrace.spool_files import TRAINER_NOTE, Note
from headrace.status import FAILED, FINISHED
from headrace.trainer_watch import TrainerWatch

from tests.client.reading import only_spool

TRAINER = """
import os, sys
import headrace
run = headrace.init(mode="offline", spool_dir=sys.argv[1], quiet=True)
run.log({"a": 1})
child = os.fork()
if child == 0:
    sys.stdin.readline()
    os._exit(0)
print(child, flush=True)
sys.stdin.readline()
"""


def test_a_forked_child_that_survives_does_not_pass_for_the_trainer(tmp_path: Path) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with trainer:
        assert trainer.stdout is not None
        child = int(trainer.stdout.readline())
        try:
            watch = TrainerWatch(only_spool(tmp_path))
            assert not watch.look()
            trainer.send_signal(signal.SIGKILL)
            trainer.wait()
            os.kill(child, 0)  # it lives, and holds every file that the trainer had open
            assert watch.look()
            assert watch.state == FAILED
            watch.close()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_reused_process_id_does_not_pass_for_the_trainer(tmp_path: Path) -> None:
    # This process bears the id that the note names, and is not the trainer.
    Note(tmp_path / TRAINER_NOTE).write({"trainer_pid": os.getpid()})
    watch = TrainerWatch(tmp_path)
    assert watch.look()
    assert watch.state == FAILED


def test_a_trainer_that_said_how_it_ended_is_believed_while_it_lives(tmp_path: Path) -> None:
    Note(tmp_path / TRAINER_NOTE).write({"state": FINISHED, "last_step": 7, "dropped_points": 2})
    watch = TrainerWatch(tmp_path)
    assert watch.look()
    assert (watch.state, watch.last_step, watch.dropped_points) == (FINISHED, 7, 2)
