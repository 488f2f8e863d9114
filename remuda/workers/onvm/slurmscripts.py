"""The programs that run inside a Slurm job, kept in HOME/slurm (see slurmfiles.py)."""

from __future__ import annotations

# POSIX sh. The exit code of a shell cannot tell `exit 143` from death by TERM: python3 can, and
# knows the peak memory, so it stands between if the node has one.
WRAPPER = """\
. "$1" || exit 1
c=$live/$a
read -r up _ < /proc/uptime
name=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
ln -s "$SLURM_JOB_ID ${name:-$SLURM_JOB_ID} ${SLURMD_NODENAME:-}" "$c.c" || exit 3
term=0 part=prologue st=0 sg=- u=- s=- m=-
trap term=1 TERM
trap : HUP INT QUIT USR1 USR2 ALRM XCPU
py=$(command -v python3)
step() {
    rm -f "$c.u"
    (
        exec < /dev/null >> "$out"
        if [ -n "$err" ]; then exec 2>> "$err"; else exec 2>&1; fi
        cd "$box" || exit 1
        if [ -n "$cwd" ]; then mkdir -p "./$cwd" && cd "./$cwd" || exit 1; fi
        go "$1"
    )
    st=$? sg=- u=- s=- m=-
    if [ -s "$c.u" ]; then
        read -r st sg u s m < "$c.u"
    elif [ "$st" -gt 128 ] && [ "$st" -le 192 ]; then
        sg=$((st - 128)) st=-
    fi
}
[ -z "$pro" ] || step pro
if [ "$st" = 0 ]; then
    part=command
    step cmd
    [ "$u" != - ] || times > "$c.t"
    if [ -n "$epi" ]; then
        kept="$st $sg $u $s $m"
        ok=$st
        code=$st
        number=$sg
        step epi
        if [ "$ok" = 0 ] && [ "$st" != 0 ]; then
            part=epilogue
        else
            read -r st sg u s m <<END
$kept
END
        fi
    fi
fi
read -r down _ < /proc/uptime
echo "$up $down $part $st $sg $term $u $s $m" > "$c.n" && mv -f "$c.n" "$c.s"
[ "$sg" = - ] || st=$((128 + sg))
exit "$st"
"""

LAUNCH = """\
import os, signal, sys
NUMBERS = (1, 2, 3, 10, 12, 14, 15, 24)
for number in NUMBERS:
    signal.signal(number, lambda *_: None)
pid = os.fork()
if not pid:
    for number in (*NUMBERS, 13, 25):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.stderr.write("%s: %s\\n" % (error.strerror, sys.argv[2]))
        sys.stderr.flush()
        os._exit(126)
_, status, use = os.wait4(pid, 0)
code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else "-"
number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else "-"
with open(sys.argv[1], "w") as file:
    file.write("%s %s %.6f %.6f %d\\n" % (code, number, use.ru_utime, use.ru_stime, use.ru_maxrss))
"""
