#!/bin/sh
# pilot.sh: land on a bare worker node, fetch the runtime, check it, start the glide-in, leave nothing behind.
#
#   wget -qO- http://central/pilot.sh | sh          or as the executable of a batch job
#   sh pilot.sh run JOB.jdl                         arguments are a jobagent command; without any: glidein
#
# Needs sh, wget or curl, tar, gzip and the usual coreutils; no root, no Python, no FUSE, no namespaces, no compiler.
#
# Settings: environment, else the site's file ($JOBAGENT_PILOT_CONF, else /etc/jobagent/pilot.conf: NAME=value lines),
# else the default.  No setting disables a check of what is executed.
#   JOBAGENT_SCRATCH        directories to work in, separated by ':'; nothing else is tried
#   JOBAGENT_CACHE          directory on a local disk that stays for the next pilot; empty: everything is removed
#   JOBAGENT_RUNTIME_URLS   more places of the runtime, tried first (a neighbour, the site's web server)
#   JOBAGENT_WALL_S         seconds that the slot gives this pilot; 0: not known
#   JOBAGENT_TOKEN_FILE     IDTOKEN of the VO's pool, for the glide-in
#   JOBAGENT_PILOT_LOG      file that gets the pilot's log too, and is kept
#   JOBAGENT_SITE           name of the site
#   JOBAGENT_MIN_DISK_MB, JOBAGENT_MIN_MEMORY_MB, JOBAGENT_MAX_CLOCK_SKEW_S, JOBAGENT_FETCH_S, JOBAGENT_GRACE_S
#   http_proxy, https_proxy, no_proxy
#
# Exit codes, by who must act (the numbers are those of `jobagent`; docs/pilot.md has the table):
#   0 done
#   220 site: tool missing   221 disk full   222 no usable scratch   224 site configuration
#   226 node unfit (kernel, machine, memory, clock, a runtime that does not start)
#   232 supply: no place delivered the runtime     242 trust: only wrong bytes were delivered
#   128+n ended by signal n; any other code is that of the jobagent command
#
# Everything is a function and the last line calls main: half a script, piped, runs nothing.

set -u
umask 077
export LC_ALL=C
PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}

# --- rendered by `jobagent bundle` -----------------------------------------------------------------------------
RUNTIME_SHA256='@RUNTIME_SHA256@'           # of runtime.tar.gz
RUNTIME_BYTES='@RUNTIME_BYTES@'
RUNTIME_FILES='@RUNTIME_FILES@'             # files of the unpacked tree, SHA256SUMS not counted
RUNTIME_SUMS_SHA256='@RUNTIME_SUMS_SHA256@' # of the tree's SHA256SUMS
RUNTIME_URLS='@RUNTIME_URLS@'               # separated by blanks
RUNTIME_MACHINE='@RUNTIME_MACHINE@'         # uname -m
OFFER_URLS='@OFFER_URLS@'                   # where a node that has the runtime says so, for its neighbours
NEED_DISK_MB='@NEED_DISK_MB@'
NEED_MEMORY_MB='@NEED_MEMORY_MB@'
settings_file() {
    cat <<'END_OF_SETTINGS'
@SETTINGS@
END_OF_SETTINGS
}
root_metadata() {
    cat <<'END_OF_ROOT'
@ROOT_METADATA@
END_OF_ROOT
}
# --- end of what is rendered -----------------------------------------------------------------------------------

EXIT_TOOL=220
EXIT_DISK=221
EXIT_SCRATCH=222
EXIT_CONFIGURATION=224
EXIT_UNFIT=226
EXIT_SUPPLY=232
EXIT_TRUST=242

MIN_INODES=5000
MIN_KERNEL=3.2                # what the runtime's libc was built for
NETWORK_FILESYSTEMS=' nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph afs ncpfs 9p fuse.sshfs fuse.glusterfs glusterfs panfs orangefs pvfs2 coda '
DISK_FILESYSTEMS=' ext2 ext3 ext4 xfs btrfs zfs f2fs jfs reiserfs overlay bcachefs '

# --- log ---------------------------------------------------------------------------------------------------------

uptime_cs() { # hundredths of a second since boot; monotonic, unlike the clock that is yet to be checked
    read -r up _ </proc/uptime || up=0.00
    case $up in *.*) echo "${up%.*}${up#*.}" ;; *) echo "${up}00" ;; esac
}

log() { # LEVEL WORDS...
    level=$1
    shift
    cs=$(($(uptime_cs) - STARTED_CS))
    frac=$((cs % 100))
    [ "$frac" -ge 10 ] || frac=0$frac
    line="$(date -u +%Y-%m-%dT%H:%M:%SZ) pilot $PILOT_ID +$((cs / 100)).$frac $level $*"
    printf '%s\n' "$line" >&2
    [ -z "$LOG_FILE" ] || printf '%s\n' "$line" >>"$LOG_FILE" || LOG_FILE=
}

fail() { # EXIT_CODE MESSAGE...
    code=$1
    shift
    log ERROR "$* (exit $code)"
    exit "$code"
}

# --- settings ----------------------------------------------------------------------------------------------------

read_site_file() { # values are data: nothing in the file is executed
    site_file=${JOBAGENT_PILOT_CONF:-/etc/jobagent/pilot.conf}
    if [ ! -f "$site_file" ]; then
        [ -z "${JOBAGENT_PILOT_CONF:-}" ] || fail $EXIT_CONFIGURATION "no site file $site_file; unset JOBAGENT_PILOT_CONF or make it"
        return 0
    fi
    while IFS= read -r entry || [ -n "$entry" ]; do
        case $entry in '' | '#'*) continue ;; esac
        name=${entry%%=*}
        value=${entry#*=}
        case $name in
            JOBAGENT_SCRATCH | JOBAGENT_CACHE | JOBAGENT_RUNTIME_URLS | JOBAGENT_WALL_S | JOBAGENT_TOKEN_FILE | \
                JOBAGENT_PILOT_LOG | JOBAGENT_SITE | JOBAGENT_MIN_DISK_MB | JOBAGENT_MIN_MEMORY_MB | \
                JOBAGENT_MAX_CLOCK_SKEW_S | JOBAGENT_FETCH_S | JOBAGENT_GRACE_S | http_proxy | https_proxy | no_proxy) ;;
            *) fail $EXIT_CONFIGURATION "$site_file: unknown name '$name'; the names stand at the top of pilot.sh" ;;
        esac
        eval "is_set=\${$name+yes}" # $name is one of the words above
        [ -n "${is_set:-}" ] || export "$name=$value"
    done <"$site_file"
}

is_digest() { # TEXT
    case $1 in *[!0-9a-f]*) return 1 ;; esac
    [ ${#1} = 64 ]
}

whole_number() { # NAME DEFAULT: print the setting, or fail
    eval "value=\${$1:-$2}"
    case $value in
        '' | *[!0-9]*) fail $EXIT_CONFIGURATION "$1 is '$value', expected a whole number" ;;
    esac
    echo "$value"
}

read_settings() {
    is_digest "$RUNTIME_SHA256" && is_digest "$RUNTIME_SUMS_SHA256" ||
        fail $EXIT_CONFIGURATION "this script holds no digest: it was not made by 'jobagent bundle'"
    read_site_file
    MIN_DISK_MB=$(whole_number JOBAGENT_MIN_DISK_MB "$NEED_DISK_MB") || exit
    MIN_MEMORY_MB=$(whole_number JOBAGENT_MIN_MEMORY_MB "$NEED_MEMORY_MB") || exit
    MAX_SKEW_S=$(whole_number JOBAGENT_MAX_CLOCK_SKEW_S 3600) || exit
    FETCH_S=$(whole_number JOBAGENT_FETCH_S 600) || exit
    GRACE_S=$(whole_number JOBAGENT_GRACE_S 20) || exit
    WALL_S=$(whole_number JOBAGENT_WALL_S 0) || exit
    CACHE=${JOBAGENT_CACHE:-}
    # wget knows only the lower-case names, and curl only the lower-case http_proxy
    [ -n "${http_proxy:-}" ] || [ -z "${HTTP_PROXY:-}" ] || export http_proxy="$HTTP_PROXY"
    [ -n "${https_proxy:-}" ] || [ -z "${HTTPS_PROXY:-}" ] || export https_proxy="$HTTPS_PROXY"
}

# --- processes ---------------------------------------------------------------------------------------------------

# Every long step is a background child, looked after by short sleeps: a shell runs its traps only between commands,
# and `wait` can miss a signal or an end that comes just before it (dash 0.5.12).

nap() { # NUMBER: a moment, longer as the number grows
    case $1 in 0) moment=0.01 ;; 1 | 2) moment=0.03 ;; ? | 1?) moment=0.1 ;; *) moment=0.3 ;; esac
    sleep $moment 2>/dev/null 9>&- || sleep 1 9>&- # no fractions in POSIX; who outlives a killed pilot holds no lock
}

attend() { # DEADLINE (uptime in hundredths, 0 for none): wait for CHILD; STATUS is its exit status
    naps=0
    while kill -0 "$CHILD" 2>/dev/null; do
        if [ "$1" -gt 0 ] && [ "$(uptime_cs)" -ge "$1" ]; then
            [ -z "${2:-}" ] || log WARNING "$2"
            end_child
            return
        fi
        nap $naps
        naps=$((naps + 1))
    done
    wait "$CHILD"
    STATUS=$?
    CHILD=
}

end_child() { # SIGTERM, and SIGKILL after the grace; STATUS is its exit status
    kill -TERM "$CHILD" 2>/dev/null
    kill_cs=$(($(uptime_cs) + GRACE_S * 100))
    naps=0
    while kill -0 "$CHILD" 2>/dev/null; do
        [ "$(uptime_cs)" -lt "$kill_cs" ] || kill -KILL "$CHILD" 2>/dev/null
        nap $naps
        naps=$((naps + 1))
    done
    wait "$CHILD"
    STATUS=$?
    CHILD=
}

bounded() { # SECONDS COMMAND...: its exit status; that of its end by SIGTERM when the time was up
    end_cs=$(($(uptime_cs) + $1 * 100))
    [ "$WALL_CS" = 0 ] || [ "$WALL_CS" -gt "$end_cs" ] || end_cs=$WALL_CS
    shift
    "$@" </dev/null 9>&- &
    CHILD=$!
    attend "$end_cs"
    return "$STATUS"
}

start_ticks() { # PID: when it started, in ticks since boot; tells a reused pid
    read -r stat <"/proc/$1/stat" 2>/dev/null || return 1
    # shellcheck disable=SC2086 # the fields after the name, which may hold blanks and parentheses
    set -- ${stat##*) }
    echo "${20}"
}

marked_processes() { # ID: processes of that pilot, wherever they went
    (unset JOBAGENT_PILOT_ID && exec grep -l "JOBAGENT_PILOT_ID=$1" /proc/[0-9]*/environ) 2>/dev/null |
        while IFS=/ read -r _ _ pid _; do
            [ "$pid" = "$$" ] || echo "$pid"
        done
}

end_marked_processes() { # ID
    for signal in TERM KILL KILL; do
        found=$(marked_processes "$1")
        [ -n "$found" ] || return 0
        # shellcheck disable=SC2086
        kill "-$signal" $found 2>/dev/null
        naps=0
        while [ $naps -lt 8 ] && [ -n "$(marked_processes "$1")" ]; do
            nap $naps
            naps=$((naps + 1))
        done
    done
}

on_signal() { # NAME NUMBER
    trap '' TERM INT HUP
    log WARNING "signal $1: ending"
    [ -z "$CHILD" ] || end_child
    exit $((128 + $2))
}

# --- removal -----------------------------------------------------------------------------------------------------

remove_tree() { # installed packages are read-only trees
    chmod -R u+rwX "$1" 2>/dev/null
    rm -rf "$1" 2>/dev/null || { sleep 1; chmod -R u+rwX "$1" 2>/dev/null; rm -rf "$1"; }
}

clean_up() {
    code=$?
    trap '' TERM INT HUP
    trap - EXIT
    cd / || :
    end_marked_processes "$PILOT_ID"
    [ -z "$STAGING" ] || remove_tree "$STAGING"
    if [ -n "$WORK" ]; then
        remove_tree "$WORK"
        [ ! -e "$WORK" ] || log ERROR "cannot remove all of $WORK; the next pilot will try again"
    fi
    log INFO "end exit=$code"
    exit "$code"
}

is_alive() { # DIRECTORY: whether the pilot that made it still runs; unsure counts as alive
    if [ "$owner_lock" = flock ] && command -v flock >/dev/null; then
        ! flock -n "$1/.lock" true 2>/dev/null
        return
    fi
    [ "$owner_boot" = "$BOOT" ] || return 1
    [ "$owner_pids" = "$PIDS" ] || return 0 # another PID namespace: its numbers say nothing here
    [ "$(start_ticks "$owner_pid")" = "$owner_ticks" ]
}

sweep() { # PARENT: what killed pilots of this user left there
    for left in "$1"/jobagent-pilot."$USER_ID".*; do
        [ -d "$left" ] && [ ! -L "$left" ] && [ -O "$left" ] || continue
        if ! read -r owner_id owner_pid owner_ticks owner_boot owner_pids owner_lock 2>/dev/null <"$left/.jobagent-pilot"; then
            continue # without its marker it is not known to be ours
        fi
        is_alive "$left" && continue
        log INFO "sweep: $left of pilot $owner_id, which is gone"
        case $owner_id in [0-9]*-*) end_marked_processes "$owner_id" ;; esac
        remove_tree "$left"
    done
}

# --- scratch -----------------------------------------------------------------------------------------------------

filesystem_type() { # DIRECTORY, physical: longest mount point that is a prefix
    type=unknown
    longest=0
    while read -r _ point kind _; do
        [ "$point" = / ] && prefix=/ || prefix=$point/
        case $1/ in
            "$prefix"*)
                if [ ${#point} -ge "$longest" ]; then
                    longest=${#point}
                    type=$kind
                fi
                ;;
        esac
    done </proc/mounts
    echo "$type"
}

free_mb() { # DIRECTORY
    df -Pk "$1" 2>/dev/null | {
        read -r _
        read -r _ _ _ free_kb _
        echo $((${free_kb:-0} / 1024))
    }
}

free_inodes() { # DIRECTORY; file systems without a fixed number say 0 of 0: plenty
    df -Pi "$1" 2>/dev/null | {
        read -r _
        read -r _ total _ free _
        case ${total:-0} in 0 | - | *[!0-9]*) echo $MIN_INODES ;; *) echo "$free" ;; esac
    }
}

claim() { # PARENT NEED_MB: make a directory there and set CLAIMED, or set REFUSED to the reason
    CLAIMED=
    [ -d "$1" ] || { REFUSED="is no directory"; return 1; }
    real=$(cd "$1" 2>/dev/null && pwd -P) || { REFUSED="cannot be entered"; return 1; }
    case "$real" in *[!A-Za-z0-9_./+@%=:,-]*) REFUSED="has a name with unusual characters"; return 1 ;; esac
    type=$(filesystem_type "$real")
    case $NETWORK_FILESYSTEMS in *" $type "*) REFUSED="is on the network ($type)"; return 1 ;; esac
    place=$real/jobagent-pilot.$USER_ID.$PILOT_ID
    mkdir "$place" 2>/dev/null || { REFUSED="cannot be written"; return 1; }
    mark "$place" || { rm -rf "$place"; REFUSED="is full: cannot write a line"; IS_FULL=yes; return 1; }
    free=$(free_mb "$place")
    if [ "$free" -lt "$2" ]; then
        REFUSED="has $free MB free, $2 MB are needed"
        IS_FULL=yes
    elif [ "$(free_inodes "$place")" -lt $MIN_INODES ]; then
        REFUSED="has fewer than $MIN_INODES inodes free"
        IS_FULL=yes
    elif ! dd if=/dev/zero of="$place/probe" bs=65536 count=16 2>/dev/null; then
        REFUSED="refuses 1 MB (quota?)"
        IS_FULL=yes
    elif ! can_execute "$place"; then
        REFUSED="is mounted noexec"
    else
        rm -f "$place/probe"
        CLAIMED=$place
        return 0
    fi
    rm -rf "$place"
    return 1
}

mark() { # DIRECTORY: lock it, and only then say whose it is: what bears no marker is not swept
    if [ "$LOCKING" = flock ]; then
        true 2>/dev/null >"$1/.lock" || return 1 # a failing `exec 9>` would end the shell
        exec 9>"$1/.lock"
        flock -n 9
    fi
    printf '%s %s %s %s %s %s\n' "$PILOT_ID" "$$" "$(start_ticks $$)" "$BOOT" "$PIDS" "$LOCKING" >"$1/.marker" 2>/dev/null &&
        mv "$1/.marker" "$1/.jobagent-pilot"
}

can_execute() { # DIRECTORY
    printf '#!/bin/sh\nexit 42\n' >"$1/probe" && chmod 700 "$1/probe" || return 1
    "$1/probe" 2>/dev/null
    [ $? = 42 ]
}

local_disks() { # places on local disks, roomiest first
    for place in /scratch /local /data /pool /var/tmp /tmp; do echo "$place"; done
    while read -r _ point kind _; do
        case $point in / | /boot* | /efi* | /etc* | /usr* | /run* | /proc* | /sys* | /dev*) continue ;; esac
        case $DISK_FILESYSTEMS in *" $kind "*) echo "$point" ;; esac
    done </proc/mounts
}

candidates() {
    if [ -n "${JOBAGENT_SCRATCH:-}" ]; then
        echo "$JOBAGENT_SCRATCH" | tr ':' '\n'
        return
    fi
    for place in "${_CONDOR_SCRATCH_DIR:-}" "${SLURM_TMPDIR:-}" "${PBS_JOBFS:-}" "${TMPDIR:-}"; do
        [ -z "$place" ] || echo "$place"
    done
    local_disks | while IFS= read -r place; do
        [ -d "$place" ] && [ -w "$place" ] || continue
        [ "$(filesystem_type "$place")" = tmpfs ] && room=0 || room=$(free_mb "$place") # it is memory: last
        echo "$room $place"
    done | sort -rn -k1,1 | cut -d' ' -f2-
}

choose_scratch() {
    refusals=
    seen=
    IS_FULL=
    list=$(candidates)
    old_ifs=$IFS
    IFS='
'
    for parent in $list; do
        IFS=$old_ifs
        case "$seen" in *"<$parent>"*) continue ;; esac
        seen="$seen<$parent>"
        [ -d "$parent" ] && sweep "$parent"
        if claim "$parent" "$MIN_DISK_MB"; then
            WORK=$CLAIMED
            log INFO "scratch $WORK type=$type free_mb=$free"
            return 0
        fi
        log INFO "scratch $parent $REFUSED"
        refusals="$refusals; $parent $REFUSED"
    done
    IFS=$old_ifs
    [ -z "$IS_FULL" ] || fail $EXIT_DISK "no scratch with $MIN_DISK_MB MB free$refusals; free space or set JOBAGENT_SCRATCH"
    fail $EXIT_SCRATCH "no usable scratch${refusals:-: none of the usual places exists}; set JOBAGENT_SCRATCH to a local disk"
}

# --- node --------------------------------------------------------------------------------------------------------

check_tools() {
    if command -v wget >/dev/null; then
        FETCHER=wget
        wget --version >/dev/null 2>&1 || FETCHER=busybox-wget
    elif command -v curl >/dev/null; then
        FETCHER=curl
    else
        fail $EXIT_TOOL "neither wget nor curl is on this node"
    fi
    for tool in tar gzip sha256sum df dd mkdir chmod rm sort cut tr date grep; do
        command -v $tool >/dev/null || fail $EXIT_TOOL "$tool is not on this node"
    done
    LOCKING=pid
    ! command -v flock >/dev/null || LOCKING=flock
}

is_kernel_older() { # RELEASE MAJOR.MINOR
    major=${1%%.*}
    rest=${1#*.}
    minor=${rest%%[!0-9]*}
    [ "$major" -lt "${2%.*}" ] || { [ "$major" -eq "${2%.*}" ] && [ "${minor:-0}" -lt "${2#*.}" ]; }
}

memory_mb() { # what this process may use: the machine's, or less if a control group says so
    memory=0
    while read -r key kb _; do
        [ "$key" != MemTotal: ] || memory=$((kb / 1024))
    done </proc/meminfo
    group=$(sed -n 's/^0:://p' /proc/self/cgroup 2>/dev/null)
    for limit_file in "/sys/fs/cgroup$group/memory.max" /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
        read -r limit 2>/dev/null <"$limit_file" || continue
        case $limit in *[!0-9]* | '' | ????????????????*) continue ;; esac
        [ $((limit / 1048576)) -ge "$memory" ] || memory=$((limit / 1048576))
    done
    echo "$memory"
}

check_node() {
    system=$(uname -s) machine=$(uname -m) release=$(uname -r)
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || echo unknown)
    memory=$(memory_mb)
    log INFO "node host=$(uname -n) system=$system-$machine kernel=$release libc='$libc' memory_mb=$memory user=$USER_ID"
    [ "$system-$machine" = "Linux-$RUNTIME_MACHINE" ] ||
        fail $EXIT_UNFIT "this is $system-$machine, the runtime is for Linux-$RUNTIME_MACHINE"
    ! is_kernel_older "$release" $MIN_KERNEL || fail $EXIT_UNFIT "kernel $release is older than $MIN_KERNEL"
    [ "$memory" -ge "$MIN_MEMORY_MB" ] || fail $EXIT_UNFIT "$memory MB of memory, $MIN_MEMORY_MB MB are needed"
}

# --- clock -------------------------------------------------------------------------------------------------------

decimal() { # without leading zeros, which would mean octal
    number=${1#0}
    echo "${number:-0}"
}

http_date_s() { # DAY MONTH YEAR HH:MM:SS of an HTTP date: seconds since the epoch
    case $2 in
        Jan) m=1 ;; Feb) m=2 ;; Mar) m=3 ;; Apr) m=4 ;; May) m=5 ;; Jun) m=6 ;;
        Jul) m=7 ;; Aug) m=8 ;; Sep) m=9 ;; Oct) m=10 ;; Nov) m=11 ;; Dec) m=12 ;; *) return 1 ;;
    esac
    case $1$3 in *[!0-9]*) return 1 ;; esac
    case $4 in [0-9][0-9]:[0-9][0-9]:[0-9][0-9]) ;; *) return 1 ;; esac
    y=$3
    [ $m -gt 2 ] || y=$((y - 1))
    mp=$(((m + 9) % 12)) # months counted from March; days from the civil calendar, 719468 from 0000-03-01 to 1970
    days=$((365 * y + y / 4 - y / 100 + y / 400 + (153 * mp + 2) / 5 + $(decimal "$1") - 1 - 719468))
    rest=${4#*:}
    echo $((days * 86400 + $(decimal "${4%%:*}") * 3600 + $(decimal "${rest%:*}") * 60 + $(decimal "${4##*:}")))
}

server_time_s() { # HEADERS: when the last response was made; a cache's copy is as old as its Age
    server_s=
    age=0
    cr=$(printf '\r')
    while read -r key value; do
        value=${value%"$cr"}
        case $key in
            HTTP/*)
                [ -z "$server_s" ] || break # a redirect came first: the central server's clock counts, not a neighbour's
                age=0
                ;;
            [Dd]ate:)
                # shellcheck disable=SC2086
                set -- $value
                server_s=$(http_date_s "${2:-}" "${3:-}" "${4:-}" "${5:-}") || server_s=
                ;;
            [Aa]ge:) case $value in '' | *[!0-9]*) ;; *) age=$value ;; esac ;;
        esac
    done <"$1"
    [ -z "$server_s" ] || echo $((server_s + age))
}

check_clock() { # HEADERS URL
    server_s=$(server_time_s "$1")
    [ -n "$server_s" ] || { log INFO "clock not checked: $2 gave no Date"; return; }
    now_s=$(date +%s)
    if [ "$server_s" -lt "$FETCH_BEGAN_S" ]; then # the answer came at some time between the question and now
        skew=$((FETCH_BEGAN_S - server_s)) size=$skew way=ahead
    elif [ "$server_s" -gt "$now_s" ]; then
        skew=$((now_s - server_s)) size=$((-skew)) way=behind
    else
        skew=0 size=0 way=
    fi
    [ "$size" -le "$MAX_SKEW_S" ] ||
        fail $EXIT_UNFIT "the clock is $size s $way of $2, at most $MAX_SKEW_S s are allowed; signatures cannot be judged: set the clock"
    log INFO "clock skew_s=$skew"
}

# --- runtime -----------------------------------------------------------------------------------------------------

sha256_of() { # FILE
    sum=$(sha256sum "$1") && echo "${sum%% *}"
}

download() { # URL FILE SECONDS: into FILE, never more than the runtime's size; headers into FILE.headers
    case $FETCHER in
        wget) set -- "$1" "$2" "$3" wget -q -S -t 1 -T 30 --connect-timeout=5 -O "$2" "$1" ;;
        busybox-wget) set -- "$1" "$2" "$3" wget -S -O "$2" "$1" ;;
        curl) set -- "$1" "$2" "$3" curl -sS -f -L --connect-timeout 5 -D "$2.headers" -o "$2" "$1" ;;
    esac
    target=$2
    limit_s=$3
    shift 3
    rm -f "$target" "$target.headers"
    FETCH_BEGAN_S=$(date +%s)
    # the limit on file size (blocks of 512 bytes) ends an endless answer
    bounded "$limit_s" sh -c 'ulimit -f "$1"; shift; exec "$@"' sh $((RUNTIME_BYTES / 512 + 64)) "$@" 2>"$target.stderr"
    result=$?
    [ "$FETCHER" = curl ] || mv "$target.stderr" "$target.headers"
    return $result
}

looks_like_html() {
    case $(dd if="$1" bs=256 count=1 2>/dev/null | tr -d '\000') in
        *'<!DOCTYPE'* | *'<!doctype'* | *'<html'* | *'<HTML'*) return 0 ;;
        *) return 1 ;;
    esac
}

try_place() { # URL: fetch and check; 0 when $WORK/runtime.tar.gz is the runtime
    from=$(uptime_cs)
    left_s=$((FETCH_S - (from - FETCH_STARTED_CS) / 100))
    [ $left_s -gt 0 ] || { log WARNING "fetch: $FETCH_S s are over, not asked: $1"; return 1; }
    file=$WORK/runtime.tar.gz
    if ! download "$1" "$file" $left_s; then
        size=$(wc -c 2>/dev/null <"$file" || echo 0)
        if [ "$(free_mb "$WORK")" -lt $((RUNTIME_BYTES / 1048576 + 1)) ]; then
            fail $EXIT_DISK "disk full in $WORK while fetching the runtime; free space or set JOBAGENT_SCRATCH"
        fi
        reason=$(sed -n '/^ *HTTP/{s/^ *//;s/\r$//;h;};/^curl:/h;/^wget:/h;${g;p;}' "$file.headers" 2>/dev/null)
        log WARNING "fetch: $1 failed after $((size + 0)) of $RUNTIME_BYTES bytes ${reason:+($reason)}"
        return 1
    fi
    size=$(wc -c <"$file")
    digest=$(sha256_of "$file") || fail $EXIT_SCRATCH "cannot read $file"
    if [ "$digest" = "$RUNTIME_SHA256" ]; then
        cs=$(($(uptime_cs) - from))
        log INFO "fetched $1 bytes=$((size + 0)) hundredths=$cs"
        check_clock "$file.headers" "$1"
        return 0
    fi
    if looks_like_html "$file"; then
        log WARNING "fetch: $1 answered a web page instead of the runtime (a proxy's or portal's error?)"
    elif [ "$((size))" -lt "$RUNTIME_BYTES" ]; then
        log WARNING "fetch: $1 gave $((size + 0)) of $RUNTIME_BYTES bytes"
    else
        log ERROR "fetch: $1 gave sha256 $digest, expected $RUNTIME_SHA256; not used"
        IS_WRONG=yes
    fi
    rm -f "$file"
    return 1
}

fetch_runtime() {
    FETCH_STARTED_CS=$(uptime_cs)
    IS_WRONG=
    tried=
    for url in ${JOBAGENT_RUNTIME_URLS:-} $RUNTIME_URLS; do
        tried=yes
        try_place "$url" && return 0
    done
    if [ -n "${http_proxy:-}${https_proxy:-}" ]; then
        log INFO "fetch: once more without the proxy ${http_proxy:-$https_proxy}"
        saved_http=${http_proxy:-} saved_https=${https_proxy:-}
        unset http_proxy https_proxy
        for url in $RUNTIME_URLS; do
            try_place "$url" || continue
            [ -z "$saved_http" ] || export http_proxy="$saved_http"
            [ -z "$saved_https" ] || export https_proxy="$saved_https"
            return 0
        done
    fi
    [ -n "$tried" ] || fail $EXIT_CONFIGURATION "no URL of the runtime is known; set JOBAGENT_RUNTIME_URLS"
    [ -z "$IS_WRONG" ] || fail $EXIT_TRUST "every place gave wrong bytes or nothing; the runtime is not started"
    fail $EXIT_SUPPLY "no place delivered the runtime; see the lines above, and the site's proxy and firewall"
}

is_intact() { # DIRECTORY: it holds the runtime's files, all and no others, byte for byte
    [ -f "$1/SHA256SUMS" ] && [ "$(sha256_of "$1/SHA256SUMS")" = "$RUNTIME_SUMS_SHA256" ] || return 1
    count=$(find "$1/" ! -type d ! -path "$1/SHA256SUMS" ! -path "$1/.used" -print | wc -l)
    [ $((count)) = "$RUNTIME_FILES" ] && [ -z "$(find "$1/" -type l -print)" ] || return 1
    (cd "$1" && sha256sum -c SHA256SUMS >/dev/null 2>&1)
}

unpack_runtime() { # INTO
    mkdir -p "$1" || fail $EXIT_SCRATCH "cannot make $1"
    # shellcheck disable=SC2016
    if ! bounded 300 sh -c 'gzip -dc "$1" | tar -xof - -C "$2"' sh "$WORK/runtime.tar.gz" "$1" ||
        ! bounded 300 sh "$1/unpack" "$1"; then
        [ "$(free_mb "$1")" -ge 5 ] || fail $EXIT_DISK "disk full in $1 while unpacking the runtime; free space or set JOBAGENT_SCRATCH"
        fail $EXIT_UNFIT "the runtime cannot be unpacked in $1"
    fi
    is_intact "$1" || fail $EXIT_TRUST "the unpacked runtime in $1 is not what was built"
}

cached_runtime() { # the runtime in the site's cache: found, or brought there, by one pilot at a time
    shelf=$CACHE/pilot
    mkdir -p "$shelf" 2>/dev/null && [ -O "$shelf" ] || fail $EXIT_CONFIGURATION "JOBAGENT_CACHE=$CACHE cannot be used by this user"
    case $NETWORK_FILESYSTEMS in
        *" $(filesystem_type "$(cd "$CACHE" && pwd -P)") "*) fail $EXIT_CONFIGURATION "JOBAGENT_CACHE=$CACHE is on the network" ;;
    esac
    if [ "$LOCKING" = flock ]; then
        true 2>/dev/null >>"$shelf/.lock" || fail $EXIT_CONFIGURATION "JOBAGENT_CACHE=$CACHE cannot be written"
        exec 8>>"$shelf/.lock" # fetch once, however many pilots land together
        bounded "$FETCH_S" flock 8 || log WARNING "waited $FETCH_S s for another pilot's download; going on"
    fi
    RUNTIME=$shelf/runtime.$RUNTIME_SHA256
    if [ -e "$RUNTIME/SHA256SUMS" ]; then
        if is_intact "$RUNTIME"; then
            log INFO "runtime found in $RUNTIME"
            true >"$RUNTIME/.used"
            ARCHIVE=$shelf/archive.$RUNTIME_SHA256
            exec 8>&-
            return
        fi
        log WARNING "the runtime in $RUNTIME was changed: replaced"
        mv "$RUNTIME" "$shelf/.gone.$PILOT_ID" && remove_tree "$shelf/.gone.$PILOT_ID"
        rm -f "$RUNTIME" 2>/dev/null
    fi
    fetch_runtime
    STAGING=$shelf/.staging.$PILOT_ID
    unpack_runtime "$STAGING"
    true >"$STAGING/.used"
    if mv "$STAGING" "$RUNTIME" 2>/dev/null && [ ! -e "$RUNTIME/.staging.$PILOT_ID" ]; then
        STAGING=
    elif [ -e "$RUNTIME/.staging.$PILOT_ID" ]; then # without flock another pilot was first, and mv went inside
        remove_tree "$RUNTIME/.staging.$PILOT_ID"
        STAGING=
    fi
    exec 8>&-
    ARCHIVE=$shelf/archive.$RUNTIME_SHA256
    cp "$WORK/runtime.tar.gz" "$ARCHIVE.$PILOT_ID" 2>/dev/null && mv "$ARCHIVE.$PILOT_ID" "$ARCHIVE"
    rm -f "$ARCHIVE.$PILOT_ID" "$WORK/runtime.tar.gz"
    drop_old_runtimes
}

drop_old_runtimes() { # those that no pilot has used for two weeks, and staging of killed pilots
    find "$shelf" -maxdepth 2 -name .used -mtime +14 -print 2>/dev/null | while IFS= read -r used; do
        old=${used%/.used}
        case $old in "$shelf"/runtime.* | "$shelf"/.staging.*) rm -f "$shelf/archive.${old##*.}" && remove_tree "$old" ;; esac
    done
}

get_runtime() {
    if [ -n "$CACHE" ]; then
        cached_runtime
    else
        fetch_runtime
        ARCHIVE=$WORK/runtime.tar.gz
        RUNTIME=$WORK/runtime
        unpack_runtime "$RUNTIME"
    fi
    bounded 60 "$RUNTIME/bin/python" -c 'pass' || fail $EXIT_UNFIT "the runtime in $RUNTIME does not start on this node"
    export JOBAGENT_RUNTIME_ARCHIVE="$ARCHIVE" JOBAGENT_OFFER_URLS="$OFFER_URLS"
    log INFO "runtime ready $RUNTIME"
}

# --- main --------------------------------------------------------------------------------------------------------

begin() {
    STARTED_CS=0 PILOT_ID=- LOG_FILE='' CHILD='' WORK='' STAGING='' WALL_CS=0 GRACE_S=20
    STARTED_CS=$(uptime_cs)
    read -r chance 2>/dev/null </proc/sys/kernel/random/uuid || chance=$(uname -n | tr -cd 'A-Za-z0-9' | cut -c1-8)-
    PILOT_ID=$(date +%s)-$$-${chance%%-*} # in containers many pilots have one pid at the same second
    export JOBAGENT_PILOT_ID="$PILOT_ID" # the mark by which every process of this pilot is found
    USER_ID=$(id -u)
    read -r BOOT </proc/sys/kernel/random/boot_id 2>/dev/null || BOOT=unknown
    PIDS=$(readlink /proc/self/ns/pid 2>/dev/null || echo unknown)
    if [ -n "${JOBAGENT_PILOT_LOG:-}" ] && true 2>/dev/null >>"$JOBAGENT_PILOT_LOG"; then LOG_FILE=$JOBAGENT_PILOT_LOG; fi
    log INFO "begin runtime=$RUNTIME_SHA256 scheduler_id=${SLURM_JOB_ID:-${CONDOR_ID:-${PBS_JOBID:-none}}}"
    trap clean_up EXIT
    trap 'on_signal HUP 1' HUP
    trap 'on_signal INT 2' INT
    trap 'on_signal TERM 15' TERM
}

write_session() { # what the jobagent command finds
    settings_file >"$WORK/jobagent.toml" && root_metadata >"$WORK/root.json" && mkdir "$WORK/tmp" ||
        fail $EXIT_DISK "disk full in $WORK"
    export JOBAGENT_PILOT_DIR="$WORK" JOBAGENT_PILOT_STARTED_CS="$STARTED_CS"
    export JOBAGENT_PACKAGES="${CACHE:-$WORK/cache}/packages"
    export JOBAGENT_CONFIG="$WORK/jobagent.toml" JOBAGENT_CACHE="$CACHE" JOBAGENT_WALL_S="$WALL_S" TMPDIR="$WORK/tmp"
}

main() {
    exec </dev/null # when piped, the rest of stdin is this script
    begin
    HERE=$(pwd)
    [ -z "${JOBAGENT_TOKEN_FILE:-}" ] || case $JOBAGENT_TOKEN_FILE in
        /*) ;;
        *) export JOBAGENT_TOKEN_FILE="$HERE/$JOBAGENT_TOKEN_FILE" ;;
    esac
    read_settings
    if [ "$WALL_S" -gt 0 ]; then
        [ "$WALL_S" -gt "$GRACE_S" ] || fail $EXIT_CONFIGURATION "JOBAGENT_WALL_S=$WALL_S leaves no time beyond the grace of $GRACE_S s"
        WALL_CS=$((STARTED_CS + (WALL_S - GRACE_S) * 100))
    fi
    check_tools
    check_node
    choose_scratch
    write_session
    get_runtime
    [ $# -gt 0 ] || set -- glidein
    log INFO "start jobagent $1"
    "$RUNTIME/bin/jobagent" "$@" </dev/null 9>&- &
    CHILD=$!
    attend "$WALL_CS" "the slot's $WALL_S s are nearly over: ending jobagent $1"
    [ "$STATUS" = 0 ] || log ERROR "jobagent $1 ended with $STATUS"
    exit "$STATUS"
}

main "$@"
