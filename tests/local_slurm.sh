#!/usr/bin/env bash
# A real one-node SLURM with accounting on this machine: tests meet the true sbatch, squeue and sacct.
#   local_slurm.sh install   Debian packages: slurm-wlm slurmdbd munge mariadb-server (about 20 s)
#   local_slurm.sh up        starts munged, mariadbd, slurmdbd, slurmctld and slurmd, all on 127.0.0.1
#   local_slurm.sh down      stops what `up` started
#   local_slurm.sh restart   stops slurmctld and starts it again: jobs go on
# SLURM_CPUS=16 pretends to more CPUs than there are. Memory limits are not enforced: use ulimit -v in a job.
# Run as root. Seen working on Debian 12, SLURM 22.05: job arrays, sacct states, scancel, requeue.
set -euo pipefail
home=${LOCAL_SLURM_HOME:-/var/tmp/local-slurm}
host=$(hostname -s)

install() {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm slurmdbd munge mariadb-server >/dev/null
}

configure() {
  mkdir -p "$home" /run/munge /run/mysqld /var/spool/slurmd /var/spool/slurmctld /etc/slurm
  chown munge:munge /run/munge /etc/munge/munge.key
  chown mysql:mysql /run/mysqld
  cat >/etc/slurm/slurm.conf <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmdSpoolDir=/var/spool/slurmd
StateSaveLocation=/var/spool/slurmctld
SlurmctldLogFile=$home/slurmctld.log
SlurmdLogFile=$home/slurmd.log
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStorageEnforce=qos
KillWait=5
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=${SLURM_CPUS:-$(nproc)} RealMemory=$(($(free -m | awk '/^Mem/{print $2}') * 9 / 10)) State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  cat >/etc/slurm/slurmdbd.conf <<CONF
AuthType=auth/munge
DbdHost=$host
DbdAddr=127.0.0.1
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$home/slurmdbd.log
PidFile=$home/slurmdbd.pid
CONF
  chmod 600 /etc/slurm/slurmdbd.conf
}

await() { for _ in $(seq 60); do "$@" >/dev/null 2>&1 && return 0; sleep 0.5; done; echo "timed out: $*" >&2; return 1; }

up() {
  configure
  munge -n >/dev/null 2>&1 || su -s /bin/sh munge -c munged
  mysqladmin ping >/dev/null 2>&1 || { setsid mariadbd --user=mysql --bind-address=127.0.0.1 --pid-file=/run/mysqld/mysqld.pid >"$home/mysql.log" 2>&1 & }
  await mysqladmin ping
  mysql -e "create database if not exists slurm_acct_db;
            create user if not exists 'slurm'@'localhost' identified by 'slurm';
            grant all on slurm_acct_db.* to 'slurm'@'localhost';"
  [ -e "$home/slurmdbd.pid" ] && kill -0 "$(cat "$home/slurmdbd.pid")" 2>/dev/null || slurmdbd
  await sacctmgr -n show cluster
  sacctmgr -n show cluster format=cluster | grep -qw local || sacctmgr -i add cluster local >/dev/null
  [ -e "$home/slurmctld.pid" ] && kill -0 "$(cat "$home/slurmctld.pid")" 2>/dev/null || slurmctld
  await scontrol ping
  [ -e "$home/slurmd.pid" ] && kill -0 "$(cat "$home/slurmd.pid")" 2>/dev/null || slurmd
  await srun -n1 --immediate=5 true
  sinfo
}

restart() {
  kill "$(cat "$home/slurmctld.pid")"
  await test ! -e "$home/slurmctld.pid"
  slurmctld
  await scontrol ping
}

down() {
  scancel -u root 2>/dev/null || true
  for name in slurmd slurmctld slurmdbd; do
    [ -e "$home/$name.pid" ] && kill "$(cat "$home/$name.pid")" 2>/dev/null || true
  done
  mysqladmin shutdown 2>/dev/null || true
}

case "${1:-}" in install | up | down | restart) "$1" ;; *) sed -n '2,9p' "$0"; exit 2 ;; esac
