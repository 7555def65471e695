"""A sweep that outlives the connection: its driver becomes a small job of SLURM's.

`python -m jepa.sweeps.controller <the arguments of jepa.train -m>` submits the driver for 72 hours
on one CPU, and says how to watch, stop and resume it. The driver is put back into the queue before
its time limit and after a failure of its node; training jobs go on meanwhile, and none is lost.
`JEPA_CONTROLLER` holds further options of sbatch, as `--partition=cpu --account=mine`.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from jepa.config import UserError, check_command_line, fail
from jepa.report import write_text
from jepa.sweeps import optuna, slurm_queue
from jepa.sweeps.naming import sweep_directory, with_study

OPTIONS = "JEPA_CONTROLLER"
LOG = "controller.log"
SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}-controller
#SBATCH --time=72:00:00 --cpus-per-task=1 --mem=4G
#SBATCH --requeue --open-mode=append --signal=B:USR1@300
#SBATCH --output={log}
# SIGTERM lets the driver leave and its jobs run; the next start looks after them.
again() {{
  kill -TERM $driver; wait $driver; echo "$(date): the time is up, back into the queue"
  exec scontrol requeue "$SLURM_JOB_ID"
}}
trap again USR1
trap 'kill -TERM $driver' TERM
cd {cwd}
echo "$(date): job $SLURM_JOB_ID on $(hostname)"
for start in 1 2 3 4 5; do
  {command} &
  driver=$!
  wait $driver; code=$?
  while kill -0 $driver 2>/dev/null; do wait $driver; code=$?; done  # a trap ends the first wait
  [ $code = 137 ] || break
  echo "$(date): the driver was killed, and starts again"
done
echo "$(date): the driver ended with exit code $code"
exit $code
"""


def submit(arguments: Sequence[str]) -> str:
    """Submit the driver of a sweep; return what to tell the user.

    Raises:
        UserError: if the arguments are wrong, the directory cannot be written, or SLURM is not
            there or refuses.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not found on this machine: submit where SLURM is, or run the sweep here "
            "with python -m jepa.train -m hydra/launcher=local"
        )
    arguments = list(arguments) if {"-m", "--multirun"} & {*arguments} else ["-m", *arguments]
    check_command_line(with_study(arguments), "config")
    cfg, folder = sweep_directory(arguments, "config")
    study, folder = cfg.study, folder.absolute()
    log = folder / LOG
    command = shlex.join([sys.executable, "-u", "-m", "jepa.train", *arguments])
    text = SCRIPT.format(name=study, log=log, cwd=shlex.quote(os.getcwd()), command=command)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "controller.sh", text)
    except OSError as error:
        raise UserError(f"hydra.sweep.dir={folder} cannot be written: {error}") from error
    options = shlex.split(os.environ.get(OPTIONS, ""))
    try:
        running = list(slurm_queue.alive(folder / "controller.sh"))
        job = running[0] if running else slurm_queue.submit(folder / "controller.sh", *options)
    except (slurm_queue.Away, slurm_queue.Refused) as error:
        raise UserError(f"SLURM does not take the controller: {error}") from error
    again = shlex.join(["python", "-m", "jepa.sweeps.controller", *arguments])
    return f"""controller: job {job}{" runs already" if running else ""}, study {study}
watch:      tail -f {log}; squeue --me
results:    {folder / "trials.csv"}, report.html
stop:       touch {folder / "STOP"}        (training jobs write a checkpoint and end)
            scancel {job}        (the driver alone: training jobs go on)
resume:     {again}"""


def cli() -> None:
    """Run the command."""
    optuna.register()
    try:
        print(submit(sys.argv[1:]))
    except UserError as error:
        fail(str(error), code=1)


if __name__ == "__main__":
    cli()
