# eoq_send QUEUE [BODY|-] [--id ID]: leave a message in the spool of your eoq daemon, without starting Python.
# Made by `eoq shell-init`, for sh, dash, bash, zsh and busybox sh. Help: eoq_send --help
if [ -n "${ZSH_VERSION-}" ]; then zmodload zsh/datetime zsh/system; fi
if [ -z "${EPOCHREALTIME-}" ] && [ -r /proc/loadavg ]; then
    # This shell has no clock, and `date` takes a millisecond: when the machine was started, in hundredths of a second.
    eoq_send_start=$(
        IFS=' '
        read -r up rest </proc/uptime
        now=$(command date +%s%N)
        case $now-$up in
            [1-9]??????????????????-[1-9]*.??) echo $((${now%???????} - ${up%.*}${up#*.})) ;;
        esac
    ) || eoq_send_start=
fi
eoq_send() (
    # A subshell: nothing that is set here is seen outside, and nothing that is set outside has an effect here.
    put() { printf %s "$1"; }
    if [ -n "${ZSH_VERSION-}" ]; then
        emulate sh
        put() { [ -z "$1" ] || syswrite -- "$1"; } # its printf does not report a full disk
    fi
    set +e +u +C -f
    IFS=' '
    umask 077
    spool=@SPOOL@
    most=1048576
    letters=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789
    unfinished=

    fail() { # STATUS TEXT
        if [ -n "$unfinished" ]; then command rm -f "$unfinished"; fi
        printf 'eoq_send: %s\n' "$2" >&2
        exit "$1"
    }
    usage() {
        fail 2 "$1; usage: eoq_send QUEUE [BODY|-] [--id ID]"
    }
    help() {
        printf '%s\n' 'eoq_send QUEUE [BODY|-] [--id ID]' \
            'Leave a message in the spool, and print its id. It is on disk when the command returns. The daemon stores it at' \
            'once, or when it runs again.' '' \
            '  BODY     up to 1 MiB; standard input if it is absent or -' \
            '  --id ID  idempotency key; default: a new unique id' '' \
            'An id that is sent twice is stored once, but nobody answers "duplicate". If its content differs, the file moves' \
            'to .rejected in the folder of the queue, with the reason. `eoq send` has more options, and asks the daemon.' '' \
            'Exit status: 0 on disk, 2 usage, 65 bad data, 69 no daemon has run yet, 74 input or output failed,' \
            '75 cannot be written now (disk full), 77 not allowed' '' "The spool is $spool"
    }

    # ── the command line ──
    words=0 ended= has_id= queue= body=- id=
    while [ "$#" -gt 0 ]; do
        if [ -z "$ended" ]; then
            case $1 in
                --) ended=1 && shift && continue ;;
                --id) [ "$#" -gt 1 ] || usage '--id needs a value'
                    id=$2 has_id=1 && shift 2 && continue ;;
                --id=*) id=${1#--id=} has_id=1 && shift && continue ;;
                -h | --help) help && exit 0 ;;
                -) ;;
                -*) usage "there is no option $1" ;;
            esac
        fi
        words=$((words + 1))
        case $words in
            1) queue=$1 ;;
            2) body=$1 ;;
            *) usage 'too many arguments' ;;
        esac
        shift
    done
    case $queue in
        '' | [!$letters]* | *[!$letters._-]*) usage 'QUEUE is letters, digits, dots, dashes and underscores' ;;
    esac
    [ "${#queue}" -le 128 ] || usage 'QUEUE has up to 128 characters'

    # ── the spool ──
    lock=$spool/.daemon.lock folder=$spool/$queue
    if [ ! -e "$lock" ]; then
        fail 69 "no daemon has made the spool $spool yet; start one with \`eoq start\`"
    fi
    if [ ! -O "$spool" ] || [ ! -O "$lock" ] || [ ! -f "$lock" ] || [ -L "$lock" ] || [ -L "$folder" ]; then
        fail 77 "$spool is not a spool of a daemon of this user; nothing was written"
    fi
    if [ -n "$has_id" ]; then
        case $id in
            '') fail 65 'the id is empty' ;;
            *[!$letters._:/@+=,#~\ -]*)
                # An id that needs JSON's escapes, or a look at its Unicode.
                if [ "$body" = - ]; then exec @PYTHON@ -P -m eoq.cli.leave "$spool" "$queue" "$id"; fi
                printf %s "$body" | @PYTHON@ -P -m eoq.cli.leave "$spool" "$queue" "$id"
                exit ;;
        esac
        [ "${#id}" -le 200 ] || fail 65 'the id has more than 200 characters'
    fi
    if [ ! -d "$folder" ]; then
        command mkdir "$folder" 2>/dev/null || [ -d "$folder" ] || fail 75 "$folder cannot be made; nothing was written"
    fi

    # ── names: the file's begins with the time, since the daemon stores files in the order of their names ──
    now=${EPOCHREALTIME-}
    case $now in
        *[.,]*) seconds=${now%%[.,]*} now=${now#*[.,]}000000000 ;;
        *) if [ -n "$eoq_send_start" ] &&
            read -r up rest </proc/uptime && read -r one five fifteen run pid </proc/loadavg; then
            # The last process id goes up from send to send, also within one hundredth of a second.
            now=$((eoq_send_start + ${up%.*}${up#*.})) pid=0000000$pid
            seconds=${now%??} now=${now#"${now%??}"}${pid#"${pid%???????}"}
        else
            now=$(command date +%s%N)
            now=${now%%[!0-9]*}000000000 seconds=${now%"${now#??????????}"} now=${now#??????????}
        fi ;;
    esac
    nanoseconds=${now%"${now#?????????}"}
    { read -r random </proc/sys/kernel/random/uuid; } 2>/dev/null || random=$(command uuidgen)
    random=${random#*-*-?}
    [ "${#random}" -eq 21 ] || fail 74 'there is no random number for a new name; nothing was written'
    file=0$seconds$nanoseconds-$random.eoq
    if [ -z "$has_id" ]; then
        # A UUIDv7, in two parts: the digits of the time are made where it is printed.
        moment=$((seconds * 1000 + (1$nanoseconds - 1000000000) / 1000000))
        format=%08x-%04x-7%s
        set -- $((moment >> 16)) $((moment & 65535)) "$random"
        length=36
    else
        format=%s
        set -- "$id"
        length=${#id}
    fi

    # ── the file: written and synced under a name that the daemon ignores, then renamed ──
    unfinished=$folder/.$file.tmp
    if [ "$body" = - ]; then
        if [ -t 0 ]; then printf 'eoq_send: reading the body from the terminal; end it with Ctrl-D\n' >&2; fi
        { printf "{\"id\":\"$format\"}\n" "$@" && command head -c $((most + 1)); } >"$unfinished" ||
            fail 74 "standard input cannot be read, or $unfinished not written; nothing was sent"
    else
        { printf "{\"id\":\"$format\"}\n" "$@" && put "$body"; } >"$unfinished" ||
            fail 75 "$unfinished cannot be written; nothing was sent"
    fi
    if [ "$body" = - ] || [ "${#body}" -gt $((most / 4)) ]; then # as many characters may have four times the bytes
        size=$(command wc -c <"$unfinished") || fail 74 "$unfinished cannot be read; nothing was sent"
        [ $((size - length - 10)) -le $most ] ||
            fail 65 "the body has more than $most bytes; store it elsewhere and send its name"
    fi
    command sync "$unfinished" || fail 75 "$unfinished cannot be synced; nothing was sent"
    command mv -f "$unfinished" "$folder/$file" || fail 75 "$folder/$file cannot be made; nothing was sent"
    unfinished=
    command sync "$folder" "$spool" ||
        fail 75 "$folder cannot be synced. The message may be stored or not: repeat it with --id $(printf "$format" "$@")"
    if [ -p "$spool/.bell" ]; then { :; } 1<>"$spool/.bell"; fi
    trap '' PIPE
    printf "$format\n" "$@" 2>/dev/null ||
        fail 74 "the message is stored, but its id could not be printed: $(printf "$format" "$@")"
)
