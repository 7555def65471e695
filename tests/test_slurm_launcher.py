"""What the SLURM launcher asks and concludes, with made-up answers of SLURM's commands."""

import errno
import functools
import json
import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from jepa.callbacks import requeue
from jepa.callbacks.interrupt import Interrupt, Leave
from jepa.config import CONF, UserError
from jepa.sweeps import controller, optuna, slurm, slurm_queue
from jepa.sweeps.outcome import RESULT, RecordOutcome
from jepa.sweeps.slurm import SlurmJob, SlurmLauncher
from jepa.sweeps.slurm_queue import Away, Status, Watch

optuna.register()


class Cluster:
    """Answers by command; an exception is raised, of a list one answer after the other."""

    def __init__(self):
        self.answers = {"squeue": "", "sacct": Away("no accounting"), "scontrol": Away("unknown")}
        self.answers |= {"scancel": ""}
        self.asked = []

    def ask(self, *line):
        self.asked.append(line)
        answer = self.answers[line[0]]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(line) if callable(answer) else answer

    def submitted(self):
        return [line[-1] for line in self.asked if line[0] == "sbatch"]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    for name in ("sbatch", "srun"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "BACK_OFF_S", (0.001, 0.004))
    monkeypatch.setattr(slurm, "FILE_S", 0.0)
    monkeypatch.setattr(slurm_queue, "LOOK_S", 0.0)
    one = Cluster()
    monkeypatch.setattr(slurm_queue, "ask", one.ask)
    return one


@functools.cache
def composed():
    with initialize_config_dir(str(CONF), job_name="config"):
        words = ["hydra/launcher=slurm", "study=mine", "hydra.sweep.dir=sweep"]
        return compose("config", words, return_hydra_config=True)


def launcher(tmp_path, **settings):
    params = OmegaConf.to_container(composed().hydra.launcher, resolve=True)
    assert settings.keys() <= params.keys()
    return SlurmLauncher(**params | {"submitit_folder": str(tmp_path)} | settings)


def polled(job):
    deadline = time.monotonic() + 5
    while (outcome := job.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return outcome


def running(tmp_path, cluster):
    """A job that SLURM has taken, and that is gone from its queue."""
    cluster.answers["sbatch"] = "17\n"
    job = launcher(tmp_path).start(["x=1"], tmp_path / "0")
    (job.directory / "output.log").write_text("step 1\nstep 2\n")
    return job


def test_a_submission_waits_longer_every_time_and_says_why_once(tmp_path, cluster, capsys):
    away = Away("Unable to contact slurm controller")
    cluster.answers["sbatch"] = [away, away, away, "17\n"]
    one = launcher(tmp_path)
    job = one.start(["x=1"], tmp_path / "0")
    assert job.job is None and not one.ready() and job.poll() is None
    waits = []
    deadline = time.monotonic() + 5
    while job.job is None and time.monotonic() < deadline:
        waits.append(one.wait)
        job.poll()
    assert job.job == "17" and one.ready() and len(cluster.submitted()) == 4
    assert max(waits) == 0.004 and one.wait == 0.001
    assert capsys.readouterr().out.count("Unable to contact") == 1


def test_what_is_refused_ends_the_sweep_before_any_job_and_waits_later(tmp_path, cluster):
    refused = Away("Batch job submission failed: Invalid qos specification")
    cluster.answers["sbatch"] = [refused, "17\n", refused, "18\n"]
    one = launcher(tmp_path)
    with pytest.raises(UserError, match=r"hydra\.launcher: .*Invalid qos"):
        one.start([], tmp_path / "0")
    assert one.start([], tmp_path / "1").job == "17"
    later = one.start([], tmp_path / "2")
    assert later.job is None
    time.sleep(0.002)
    later.poll()
    assert later.job == "18"


def test_a_job_that_came_through_is_not_submitted_twice(tmp_path, cluster):
    cluster.answers["sbatch"] = Away("Socket timed out on send/recv operation")
    job = launcher(tmp_path).start([], tmp_path / "0")
    script = tmp_path / ".slurm" / "0to0.sh"
    cluster.answers["squeue"] = f"9|RUNNING|/other.sh\n23|PENDING|{script}\n"
    time.sleep(0.002)
    job.poll()
    assert job.job == "23" and len(cluster.submitted()) == 1
    assert json.loads((tmp_path / "0" / "job.json").read_text()) == {"job": "23"}


def test_a_full_queue_takes_a_grid_in_parts(tmp_path, cluster):
    room = {"n": 3}

    def sbatch(line):
        text = Path(line[-1]).read_text()
        found = [one for one in text.splitlines() if "--array" in one]
        n = len(found[0].split("=")[1].strip("'").split("%")[0].split(",")) if found else 1
        if n > room["n"]:
            raise Away("Batch job submission failed: QOSMaxSubmitJobPerUserLimit")
        room["n"] -= n
        return f"{100 + len(cluster.submitted())}\n"

    cluster.answers["sbatch"] = sbatch
    one = launcher(tmp_path)
    jobs = [SlurmJob(one, tmp_path / str(n), []) for n in range(8)]
    one.submit(jobs)
    assert sum(job.job is not None for job in jobs) == 3
    room["n"] = 100
    time.sleep(0.002)
    one.submit([job for job in jobs if job.job is None])
    assert len({job.job for job in jobs}) == 8 and None not in {job.job for job in jobs}
    assert all(job.job.endswith(f"_{n}") or "_" not in job.job for n, job in enumerate(jobs))


def test_a_full_disk_delays_a_job(tmp_path, cluster, monkeypatch):
    cluster.answers["sbatch"] = "17\n"
    write, full = slurm.write_text, [OSError(errno.ENOSPC, "No space left on device")] * 2

    def fill(path, text):
        if full:
            raise full.pop()
        write(path, text)

    monkeypatch.setattr(slurm, "write_text", fill)
    job = launcher(tmp_path).start([], tmp_path / "0")
    deadline = time.monotonic() + 5
    while job.job is None and time.monotonic() < deadline:
        assert job.poll() is None
    assert job.job == "17"


SACCT = "JobID|State|ExitCode|NodeList\n17|{}|0:9|n3\n17.batch|FAILED|1:0|n3\n"
SCONTROL = "JobId=17 JobName=a JobState={} ExitCode=0:9 NodeList=n3 Command=/x y"


@pytest.mark.parametrize("state", ["FAILED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED"])
@pytest.mark.parametrize("source", ["sacct", "scontrol"])
def test_a_failure_names_state_code_node_and_log(tmp_path, cluster, state, source):
    job = running(tmp_path, cluster)
    said = f"{state} by 0" if source == "sacct" else state
    cluster.answers[source] = {"sacct": SACCT, "scontrol": SCONTROL}[source].format(said)
    outcome = polled(job)
    assert outcome.state == "failed" and not outcome.lost
    for part in (
        f"job 17: {state}, exit code 0, signal 9, on n3",
        "; step 1; step 2",
        "output.log",
    ):
        assert part in outcome.reason


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL"])
def test_what_the_cluster_did_is_tried_again(tmp_path, cluster, state):
    job = running(tmp_path, cluster)
    cluster.answers["sacct"] = SACCT.format(state)
    assert polled(job).lost and state in polled(job).reason


def test_a_live_job_is_not_judged_whatever_else_is_said(tmp_path, cluster):
    job = running(tmp_path, cluster)
    cluster.answers["sacct"] = SACCT.format("NODE_FAIL")
    cluster.answers["squeue"] = "17|PENDING|/x.sh\n"  # back in the queue
    assert [job.poll() for _ in range(3)] == [None] * 3
    cluster.answers["squeue"] = Away("slurmctld is away")
    assert [job.poll() for _ in range(3)] == [None] * 3


def test_a_job_that_nobody_knows_is_lost_after_a_while(tmp_path, cluster, monkeypatch):
    job = running(tmp_path, cluster)
    assert job.poll() is None
    monkeypatch.setattr(slurm_queue, "LOST_S", 0.0)
    outcome = polled(job)
    assert outcome.lost and "job 17: LOST; step 1; step 2" in outcome.reason


def test_a_result_counts_whatever_the_clock_of_its_node_says(tmp_path, cluster):
    for number, shift in enumerate((-86400, 0, 86400)):
        cluster.answers["sbatch"] = "17\n"
        job = launcher(tmp_path).start([], tmp_path / str(number))
        path = job.directory / RESULT
        path.write_text('{"value": 0.5, "kind": null, "error": null}')
        os.utime(path, (time.time() + shift,) * 2)
        assert polled(job).values == (0.5,)


def test_a_job_that_ended_well_is_given_time_to_show_its_result(tmp_path, cluster, monkeypatch):
    job = running(tmp_path, cluster)
    cluster.answers["sacct"] = SACCT.format("COMPLETED").replace("0:9", "0:0")
    assert job.poll() is None
    monkeypatch.setattr(slurm, "SETTLE_S", 0.0)
    assert "job 17: COMPLETED, exit code 0, on n3" in polled(job).reason


def test_a_directory_that_the_node_does_not_see_ends_the_sweep_of_the_first_job(tmp_path, cluster):
    cluster.answers |= {"sbatch": "17\n", "sacct": SACCT.format("FAILED")}
    one = launcher(tmp_path)
    with pytest.raises(UserError, match=rf"hydra\.sweep\.dir={tmp_path}: the node n3 does not see"):
        polled(one.start([], tmp_path / "0"))
    (tmp_path / "0" / "output.log").touch()
    outcome = polled(one.start([], tmp_path / "1"))
    assert outcome.lost and "does not see" in outcome.reason  # another node may


def test_the_job_of_a_dead_driver_is_found_again(tmp_path, cluster):
    job = running(tmp_path, cluster)
    one = launcher(tmp_path)
    assert one.adopt(job.directory).job == "17"
    (job.directory / "job.json").unlink()
    assert one.adopt(job.directory) is None
    cluster.answers["squeue"] = f"17|RUNNING|{tmp_path}/.slurm/0to0.sh\n"
    assert one.adopt(job.directory).job == "17"


def test_a_job_that_is_stopped_is_asked_then_killed_and_an_unsent_one_forgotten(
    tmp_path, cluster, monkeypatch
):
    job = running(tmp_path, cluster)
    cluster.answers["squeue"] = "17|RUNNING|x\n"
    job.stop()
    assert job.poll() is None
    assert ("scancel", "--signal=TERM", "17") in cluster.asked
    assert ("scancel", "17") not in cluster.asked
    monkeypatch.setattr(slurm, "GRACE_S", 0.0)
    job.poll()
    assert ("scancel", "17") in cluster.asked
    cluster.answers["sbatch"] = Away("try again")
    unsent = launcher(tmp_path).start([], tmp_path / "1")
    unsent.stop()
    assert polled(unsent).lost


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"partition": "gpu"}, "#SBATCH --partition=gpu"),
        ({"qos": "high"}, "#SBATCH --qos=high"),
        ({"account": "mine"}, "#SBATCH --account=mine"),
        ({"constraint": "a100"}, "#SBATCH --constraint=a100"),
        ({"gres": "gpu:2"}, "#SBATCH --gres=gpu:2"),
        ({"gpus_per_node": 4}, "#SBATCH --gpus-per-node=4"),
        ({"cpus_per_task": 3}, "exec srun --cpus-per-task=3 bash"),
        ({"mem_gb": 7}, "#SBATCH --mem=7GB"),
        ({"timeout_min": 90}, "#SBATCH --time=90"),
        ({"setup": ["module load cuda"]}, "module load cuda"),
        ({"signal_delay_s": 33}, "#SBATCH --signal=USR2@33"),
        ({"srun_args": ["--label"]}, "--label bash"),
        ({"use_srun": False}, "#SBATCH --signal=B:USR2@120"),
        ({"additional_parameters": {"nice": 5}}, "#SBATCH --nice=5"),
        ({"array_parallelism": 2}, "#SBATCH --array=0,1%2"),
        ({"name": "other"}, "#SBATCH --job-name=other-0to1"),
    ],
)
def test_a_setting_reaches_the_script(tmp_path, cluster, setting, line):
    def script(**settings):
        one = launcher(tmp_path, **settings)
        jobs = [SlurmJob(one, tmp_path / str(n), []) for n in range(2)]
        return one.write_script(jobs).read_text()

    assert line not in script() and line in script(**setting)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"max_num_timeout": 7}, "JEPA_MAX_TIMEOUTS=7"),
        ({"signal_delay_s": 33}, "JEPA_WARNING_S=33"),
        ({"python": "nice python3"}, "exec nice python3"),
    ],
)
def test_a_setting_reaches_the_command(tmp_path, cluster, setting, part):
    cluster.answers["sbatch"] = "17\n"
    launcher(tmp_path, **setting).start(["x=1"], tmp_path / "0")
    assert part in (tmp_path / "0" / "command.sh").read_text()


def test_a_job_is_named_after_study_and_trial_and_is_requeued_by_slurm(tmp_path, cluster):
    running(tmp_path, cluster)
    text = (tmp_path / ".slurm" / "0to0.sh").read_text()
    for line in (
        "--job-name=mine-0",
        "--requeue",
        "--open-mode=append",
        f"{tmp_path}/0/output.log",
    ):
        assert line in text
    assert "--time=360" in text  # the default


def test_a_command_goes_on_from_its_checkpoint_and_runs_no_result_twice(tmp_path, cluster):
    cluster.answers["sbatch"] = "17\n"
    launcher(tmp_path, python="echo").start(["x=[1, 2]"], tmp_path / "0")

    def run():
        line = ["bash", str(tmp_path / "0" / "command.sh")]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    assert "x=[1, 2]" in run() and f"hydra.run.dir={tmp_path}/0" in run()
    assert "resume=auto" not in run()
    (tmp_path / "0" / "checkpoints").mkdir()
    (tmp_path / "0" / "checkpoints" / "last.ckpt").touch()
    assert run().rstrip().endswith("resume=auto")
    (tmp_path / "0" / RESULT).touch()
    assert run() == ""


def test_a_missing_sbatch_points_to_local(tmp_path, cluster, monkeypatch):
    one = launcher(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="hydra/launcher=local"):
        one.setup(hydra_context=None, task_function=None, config=composed())
    with pytest.raises(UserError, match="hydra/launcher=local"):
        controller.submit([f"hydra.sweep.dir={tmp_path}", "hydra/sweeper=optuna"])


def test_a_directory_that_cannot_be_written_is_refused_before_any_job(tmp_path, cluster):
    (tmp_path / "file").touch()
    one = launcher(tmp_path)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": f"{tmp_path}/file/sweep"}}})
    with pytest.raises(UserError, match=r"hydra\.sweep\.dir=.*/file/sweep cannot be written"):
        one.setup(hydra_context=None, task_function=None, config=config)
    assert not cluster.asked


def test_jobs_do_not_inherit_what_slurm_set_for_the_controller(monkeypatch):
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    found = slurm_queue.clean_environment()
    assert "SLURM_CONF" in found and not {"SLURM_JOB_ID", "SBATCH_PARTITION"} & found.keys()


def test_a_watch_asks_once_for_all_jobs(cluster, monkeypatch):
    monkeypatch.setattr(slurm_queue, "LOOK_S", 60.0)
    watch = Watch()
    cluster.answers["squeue"] = "".join(f"{n}|RUNNING|x\n" for n in range(50))
    assert [watch.status(str(n)) for n in range(50)] == [None] * 50
    assert len(cluster.asked) == 1


def test_arrays_in_the_accounting_are_read_by_task(cluster):
    cluster.answers["sacct"] = (
        "JobID|State|ExitCode|NodeList\n5_0|COMPLETED|0:0|n1\n5_1|TIMEOUT|0:0|n2\n"
        "5_[2-3]|PENDING|0:0|None assigned\n"
    )
    found = slurm_queue.accounted(["5_0", "5_1", "5_2"])
    assert found == {"5_0": Status("COMPLETED", "0:0", "n1"), "5_1": Status("TIMEOUT", "0:0", "n2")}
    assert cluster.asked[0].count("--jobs=5") == 1


@pytest.mark.slow
@pytest.mark.ci
def test_a_controller_hands_its_arguments_on_verbatim(tmp_path, cluster, monkeypatch):
    cluster.answers["sbatch"] = "40\n"
    monkeypatch.setenv(controller.OPTIONS, "--partition=cpu --account=mine")
    folder = tmp_path / "a sweep"
    own = ["hydra/sweeper=optuna", "hydra/launcher=slurm", f"hydra.sweep.dir='{folder}'"]
    own += ["model.width=choice(8, 16)", "seed=3"]
    said = controller.submit(["-m", *own])
    text = (folder / "controller.sh").read_text()
    (line,) = [one for one in text.splitlines() if "jepa.train" in one]
    assert shlex.split(line)[1:-1] == ["-u", "-m", "jepa.train", "-m", *own]
    for part in ("--time=72:00:00", "--requeue", "--cpus-per-task=1", "controller.log"):
        assert part in text
    assert "job 40" in said and shlex.join(own) in said and str(folder / "STOP") in said
    (sent,) = [one for one in cluster.asked if one[0] == "sbatch"]
    assert "--partition=cpu" in sent and "--account=mine" in sent
    subprocess.run(["bash", "-n", str(folder / "controller.sh")], check=True)


@pytest.mark.slow
@pytest.mark.ci
def test_a_controller_refuses_bad_arguments_and_directories(tmp_path, cluster):
    with pytest.raises(UserError, match=r"model\.width"):
        controller.submit(["hydra/launcher=slurm", "model.widht=3"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"hydra\.sweep\.dir=.*cannot be written"):
        controller.submit(["hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}/file/x"])
    assert not cluster.submitted()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1:30", 90), ("2:00:05", 7205), ("3-00:00:00", 259200), ("UNLIMITED", float("inf")), ("", 0)],
)
def test_times_of_slurm_are_read(text, seconds):
    assert requeue.read_time(text) == seconds


def test_a_run_at_its_time_limit_goes_on_so_often_and_a_preempted_one_always(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv(requeue.TIMEOUTS, "2")
    monkeypatch.setattr(requeue, "requeue", lambda job: asked.append(job) or "")
    at_limit = iter([True, False, True, True, False])
    monkeypatch.setattr(requeue, "is_limit", lambda job, variables: next(at_limit))
    callback = Interrupt(run_dir=str(tmp_path), requeue=True)
    for step in range(5):
        callback.back_into_queue(step)
    events = [json.loads(one) for one in (tmp_path / "events.jsonl").read_text().splitlines()]
    problems = [one["problem"] for one in events]
    assert problems == ["", "", "", "it timed out 3 times", ""] and len(asked) == 4


@pytest.mark.parametrize(("left", "is_limit"), [("1:40", True), ("1:00:00", False), ("", True)])
def test_a_warning_near_the_limit_is_that_of_the_limit(monkeypatch, left, is_limit):
    done = subprocess.CompletedProcess([], 0, stdout=left + "\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert requeue.is_limit("17", {requeue.WARNING: "60"}) == is_limit


def test_a_run_that_was_asked_to_leave_has_no_result(tmp_path):
    config = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path)}}})
    for error, written in ((Leave("SIGUSR2", rank=0), False), (ValueError("bad"), True)):
        ended = JobReturn(status=JobStatus.FAILED, _return_value=error)
        RecordOutcome().on_job_end(config, ended)
        assert (tmp_path / RESULT).exists() == written
