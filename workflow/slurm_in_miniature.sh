#!/usr/bin/env bash
# A SLURM of one node on loopback, without systemd, for as long as a command runs: workflow/slurm_in_miniature.sh FOLDER COMMAND...
# Keys, state and logs lie in FOLDER; munged, slurmctld and slurmd run as the user who calls (root), and end with the command.
# Needs Debian's packages: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
# Without a database there is no accounting, so Snakemake must ask squeue: `workbench cohort ... --slurm-status-command squeue`.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
for tool in munged slurmctld slurmd squeue; do
    command -v "$tool" >/dev/null || { echo "error: no $tool: apt-get install slurmctld slurmd slurm-client munge" >&2; exit 2; }
done
central=/etc/slurm/slurm.conf # where jobs look: Snakemake's executor hands SLURM_CONF on to none of them
[ ! -e $central ] || { echo "error: $central is there: this machine has a SLURM already" >&2; exit 2; }
mkdir -p "$1"
place=$(realpath "$1") node=$(hostname -s) running=()
shift
chmod 700 "$place"
mkdir -p "$place"/{state,spool}
[ -e "$place/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$place/munge.key")
memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)

cat >"$place/slurm.conf" <<END
ClusterName=miniature
SlurmctldHost=$node(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$place/munge.socket
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MinJobAge=3600
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$node Default=YES MaxTime=INFINITE State=UP
END

stop() {
    for ((n = ${#running[@]} - 1; n >= 0; n--)); do
        kill "${running[n]}" 2>/dev/null && wait "${running[n]}" 2>/dev/null || true
    done
    rm -f $central
}
trap stop EXIT
ln -s "$place/slurm.conf" $central

start() { # in the foreground of a job of this shell, so that its id is known
    "$@" >>"$place/start.log" 2>&1 &
    running+=($!)
}
start munged --foreground --force --key-file "$place/munge.key" --socket "$place/munge.socket" --pid-file "$place/munged.pid" \
    --log-file "$place/munged.log" --seed-file "$place/munged.seed"
for _ in {1..50}; do [ -S "$place/munge.socket" ] && break || sleep 0.2; done
start slurmctld -D -c
start slurmd -D -c -N "$node"
for _ in {1..150}; do sinfo -h -o %T 2>/dev/null | grep -q idle && break || sleep 0.2; done
sinfo -h -o %T | grep -q idle || { echo "error: no node is idle after 30 s; see $place/*.log" >&2; exit 1; }
"$@"
