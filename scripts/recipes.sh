# Sourced by run_train.sh and run_eval.sh: their arguments, and the recipes that a filter names.

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit "${1:-2}"
}

DATA=${DATA:-dataset} ROOT=${ROOT:-experiments} FILTER=${FILTER:-*}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ]; then
    if [ -x "$here/../.venv/bin/python" ]; then PYTHON=$here/../.venv/bin/python; else PYTHON=python3; fi
fi
case ${1:-} in -h | --help) usage 0 ;; esac

# recipes: the files that FILTER names, those of one head before those that start from them.
recipes() {
    local found
    found=$(cd "$here/recipes" && find . -name '*.yaml' | sed 's|^\./||; s|\.yaml$||' | LC_ALL=C sort |
        while read -r name; do
            # shellcheck disable=SC2254  # FILTER is a pattern
            case $name in $FILTER) echo "$name" ;; esac
        done)
    if [ -z "$found" ]; then
        echo "error: FILTER='$FILTER' names no recipe; they are $(cd "$here/recipes" && echo */*.yaml | sed 's/\.yaml//g')" >&2
        exit 2
    fi
    echo "$found" | grep -v '_ours$' || true
    echo "$found" | grep '_ours$' || true
}
