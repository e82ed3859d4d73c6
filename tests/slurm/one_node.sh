#!/usr/bin/env bash
# A Slurm of one node on the loopback interface, for tests:
#   one_node.sh install          with apt-get (Debian, Ubuntu)
#   one_node.sh check            says in one line why it cannot run here, exit status 1; silent otherwise
#   one_node.sh start FOLDER     state, logs and process ids go there
#   one_node.sh stop FOLDER      cancels all jobs, ends what start started, removes what it wrote
# The configuration has to stand in /etc/slurm (inside jobs SLURM_CONF is not passed on), so root is needed. A machine
# that has a configuration already belongs to a real cluster and is left alone.
set -euo pipefail

CONF=/etc/slurm
MARK="# made by one_node.sh"

refuse() {
    echo "$1"
    exit 1
}

check() {
    [ "$(id -u)" = 0 ] || refuse "Slurm cannot be started: this needs root"
    for command in munged slurmctld slurmd sbatch; do
        command -v "$command" > /dev/null ||
            refuse "Slurm is not installed ($command is missing): on Debian and Ubuntu $0 install"
    done
    [ ! -e $CONF/slurm.conf ] || refuse "$CONF/slurm.conf is there: this machine has a Slurm of its own"
}

install_packages() {
    apt-get update
    apt-get install -y --no-install-recommends slurm-wlm munge
}

configure() {
    local folder=$1 host cores
    host=$(hostname -s)
    cores=$(nproc --all)
    # enough for a run of four processes, whatever the machine has
    [ "$cores" -ge 4 ] || cores=4
    mkdir -p "$folder/state" "$folder/spool" $CONF
    cat > $CONF/slurm.conf << END
$MARK
ClusterName=onenode
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MinJobAge=3600
SlurmdParameters=config_overrides
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$(($(grep MemTotal /proc/meminfo | tr -dc 0-9) / 1200)) Gres=gpu:1
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=1000
END
    # a GPU on paper: jobs that ask for one are given it, and find that it computes nothing
    printf '%s\nName=gpu File=/dev/null\n' "$MARK" > $CONF/gres.conf
}

start_munge() {
    munge -n < /dev/null > /dev/null 2>&1 && return
    [ -e /etc/munge/munge.key ] || install -o munge -g munge -m 400 <(head -c 1024 /dev/urandom) /etc/munge/munge.key
    install -d -o munge -g munge /run/munge
    su -s /bin/sh munge -c /usr/sbin/munged
    touch "$1/munge.ours"
}

wait_until() {
    for _ in $(seq 100); do
        if "$@" > /dev/null 2>&1; then return; fi
        sleep 0.2
    done
    refuse "Slurm does not answer: $*"
}

start() {
    check
    configure "$1"
    start_munge "$1"
    wait_until munge -n
    slurmctld
    slurmd
    wait_until sh -c 'sinfo --noheader --format=%T | grep -q idle'
}

end_process() {
    local pid
    pid=$(cat "$1" 2> /dev/null) || return 0
    kill "$pid" 2> /dev/null || true
    for _ in $(seq 50); do
        kill -0 "$pid" 2> /dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2> /dev/null || true
}

stop() {
    if grep -qs "$MARK" $CONF/slurm.conf; then
        timeout 10 scancel --state=PENDING,RUNNING --user=root 2> /dev/null || true
        for _ in $(seq 50); do
            [ -n "$(timeout 5 squeue --noheader 2> /dev/null)" ] || break
            sleep 0.2
        done
        end_process "$1/slurmd.pid"
        end_process "$1/slurmctld.pid"
        rm -f $CONF/slurm.conf $CONF/gres.conf
    fi
    if [ -e "$1/munge.ours" ]; then end_process /run/munge/munged.pid; fi
    rm -rf "$1/state" "$1/spool" "$1/munge.ours"
}

PATH="$PATH:/usr/sbin:/sbin"
case "${1:-}" in
    install) install_packages ;;
    check) check ;;
    start | stop) "$1" "$(realpath -m "${2:?a folder}")" ;;
    *) refuse "usage: $0 install | check | start FOLDER | stop FOLDER" ;;
esac
